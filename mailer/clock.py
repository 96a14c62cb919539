"""The clock of the system, and that of an app."""

import random
import time


class SystemClock:
    """Implement the port `Clock`.

    The functions are looked up at each call: gevent and tests replace them after the import.
    """

    def time(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def random(self) -> float:
        return random.random()  # noqa: S311 -- it spreads load, and keeps no secret


class AppClock(SystemClock):
    """The clock of an app: that of the system, which a test can put forward."""

    def __init__(self) -> None:
        self.ahead: float = 0.0  #: in seconds

    def time(self) -> float:
        return time.time() + self.ahead

    def monotonic(self) -> float:
        return time.monotonic() + self.ahead
