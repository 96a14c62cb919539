"""The part that all programs which hand mails over have in common.

`python -m bench.programs.… COUNT` prints how long each call took.

Only the standard library is imported: programs of other virtual environments use this module too.

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
    """Only the handing over is timed: the mail is ready by then."""
    times = [_timed(hand_over, prepare()) for _ in range(int(sys.argv[1]))]
    finish()
    json.dump(times, sys.stdout)


def _timed(hand_over: Callable[[T], object], mail: T) -> float:
    started = time.perf_counter()
    hand_over(mail)
    return time.perf_counter() - started
