"""Mails, deliveries and their states: values without I/O.

A `Message` is the content of a mail. A `Delivery` is one recipient's copy of it, with a `Status` of
its own. An `Outcome` is the end of one try to hand it to a relay.
"""

import secrets
from dataclasses import dataclass, field
from datetime import datetime

from mailer.message.addresses import Address, AddressLike, parse_addresses
from mailer.message.attachments import Attachment, is_file_type
from mailer.message.headers import MACHINE_HEADERS, check_headers, unset_headers
from mailer.message.outcomes import Outcome, Phase, Verdict
from mailer.message.states import FINAL, IN_HAND, TRANSITIONS, Lane, OnDoubt, Status
from mailer.message.statuses import Attempt, DeliveryStatus, MailStatus, Receipt
from mailer.message.text import check_body, check_text, evaluate

__all__ = [
    "FINAL",
    "IN_HAND",
    "MACHINE_HEADERS",
    "TRANSITIONS",
    "Address",
    "AddressLike",
    "Attachment",
    "Attempt",
    "Delivery",
    "DeliveryStatus",
    "Envelope",
    "Key",
    "Keyed",
    "Lane",
    "MailStatus",
    "Message",
    "OnDoubt",
    "Outcome",
    "Pause",
    "Phase",
    "Receipt",
    "Status",
    "Verdict",
    "check_body",
    "check_headers",
    "check_text",
    "could_be_id",
    "evaluate",
    "id_at",
    "is_bulk_id",
    "is_file_type",
    "new_bulk_id",
    "new_id",
    "new_message_id",
    "own_message_id",
    "parse_addresses",
    "unset_headers",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """The content of a mail, the same for all recipients. It never changes."""

    id: str
    message_id: str
    created_at: float
    sender: Address
    subject: str = field(repr=False)
    text: str | None = field(repr=False)
    html: str | None = field(repr=False)
    to: tuple[Address, ...]
    cc: tuple[Address, ...] = ()
    reply_to: tuple[Address, ...] = ()
    envelope_from: str | None = None
    date: float | None = None  #: of the Date header, if it is not that of the queueing
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    #: More (type, content) beside text and html: a calendar, AMP.
    alternatives: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    attachments: tuple[Attachment, ...] = ()
    tags: tuple[str, ...] = ()
    #: Pairs of the application's own, which events give back.
    metadata: tuple[tuple[str, str], ...] = ()
    mail_options: tuple[str, ...] = ()
    rcpt_options: tuple[str, ...] = ()
    sensitive: bool = False  #: its content is erased once it has arrived, or can't

    @property
    def dated(self) -> float:
        """Return the time of the Date header."""
        return self.created_at if self.date is None else self.date

    @property
    def bounce_address(self) -> str:
        """Return the envelope sender, to which servers send a bounce."""
        return self.envelope_from or self.sender.email


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """A hash of the content and the recipients of a mail."""

    digest: str
    key_id: str | None = None  #: the id of the secret key that it was made with, if it is keyed


@dataclass(frozen=True, slots=True)
class Key:
    """An idempotency key, with a fingerprint of its mail."""

    name: str
    fingerprint: Fingerprint


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """The transport options of a message, the same for each of its recipients."""

    recipients: tuple[str, ...]
    key: Key | None = None
    lane: Lane = Lane.NORMAL
    due_at: float
    expires_at: float | None = None
    on_doubt: OnDoubt = OnDoubt.RESEND
    tenant: str = ""
    size: int | None = None  #: bytes of the message, as MAILER_MAX_SIZE counts them


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """A recipient's copy of a message, in the hands of the worker that claimed it."""

    id: int
    mail_id: str
    recipient: str
    domain: str
    lane: Lane
    attempts: int
    doubts: int
    queued_at: float  #: since when it is to be sent: its age counts from here
    on_doubt: OnDoubt
    token: str
    #: After it was to be sent: at a limit, for a relay, or for another try.
    has_waited: bool = False
    expires_at: float | None = None
    size: int | None = None  #: bytes of the message; None if an older version queued it

    @property
    def is_bulk(self) -> bool:
        """Return whether the delivery belongs to a bulk send, and has a content of its own."""
        return is_bulk_id(self.mail_id)

    @property
    def content_key(self) -> str:
        """Return the name of the delivery's content, which the deliveries of a mail share."""
        return f"{self.mail_id}.{self.id}" if self.is_bulk else self.mail_id

    def has_expired(self, now: float) -> bool:
        """Return whether the delivery is too late to be of use."""
        return self.expires_at is not None and self.expires_at <= now


def could_be_id(given: object) -> bool:
    """Return whether a value may be an id: a visitor may write anything into a URL."""
    return isinstance(given, str) and len(given) <= 64 and given.isascii() and given.isalnum()


def new_id(now: float) -> str:
    """Return 32 hex digits that sort by time: new rows land side by side in their index."""
    return f"{id_at(now)}{secrets.token_hex(10)}"


def new_bulk_id(now: float) -> str:
    """Return the id of a new bulk send, which is that of its mail."""
    return f"{new_id(now)}{_BULK_ENDING}"


def is_bulk_id(mail_id: str) -> bool:
    """Return whether a mail belongs to a bulk send."""
    return mail_id.endswith(_BULK_ENDING)


# A worker sees at the claim, without another query, that each delivery has its own content. No hex
# digit, so that no other id ends so.
_BULK_ENDING = "z"


def id_at(moment: float) -> str:
    """Return the beginning of ids that are made at a moment.

    Earlier ids are less, later ones greater.
    """
    return f"{int(moment * 1000):012x}"


def own_message_id(message_id: str, delivery_id: int) -> str:
    """Return the Message-ID of one recipient's mail of a bulk send, made of the common one."""
    left, _at, domain = message_id.rpartition("@")
    return f"{left}.{delivery_id}@{domain}"


def new_message_id(mail_id: str, sender: Address) -> str:
    """Return the Message-ID of a new mail, in the domain of its sender."""
    return f"<{mail_id}@{sender.domain}>"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pause:
    """A pause of a relay, of a lane, or of everything."""

    until: float | None  #: None: until a person says so
    failures: int  #: how often it failed in a row
    reason: str
    since: datetime


@dataclass(frozen=True, slots=True)
class Keyed:
    """The mail that was queued first under a key."""

    id: str
    message_id: str
    fingerprint: Fingerprint | None  #: None if the mail was erased without a keyed one
