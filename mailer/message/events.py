"""Events: changes of deliveries, for the receivers of signals."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from mailer.message import Lane, Status
from mailer.message.bulk import BulkProgress


class EventKind(StrEnum):
    """The kinds of events: one for each signal.

    >>> from mailer.signals import EventKind
    >>> EventKind.SENT == "sent"
    True
    """

    QUEUED = "queued"  #: the mail was stored
    SENT = "sent"  #: a relay took it, or a person said so
    DEFERRED = "deferred"  #: it could not be sent, and is tried again later
    FAILED = "failed"  #: it is given up
    DOUBTFUL = "doubtful"  #: nobody knows whether the relay took it
    EXPIRED = "expired"  #: it was not sent before `expires_at`
    CANCELLED = "cancelled"  #: a person or a program cancelled it
    BULK_FINISHED = "bulk_finished"  #: a bulk send is over


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """A change of one delivery: of one recipient's copy of a mail.

    >>> from mailer.signals import mail_sent
    >>> @mail_sent.connect
    ... def note_sent(app, event):
    ...     print(event.recipient, event.status, dict(event.metadata))
    >>> receipt = mailer.send_email(
    ...     "ada@example.com", "Your order", "mail/order", number=42, metadata={"order": "42"}
    ... )
    ada@example.com sent {'order': '42'}
    """

    kind: EventKind
    at: datetime  #: the time of the change
    mail_id: str
    delivery_id: int
    message_id: str
    recipient: str
    status: Status  #: the new state of the delivery
    lane: Lane
    tenant: str | None = None  #: whose mail it is
    attempts: int
    tags: tuple[str, ...] = ()
    metadata: tuple[tuple[str, str], ...] = ()  #: as pairs, for `dict(event.metadata)`
    reply: str | None = None  #: the words of the relay, or ours if none was asked
    relay: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BulkEvent:
    """The end of a bulk send.

    >>> from mailer.signals import bulk_finished
    >>> @bulk_finished.connect
    ... def show_end(app, event):
    ...     print(event.progress.sent, "of", event.progress.accepted)
    >>> bulk = mailer.send_bulk("News", "mail/news", [("ada@example.com", {"name": "Ada"})])
    1 of 1
    """

    kind: EventKind
    at: datetime
    bulk_id: str
    progress: BulkProgress
    tags: tuple[str, ...] = ()


AnyEvent = Event | BulkEvent
