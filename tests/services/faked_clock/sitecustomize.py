"""Python imports it at its start, where `tests.services.clocks` says so.

Python sleeps until a moment of the monotonic clock, which libfaketime 0.9 takes for an invalid one
even if it is to leave that clock alone. So these processes sleep in another way.
"""

import select
import time
from typing import Any


def _sleep(seconds: Any, /) -> None:
    select.select([], [], [], seconds)


time.sleep = _sleep
