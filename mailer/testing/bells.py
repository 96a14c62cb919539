"""The bell of an application under test, whose test plays the worker."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager

from mailer.intake import Intake
from mailer.message import Lane
from mailer.message.ports import Bell


class SilentBell:
    """A bell that nobody hears: mail waits until the test delivers it."""

    def ring(
        self,
        mails: Collection[str] = (),
        *,
        lanes: Collection[Lane] = (Lane.NORMAL,),
        urge: bool = False,
    ) -> bool:
        """Call nobody."""
        return True

    def answer(self, queue: str = "") -> None:
        """Do nothing: nobody was called."""


@contextmanager
def ring_instead(bell: Bell, intake: Intake) -> Iterator[None]:
    """Let the mail that comes in ring another bell."""
    before, intake.bell = intake.bell, bell
    try:
        yield
    finally:
        intake.bell = before
