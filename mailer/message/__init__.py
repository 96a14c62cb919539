"""Mails, deliveries and their states: values without I/O.

A `Message` is the content of a mail. A `Delivery` is one recipient's copy of it, with a `Status` of
its own. An `Outcome` is the end of one try to hand it to a relay.
"""

import mimetypes
import re
import secrets
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import IntEnum, StrEnum
from typing import Any, Self

from mailer.errors import InvalidAttachment, InvalidMail
from mailer.message.addresses import Address, AddressLike, parse_addresses
from mailer.message.text import HEADER_NAME, check_body, check_headers, check_text

__all__ = [
    "FINAL",
    "HELD",
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
    "id_at",
    "is_file_type",
    "new_id",
    "new_message_id",
    "parse_addresses",
]


# --- states -------------------------------------------------------------------------------------


class Status(StrEnum):
    """The state of a delivery. Each comment says who moves it on."""

    QUEUED = (
        "queued"  #: a worker claims it when it is due; the sweep expires it; a person cancels it
    )
    CLAIMED = (
        "claimed"  #: its worker marks or releases it; the sweep, when the worker's lease is over
    )
    TRANSMITTING = (
        "transmitting"  #: its worker records the outcome; after the lease the sweep doubts it
    )
    SENT = "sent"  #: final; a bounce or a complaint may still come back
    FAILED = "failed"  #: final; a person may requeue it
    DOUBTFUL = (
        "doubtful"  #: the sweep resends it once, if the mail wants that; else a person decides
    )
    CANCELLED = "cancelled"  #: final
    EXPIRED = "expired"  #: final
    SUPPRESSED = "suppressed"  #: final
    BOUNCED = "bounced"  #: final
    COMPLAINED = "complained"  #: final

    @property
    def is_final(self) -> bool:
        return self in FINAL


FINAL = frozenset(
    {
        Status.SENT,
        Status.FAILED,
        Status.CANCELLED,
        Status.EXPIRED,
        Status.SUPPRESSED,
        Status.BOUNCED,
        Status.COMPLAINED,
    }
)

#: The states of a delivery that a worker has in its hands.
HELD = frozenset({Status.CLAIMED, Status.TRANSMITTING})

#: The state chart. docs/states.md draws it, the CHECK in the schema knows its states, the tests try
#: every pair.
TRANSITIONS = frozenset(
    {
        (Status.QUEUED, Status.CLAIMED),
        (Status.QUEUED, Status.CANCELLED),
        (Status.QUEUED, Status.EXPIRED),
        (Status.QUEUED, Status.SUPPRESSED),
        (Status.CLAIMED, Status.TRANSMITTING),
        (Status.CLAIMED, Status.QUEUED),
        (Status.CLAIMED, Status.FAILED),
        (Status.TRANSMITTING, Status.SENT),
        (Status.TRANSMITTING, Status.QUEUED),
        (Status.TRANSMITTING, Status.FAILED),
        (Status.TRANSMITTING, Status.DOUBTFUL),
        (Status.DOUBTFUL, Status.SENT),
        (Status.DOUBTFUL, Status.QUEUED),
        (Status.DOUBTFUL, Status.FAILED),
        (Status.FAILED, Status.QUEUED),
        (Status.SENT, Status.BOUNCED),
        (Status.SENT, Status.COMPLAINED),
    }
)


class Lane(IntEnum):
    """Urgent mail does not wait for bulk mail: a batch is filled in this order."""

    CRITICAL = 0
    NORMAL = 1
    BULK = 2

    @classmethod
    def parse(cls, given: "Lane | str") -> "Lane":
        """Return the lane of a name."""
        try:
            return given if isinstance(given, cls) else cls[given.upper()]  # type: ignore[union-attr]
        except (KeyError, AttributeError):
            raise InvalidMail(f"lane: {given!r}: use 'critical', 'normal' or 'bulk'.") from None


class OnDoubt(StrEnum):
    """The fate of a mail whose last byte was sent and whose reply never came."""

    RESEND = "resend"  #: once more, later, with the same Message-ID
    HOLD = "hold"  #: a person decides


