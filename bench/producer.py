"""The common part of all programs that hand mails over.

`python -m bench.programs.… COUNT` prints the seconds of each call, or if a single call hands over
all mails, when it began, its seconds and the peak of the memory.

Only the standard library is imported, since programs of other virtual environments use this module
too.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


def run(
    prepare: Callable[[], T],
    hand_over: Callable[[T], object],
    finish: Callable[[], object] = lambda: None,
) -> None:
    """Time the calls that hand mails over, each with a mail that is ready."""
    times = [_timed(hand_over, prepare()) for _ in range(int(sys.argv[1]))]
    finish()
    json.dump(times, sys.stdout)


def run_once(hand_over: Callable[[], object]) -> None:
    """Time one call that hands over all mails."""
    began = time.perf_counter()  # on Linux the same clock in all processes
    hand_over()
    seconds = time.perf_counter() - began
    json.dump({"began": began, "seconds": seconds, "peak": _peak()}, sys.stdout)


def _peak() -> int:
    """Return the peak of the resident memory in bytes.

    getrusage() would count the memory of the process that started this one, too.
    """
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def _timed(hand_over: Callable[[T], object], mail: T) -> float:
    started = time.perf_counter()
    hand_over(mail)
    return time.perf_counter() - started
