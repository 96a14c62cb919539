"""The common part of all programs that hand mails over.

`python -m bench.programs.… COUNT` prints the seconds of each call.

Only the standard library is imported, since programs of other virtual environments use this module
too.
"""

import json
import sys
import time
from collections.abc import Callable
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


def _timed(hand_over: Callable[[T], object], mail: T) -> float:
    started = time.perf_counter()
    hand_over(mail)
    return time.perf_counter() - started