# --- messages -----------------------------------------------------------------------------------

# A multipart or a whole message is no file: base64, in which files travel, is forbidden for them.
_WORD = r"[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}"
_FILE_TYPE = re.compile(
    rf"(?!multipart/|message/){_WORD}/{_WORD}"
    rf'(?:; ?{_WORD}=(?:{_WORD}|"[ !#-\[\]-~]{{0,126}}")){{0,4}}',
    re.IGNORECASE,
)
_WRITTEN_FOR_PARTS = frozenset(
    {
        "content-type",
        "content-transfer-encoding",
        "content-disposition",
        "content-id",
        "mime-version",
    }
)
_CONTENT_ID = re.compile(r"[A-Za-z0-9._@+-]{1,120}")


@dataclass(frozen=True, slots=True)
class Attachment:
    """A file that goes with a mail.

    With a `content_id` it is an inline image: `<img src="cid:logo">`.
    """

    filename: str | None
    data: bytes = field(repr=False)
    content_type: str = ""  #: guessed from the name, if empty
    content_id: str | None = None
    disposition: str = ""  #: "inline" with a content_id, else "attachment", if empty
    headers: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        where = f"attachment {self.filename!r}"
        if not isinstance(self.data, bytes):
            raise InvalidAttachment(f"{where}: its data is {type(self.data).__name__}: give bytes.")
        if self.filename is not None:
            check_text(self.filename, field=f"{where}: filename", error=InvalidAttachment)
        if not self.content_type:
            object.__setattr__(self, "content_type", _guessed_type(self.filename))
        if not is_file_type(self.content_type):
            raise InvalidAttachment(
                f"{where}: {self.content_type!r} is no type for a file: give one such as"
                " 'application/pdf'."
            )
        if self.content_id is not None and not (
            isinstance(self.content_id, str) and _CONTENT_ID.fullmatch(self.content_id)
        ):
            raise InvalidAttachment(
                f"{where}: content_id {self.content_id!r}: use letters, digits and . _ @ + - only."
            )
        if not self.disposition:
            object.__setattr__(self, "disposition", "inline" if self.content_id else "attachment")
        if self.disposition not in ("inline", "attachment"):
            raise InvalidAttachment(
                f"{where}: disposition {self.disposition!r}: use 'attachment' or 'inline'."
            )
        _check_part_headers(where, self.headers)

    @classmethod
    def stored(cls, **fields: Any) -> Self:
        """Return a stored attachment. It was checked at intake: a newer rule must not stop it."""
        attachment = object.__new__(cls)
        for name, value in fields.items():
            object.__setattr__(attachment, name, value)
        return attachment

    def with_ascii_filename(self) -> "Attachment":
        """Accents off, other scripts away, as Flask-Mail does it for MAIL_ASCII_ATTACHMENTS."""
        plain = (
            unicodedata.normalize("NFKD", self.filename or "").encode("ascii", "ignore").decode()
        )
        return replace(
            self, filename=" ".join(plain.split()) if self.filename is not None else None
        )


def is_file_type(given: object) -> bool:
    """Return whether a part of a mail can have this content type, parameters included."""
    return isinstance(given, str) and _FILE_TYPE.fullmatch(given) is not None


def _guessed_type(filename: str | None) -> str:
    kind, compression = mimetypes.guess_type(filename or "")
    return kind if kind and not compression and is_file_type(kind) else "application/octet-stream"


