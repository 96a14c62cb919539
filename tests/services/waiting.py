"""Wait for something to become true, never for time to pass."""

import inspect
import time
from collections.abc import Callable
from typing import TypeVar

import pytest

T = TypeVar("T")

PAUSE_BETWEEN_LOOKS = 0.02


def wait_until(condition: Callable[[], T], timeout: float = 10) -> T:
    """Return the condition's value as soon as it is true. Fail when it stays false, saying what was waited for."""
    __tracebackhide__ = True
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        if time.monotonic() > deadline:
            pytest.fail(f"Waited {timeout:g} s; still {value!r}: {_source_of(condition)}")
        time.sleep(PAUSE_BETWEEN_LOOKS)
    return value


def _source_of(condition: Callable[[], object]) -> str:
    try:
        return inspect.getsource(condition).strip()
    except (OSError, TypeError):
        return repr(condition)
