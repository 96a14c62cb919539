"""The ports: interfaces that lower modules call, so that a test can put something else there."""

from collections.abc import Sequence
from typing import Protocol

from mailer.message.events import Event, EventKind


class Bell(Protocol):
    """The doorbell of the workers. A ring may come late, twice or never: it only saves time."""

    def ring(self, *, urge: bool = False) -> bool:
        """Tell the workers that mail is due. Return False if no worker can hear it.

        A ring never raises and never waits for long. With `urge`, ring even if the last ring was
        not answered: it may have been lost.
        """

    def answer(self) -> None:
        """Note that a worker is about to look for mail, so that the next ring is sent."""


class Clock(Protocol):
    """Time, sleep and chance."""

    def time(self) -> float:
        """Return the seconds since the epoch."""

    def monotonic(self) -> float:
        """Return seconds that never run backwards."""

    def sleep(self, seconds: float) -> None:
        """Wait."""

    def random(self) -> float:
        """Return a number in [0, 1)."""


class Outlet(Protocol):
    """The receiver of events, after the commit."""

    def listens_to(self, kind: EventKind) -> bool:
        """Return whether anybody wants such events. If not, they are not even read."""

    def publish(self, events: Sequence[Event]) -> None:
        """Take events whose transaction is committed. Never raise, never wait."""
