"""A replacement for `time.sleep`, imported at start by processes of `tests.services.clocks`.

Python sleeps until a moment of the monotonic clock. libfaketime 0.9 rejects that moment as invalid
even if it is told to leave that clock alone, so these processes sleep in `select()`.
"""

import select
import time
from typing import Any


def _sleep(seconds: Any, /) -> None:
    select.select([], [], [], seconds)


time.sleep = _sleep
