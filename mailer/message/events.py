"""Events: changes of deliveries, for those who listen."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from mailer.message import Lane, Status


class EventKind(StrEnum):
    """The changes that are told."""

    QUEUED = "queued"  #: the mail was stored
    SENT = "sent"  #: a relay took it
    DEFERRED = "deferred"  #: it could not be sent, and is tried again later
    FAILED = "failed"  #: it is given up
    DOUBTFUL = "doubtful"  #: nobody knows whether the relay took it
    EXPIRED = "expired"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """A change of one delivery: of one recipient's copy of a mail."""

    kind: EventKind
    at: datetime
    mail_id: str
    delivery_id: int
    message_id: str
    recipient: str
    status: Status  #: the state it has come to
    lane: Lane
    attempts: int
    tags: tuple[str, ...] = ()
    metadata: tuple[tuple[str, str], ...] = ()
    reply: str | None = None  #: the words of the relay, or ours if none was asked
    relay: str | None = None