def _check_part_headers(where: str, headers: object) -> None:
    pairs = isinstance(headers, tuple) and all(
        isinstance(pair, tuple) and len(pair) == 2 for pair in headers
    )
    if not pairs:
        raise InvalidAttachment(
            f"{where}: headers {headers!r}: give pairs, such as (('Content-Description', 'The"
            " invoice'),)."
        )
    for name, value in headers:  # type: ignore[attr-defined]  # pairs, as just seen
        if (
            not isinstance(name, str)
            or not HEADER_NAME.fullmatch(name)
            or name.lower() in _WRITTEN_FOR_PARTS
        ):
            raise InvalidAttachment(
                f"{where}: the header {name!r} is written by Mailer or no header name: leave it"
                " out."
            )
        check_text(value, field=f"{where}: {name}", error=InvalidAttachment)


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
        return self.created_at if self.date is None else self.date

    @property
    def bounce_address(self) -> str:
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
    has_waited: bool = (
        False  #: after it was to be sent: at a limit, for a relay, or for another try
    )
    expires_at: float | None = None
    size: int | None = None  #: bytes of the message; None if an older version queued it

    def has_expired(self, now: float) -> bool:
        """Return whether the delivery is too late to be of use."""
        return self.expires_at is not None and self.expires_at <= now


def could_be_id(given: object) -> bool:
    """Return whether a value may be an id: a visitor may write anything into a URL."""
    return isinstance(given, str) and len(given) <= 64 and given.isascii() and given.isalnum()


def new_id(now: float) -> str:
    """32 hex digits that sort by time, so that new rows land side by side in their index."""
    return f"{id_at(now)}{secrets.token_hex(10)}"


def id_at(moment: float) -> str:
    """Return the beginning of ids that are made at a moment.

    Earlier ids are less, later ones greater.
    """
    return f"{int(moment * 1000):012x}"


def new_message_id(mail_id: str, sender: Address) -> str:
    return f"<{mail_id}@{sender.domain}>"


# --- outcomes -----------------------------------------------------------------------------------


class Phase(StrEnum):
    """The command that a try came to.

    From DATA on the relay may have the whole mail, from DOT on it surely had it.
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
    UNREACHED = (
        "unreached"  #: it could not be talked to: no fault of the mail, which costs no attempt
    )
    DOUBTFUL = "doubtful"  #: all bytes were sent, no reply came


@dataclass(frozen=True, slots=True)
class Outcome:
    """The end of one try, in the relay's own words where it said any."""

    verdict: Verdict
    reply: str
    phase: Phase = Phase.DOT
    retry_after: float | None = None  #: seconds it asked us to wait
    advice: str = ""  #: the remedy, where our own configuration is at fault
    is_silence: bool = (
        False  #: the relay did not answer this mail: one of them can't bear the other
    )


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


# --- statuses -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Receipt:
    """The receipt of a stored mail. `mailer.status(receipt)` returns the status of the mail."""

    id: str
    message_id: str
    recipients: tuple[str, ...]
    #: Whether this call queued the mail; False if an earlier call with the same idempotency key
    #: did.
    is_new: bool = field(default=True, compare=False)

    def __str__(self) -> str:
        return self.id


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """A try that did not end in `sent`."""

    at: datetime
    verdict: Verdict
    phase: Phase
    reply: str
    relay: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryStatus:
    """The status of one recipient's copy."""

    id: int
    recipient: str
    status: Status
    lane: Lane
    attempts: int
    due_at: datetime | None  #: when it is to be tried; while it is being tried, when that was
    finished_at: datetime | None
    reply: str | None
    relay: str | None
    history: tuple[Attempt, ...] = ()

    @property
    def is_being_tried(self) -> bool:
        """Return whether a worker has the delivery in its hands.

        Then `due_at` is the time of this try.
        """
        return self.status in HELD


@dataclass(frozen=True, slots=True, kw_only=True)
class MailStatus:
    """The status of a mail, recipient by recipient."""

    id: str
    message_id: str
    subject: str
    created_at: datetime
    sensitive: bool = False
    erased_at: datetime | None = None  #: when its content was erased
    tags: tuple[str, ...] = ()
    metadata: tuple[tuple[str, str], ...] = ()
    deliveries: tuple[DeliveryStatus, ...]

    @property
    def is_finished(self) -> bool:
        return all(delivery.status.is_final for delivery in self.deliveries)

    def __iter__(self) -> Iterator[DeliveryStatus]:
        return iter(self.deliveries)
