"""Outcomes: the end of one try to hand a delivery to a relay."""

from dataclasses import dataclass
from enum import StrEnum


class Phase(StrEnum):
    """The command that a try came to.

    Before DOT, the relay can't have the whole mail. At DOT, it may have it.
    """

    CONNECT = "connect"
    MAIL = "mail"
    RCPT = "rcpt"
    DATA = "data"
    DOT = "dot"


class Verdict(StrEnum):
    """The meaning of an outcome."""

    SENT = "sent"  #: the relay took it
    DEFERRED = "deferred"  #: it asked to try this mail again later
    REFUSED = "refused"  #: it will never take this mail
    #: It could not be talked to: no fault of the mail, which costs no attempt.
    UNREACHED = "unreached"
    DOUBTFUL = "doubtful"  #: all bytes were sent, no reply came


@dataclass(frozen=True, slots=True)
class Outcome:
    """The end of one try, in the relay's own words where it said any."""

    verdict: Verdict
    reply: str
    phase: Phase = Phase.DOT
    retry_after: float | None = None  #: seconds it asked us to wait
    advice: str = ""  #: the remedy, where our own configuration is at fault
    #: The relay fell silent at this mail: either of them may be at fault.
    is_silence: bool = False
