"""The clock of the system."""

import random as chance
import time as system


class SystemClock:
    """Implement the port `Clock`."""

    time = staticmethod(system.time)
    monotonic = staticmethod(system.monotonic)
    sleep = staticmethod(system.sleep)
    random = staticmethod(chance.random)
