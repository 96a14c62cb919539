"""Waiting for a condition to become true, never for time to pass."""

import inspect
import time
from collections.abc import Callable
from typing import TypeVar

import pytest

T = TypeVar("T")

_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.01, 0.1


def wait_until(condition: Callable[[], T], timeout: float = 10) -> T:
    """Return the condition's value as soon as it is true.

    Fail after the time-out with the source of the condition.
    """
    __tracebackhide__ = True
    began = time.monotonic()
    while not (value := condition()):
        waited = time.monotonic() - began
        if waited > timeout:
            pytest.fail(f"Waited {timeout:g} s; still {value!r}: {_source_of(condition)}")
        # Leave the processor to the process that is awaited.
        time.sleep(min(_LONGEST_PAUSE, max(_SHORTEST_PAUSE, waited / 20)))
    return value


def _source_of(condition: Callable[[], object]) -> str:
    try:
        return inspect.getsource(condition).strip()
    except (OSError, TypeError):
        return repr(condition)
