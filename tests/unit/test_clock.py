"""The clock of the system."""

import random
import time

import pytest

from mailer.clock import SystemClock


@pytest.mark.parametrize(
    ("module", "name", "given"),
    [(time, "time", ()), (time, "monotonic", ()), (time, "sleep", (3.0,)), (random, "random", ())],
)
def test_functions_that_are_replaced_after_the_import(
    module: object, name: str, given: tuple[float, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock calls functions that gevent, or a test that freezes the time, has replaced."""
    called: list[tuple[float, ...]] = []
    monkeypatch.setattr(module, name, lambda *given: called.append(given))

    getattr(SystemClock(), name)(*given)

    assert called == [given]
