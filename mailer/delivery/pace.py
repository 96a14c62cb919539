"""The experience of a process with a relay: its speed, and its silences."""

from dataclasses import dataclass

from mailer.message import Delivery, Outcome, Verdict
from mailer.policy import smoothed

_MAX_SILENCES = 2


@dataclass(slots=True)
class Pace:
    """The speed of a relay."""

    seconds_per_mail: float = 0.02

    def learn(self, seconds: float, mails: int) -> None:
        self.seconds_per_mail = smoothed(self.seconds_per_mail, seconds / mails)


class Silences:
    """The mails at which a relay fell silent, one after the other.

    One silence may be the fault of the mail. A relay that falls silent at one mail after the other
    would spend the attempts of all, or bring all into doubt.
    """

    def __init__(self) -> None:
        self.suspects: set[int] = set()  #: the ids of their deliveries

    def note(self, delivery: Delivery, outcome: Outcome) -> None:
        """Count a silence. Any other answer of the relay ends the series."""
        if outcome.is_silence:
            self.suspects.add(delivery.id)
        elif outcome.verdict is not Verdict.UNREACHED:
            self.suspects.clear()

    @property
    def are_the_relays_fault(self) -> bool:
        """Return whether there are too many of them to blame the mails."""
        return len(self.suspects) >= _MAX_SILENCES
