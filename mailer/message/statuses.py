"""Answers to the application: the receipt of a mail, and its status."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime

from mailer.message.outcomes import Phase, Verdict
from mailer.message.states import IN_HAND, Lane, Status


@dataclass(frozen=True, slots=True)
class Receipt:
    """The receipt of a mail that is on disk.

    `Mailer` takes a receipt wherever it takes the id of a mail. `str(receipt)` is the id.

    >>> receipt = mailer.send_email("ada@example.com", "Welcome", "mail/welcome", name="Ada")
    >>> receipt.recipients, receipt.is_new
    (('ada@example.com',), True)
    >>> mailer.status(receipt).subject
    'Welcome'
    """

    id: str  #: for `mailer.status()`, and for `flask mail status`
    message_id: str  #: of the header `Message-ID`
    recipients: tuple[str, ...]  #: each address once, of to, cc and bcc
    #: Whether this call queued the mail; False if an earlier call with the same idempotency key
    #: did.
    is_new: bool = field(default=True, compare=False)
    #: The earliest time of delivery, until which `cancel()` succeeds. None if an earlier call
    #: queued the mail: `mailer.status()` knows it.
    due_at: datetime | None = field(default=None, compare=False)

    def __str__(self) -> str:
        return self.id


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """A try that did not end in `sent`."""

    at: datetime
    verdict: Verdict
    phase: Phase  #: the command of SMTP that was reached
    reply: str  #: the words of the relay
    relay: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryStatus:
    """The status of a delivery: of one recipient's copy of a mail.

    >>> receipt = mailer.send_email("ada@example.com", "Welcome", "mail/welcome", name="Ada")
    >>> [delivery] = mailer.status(receipt)
    >>> print(delivery.recipient, delivery.status)
    ada@example.com sent
    """

    id: int
    recipient: str
    status: Status
    lane: Lane
    tenant: str | None  #: whose mail it is
    attempts: int
    due_at: datetime | None  #: the time of the next try, or of the try that is under way
    finished_at: datetime | None  #: the time at which `status` became final
    reply: str | None  #: the words of the relay at the last try
    relay: str | None  #: the name of the relay of the last try
    history: tuple[Attempt, ...] = ()  #: the tries before

    @property
    def is_being_tried(self) -> bool:
        """Return whether a worker has the delivery in its hands. Then `due_at` is this try's."""
        return self.status in IN_HAND


@dataclass(frozen=True, slots=True, kw_only=True)
class MailStatus:
    """The status of a mail, with that of each delivery. Iterate over it for the deliveries.

    >>> receipt = mailer.send_email("ada@example.com", "Welcome", "mail/welcome", name="Ada")
    >>> mail = mailer.status(receipt)
    >>> mail.subject, mail.is_finished
    ('Welcome', True)
    >>> for delivery in mail:
    ...     print(delivery.recipient, delivery.status)
    ada@example.com sent
    """

    id: str
    message_id: str
    subject: str
    created_at: datetime  #: the time at which the mail was queued
    sensitive: bool = False
    erased_at: datetime | None = None  #: the time at which its content was erased
    tags: tuple[str, ...] = ()
    metadata: tuple[tuple[str, str], ...] = ()  #: as pairs, for `dict(mail.metadata)`
    deliveries: tuple[DeliveryStatus, ...]  #: one for each recipient

    @property
    def is_finished(self) -> bool:
        """Return whether all deliveries are in a final state."""
        return all(delivery.status.is_final for delivery in self.deliveries)

    def __iter__(self) -> Iterator[DeliveryStatus]:
        return iter(self.deliveries)
