"""The clock of the system."""

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
