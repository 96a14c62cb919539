"""What a mail is: values without I/O.

A `Message` is what is said. A `Delivery` is one envelope: one recipient of one message, with a `Status` of its own.
An `Outcome` is what one try to hand it to a relay came to.
"""

import mimetypes
import re
import secrets
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import IntEnum, StrEnum
from functools import lru_cache
from itertools import islice
from typing import Any, Self

from email_validator import EmailNotValidError, validate_email

from mailer.errors import InvalidAddress, InvalidAttachment, InvalidHeader, InvalidMail, OverLimit

# --- states -----------------------------------------------------------------------------------------------------------


class Status(StrEnum):
    """Where a delivery is. The comment says who moves it on."""

    QUEUED = "queued"  #: a worker claims it when it is due; the sweep expires it; a person cancels it
    CLAIMED = "claimed"  #: its worker marks or releases it; the sweep, when the worker's lease is over
    TRANSMITTING = "transmitting"  #: its worker records the outcome; the sweep calls it doubtful when the lease is over
    SENT = "sent"  #: final; a bounce or a complaint may still come back
    FAILED = "failed"  #: final; a person may requeue it
    DOUBTFUL = "doubtful"  #: the sweep resends it once, if the mail wants that; else a person decides
    CANCELLED = "cancelled"  #: final
    EXPIRED = "expired"  #: final
    SUPPRESSED = "suppressed"  #: final
    BOUNCED = "bounced"  #: final
    COMPLAINED = "complained"  #: final

    @property
    def is_final(self) -> bool:
        return self in FINAL


FINAL = frozenset(
    {Status.SENT, Status.FAILED, Status.CANCELLED, Status.EXPIRED, Status.SUPPRESSED, Status.BOUNCED, Status.COMPLAINED}
)

#: The state chart. docs/states.md draws it, the CHECK in the schema knows its states, the tests try every pair.
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
    """Urgent mail does not wait for bulk mail: a slice is filled in this order."""

    CRITICAL = 0
    NORMAL = 1
    BULK = 2


class OnDoubt(StrEnum):
    """What happens to a mail whose last byte was sent and whose reply never came."""

    RESEND = "resend"  #: once more, later, with the same Message-ID
    HOLD = "hold"  #: a person decides


# --- addresses --------------------------------------------------------------------------------------------------------

_PRIVATE_DOMAIN = re.compile(r"[@.](?:localhost|local|test)\Z", re.IGNORECASE)
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"')


@dataclass(frozen=True, slots=True)
class Address:
    """A mailbox, checked: `email` has its domain in ASCII, `name` may be empty."""

    email: str
    name: str = ""

    @classmethod
    def parse(cls, given: "AddressLike", *, field: str) -> Self:
        """Takes "ada@example.com", "Ada <ada@example.com>" or ("Ada", "ada@example.com"); `field` names it in the error."""
        match given:
            case Address(email, name):
                pass
            case str():
                name, email = _split(given)
            case (None | str(), str()) if isinstance(given, tuple):
                name, email = given[0] or "", given[1]
            case _:
                raise _no_address(given, field)
        for part in (name, email):
            check_text(part, field=field, error=InvalidAddress)
        return cls(_checked(email, field), name)

    @classmethod
    def stored(cls, text: str) -> Self:
        """Read back what `str()` wrote: nothing is checked a second time."""
        name, email = _split(text)
        return cls(email, name)

    @property
    def domain(self) -> str:
        return self.email.rpartition("@")[2]

    def __str__(self) -> str:
        if not self.name:
            return self.email
        escaped = self.name.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{escaped}" <{self.email}>'


AddressLike = str | tuple[str | None, str] | Address


def _split(given: str) -> tuple[str, str]:
    """The name and the address in "Ada <ada@example.com>"; a text without that form is all address."""
    given = given.strip(" ")
    before, bracket, inside = given.rpartition("<")
    if not bracket or not inside.endswith(">"):
        return "", given
    name, email = before.strip(" "), inside[:-1].strip(" ")
    if quoted := _QUOTED.fullmatch(name):
        return re.sub(r"\\(.)", r"\1", quoted[1]), email
    if set("<>") & set(name) or ("@" in name and set(",;") & set(name)):
        return "", given  # several mailboxes: the first must not become the name of the last
    return name, email


def _checked(email: str, field: str) -> str:
    try:
        return _normalised(email)
    except EmailNotValidError as error:
        hint = " Give several recipients as a list." if "," in email or ";" in email else ""
        raise InvalidAddress(f"{field}: {_shown(email)} is not a usable address: {error}{hint}") from None


@lru_cache(maxsize=4096)
def _normalised(email: str) -> str:
    # Whether the domain has a mail server is the relay's business: ada@office.local is fine inside a network, and only there.
    suffix = ".example.com" if _PRIVATE_DOMAIN.search(email) else ""
    valid = validate_email(email + suffix, check_deliverability=False, strict=True)
    return f"{valid.local_part}@{valid.ascii_domain.removesuffix(suffix)}"


def parse_addresses(
    given: AddressLike | Iterable[AddressLike] | None, *, field: str, most: int | None = None
) -> tuple[Address, ...]:
    """One address or many; no more are looked at than there may be."""
    if given is None:
        return ()
    # One mailbox, as in Flask-Mail: ("Ada", "ada@example.com"). Two are ("ada@example.com", "bob@example.com").
    if isinstance(given, tuple) and len(given) == 2 and "@" not in str(given[0] or ""):
        return (Address.parse(given, field=field),)  # type: ignore[arg-type]  # parse() refuses what is no mailbox
    if isinstance(given, (str, Address)):
        return (Address.parse(given, field=field),)
    if isinstance(given, bytes) or not isinstance(given, Iterable):
        raise _no_address(given, field)
    several = given if most is None else islice(given, most + 1)
    parsed = tuple(Address.parse(one, field=field) for one in several)  # type: ignore[arg-type]  # the same
    if most is not None and len(parsed) > most:
        raise OverLimit(f"{field}: more than {most} addresses, which is what MAILER_MAX_RECIPIENTS allows in one mail.")
    return parsed


def _no_address(given: object, field: str) -> InvalidAddress:
    return InvalidAddress(f"{field}: {given!r} is no address: give 'ada@example.com' or 'Ada <ada@example.com>'.")


# --- text and headers -------------------------------------------------------------------------------------------------

_NOT_IN_A_LINE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_LONGEST_SHOWN = 200
_HEADER_NAME = re.compile(r"[A-Za-z0-9-]{1,64}")
_OURS = frozenset(
    "from sender to cc bcc reply-to subject date message-id mime-version return-path received dkim-signature".split()
)


def check_text(value: str, *, field: str, error: type[InvalidMail] = InvalidHeader) -> str:
    """A text for one line of a header, or for a command of SMTP."""
    _check_is_text(value, field, error)
    if found := _NOT_IN_A_LINE.search(value):
        raise error(f"{field}: {_shown(value)} contains {found[0]!r}: remove line breaks and other control characters.")
    return value


def _shown(value: object) -> str:
    """For an error, which nobody reads if it is a megabyte long."""
    return repr(value) if not isinstance(value, str) or len(value) <= _LONGEST_SHOWN else f"{value[:_LONGEST_SHOWN]!r}…"


def check_body(value: str, *, field: str, error: type[InvalidMail] = InvalidMail) -> str:
    """A text of many lines."""
    _check_is_text(value, field, error)
    at = value.find("\x00")
    try:
        value.encode()  # halves of characters fail; far faster than a regular expression
    except UnicodeEncodeError as half:
        at = half.start
    if at >= 0:
        raise error(f"{field}: the character {value[at]!r} at {at} can't be in a mail: remove it.")
    return value


def _check_is_text(value: object, field: str, error: type[InvalidMail]) -> None:
    if not isinstance(value, str):
        raise error(f"{field}: give a str, not {type(value).__name__}.")


def check_headers(headers: Mapping[str, str] | None) -> tuple[tuple[str, str], ...]:
    if not isinstance(headers or {}, Mapping):
        raise InvalidHeader(f"headers: {headers!r}: give a dict, such as {{'List-Id': 'news.example.com'}}.")
    return tuple(_check_header(name, value) for name, value in (headers or {}).items())


def _check_header(name: str, value: str) -> tuple[str, str]:
    if not isinstance(name, str) or not _HEADER_NAME.fullmatch(name):
        raise InvalidHeader(f"headers: {_shown(name)} is no header name: use letters, digits and hyphens, 64 at most.")
    if name.lower() in _OURS or name.lower().startswith(("content-", "resent-")):
        raise InvalidHeader(f"headers: {name!r} is written by Mailer: use the argument of that name, if there is one.")
    return name, check_text(value, field=f"headers[{name!r}]")


# --- messages ---------------------------------------------------------------------------------------------------------

# A multipart or a whole message is no file: base64, in which files travel, is forbidden for them.
_WORD = r"[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}"
_FILE_TYPE = re.compile(
    rf'(?!multipart/|message/){_WORD}/{_WORD}(?:; ?{_WORD}=(?:{_WORD}|"[ !#-\[\]-~]{{0,126}}")){{0,4}}', re.IGNORECASE
)
_WRITTEN_FOR_PARTS = frozenset({"content-type", "content-transfer-encoding", "content-disposition", "content-id", "mime-version"})
_CONTENT_ID = re.compile(r"[A-Za-z0-9._@+-]{1,120}")


@dataclass(frozen=True, slots=True)
class Attachment:
    """A file that goes with a mail. With a `content_id` it is an inline image: `<img src="cid:logo">`."""

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
            raise InvalidAttachment(f"{where}: {self.content_type!r} is no type for a file: give one such as 'application/pdf'.")
        if self.content_id is not None and not (isinstance(self.content_id, str) and _CONTENT_ID.fullmatch(self.content_id)):
            raise InvalidAttachment(f"{where}: content_id {self.content_id!r}: use letters, digits and . _ @ + - only.")
        if not self.disposition:
            object.__setattr__(self, "disposition", "inline" if self.content_id else "attachment")
        if self.disposition not in ("inline", "attachment"):
            raise InvalidAttachment(f"{where}: disposition {self.disposition!r}: use 'attachment' or 'inline'.")
        _check_part_headers(where, self.headers)

    @classmethod
    def stored(cls, **fields: Any) -> Self:
        """Read back what was checked when it came: a rule that is newer than the mail must not stop it."""
        attachment = object.__new__(cls)
        for name, value in fields.items():
            object.__setattr__(attachment, name, value)
        return attachment

    def with_ascii_filename(self) -> "Attachment":
        """Accents off, other scripts away, as Flask-Mail does it for MAIL_ASCII_ATTACHMENTS."""
        plain = unicodedata.normalize("NFKD", self.filename or "").encode("ascii", "ignore").decode()
        return replace(self, filename=" ".join(plain.split()) if self.filename is not None else None)


def is_file_type(given: object) -> bool:
    """A content type that a part of a mail can have, parameters included."""
    return isinstance(given, str) and _FILE_TYPE.fullmatch(given) is not None


def _guessed_type(filename: str | None) -> str:
    kind, compression = mimetypes.guess_type(filename or "")
    return kind if kind and not compression and is_file_type(kind) else "application/octet-stream"


def _check_part_headers(where: str, headers: object) -> None:
    pairs = isinstance(headers, tuple) and all(isinstance(pair, tuple) and len(pair) == 2 for pair in headers)
    if not pairs:
        raise InvalidAttachment(f"{where}: headers {headers!r}: give pairs, such as (('Content-Description', 'The invoice'),).")
    for name, value in headers:  # type: ignore[attr-defined]  # pairs, as just seen
        if not isinstance(name, str) or not _HEADER_NAME.fullmatch(name) or name.lower() in _WRITTEN_FOR_PARTS:
            raise InvalidAttachment(f"{where}: the header {name!r} is written by Mailer or no header name: leave it out.")
        check_text(value, field=f"{where}: {name}", error=InvalidAttachment)


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """What is said, to whoever it goes. Written once."""

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
    mail_options: tuple[str, ...] = ()
    rcpt_options: tuple[str, ...] = ()
    sensitive: bool = False  #: nothing of what it says is kept once it has arrived, or can't

    @property
    def dated(self) -> float:
        return self.created_at if self.date is None else self.date

    @property
    def bounce_address(self) -> str:
        return self.envelope_from or self.sender.email


@dataclass(frozen=True, slots=True)
class Key:
    """What a mail is queued under no more than once, and a fingerprint of what it says."""

    name: str
    fingerprint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """How a message is to travel: the same for each of its recipients."""

    recipients: tuple[str, ...]
    key: Key | None = None
    lane: Lane = Lane.NORMAL
    due_at: float
    expires_at: float | None = None
    on_doubt: OnDoubt = OnDoubt.RESEND


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """One recipient of one message, in the hands of the worker that claimed it."""

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


def could_be_id(given: object) -> bool:
    """Whether it is worth asking a database for: what a visitor wrote into a URL may be anything."""
    return isinstance(given, str) and len(given) <= 64 and given.isascii() and given.isalnum()


def new_id(now: float) -> str:
    """32 hex digits that sort by time, so that new rows land side by side in their index."""
    return f"{id_at(now)}{secrets.token_hex(10)}"


def id_at(moment: float) -> str:
    """What the ids begin with that are made then: those made before are less, those made later are greater."""
    return f"{int(moment * 1000):012x}"


def new_message_id(mail_id: str, sender: Address) -> str:
    return f"<{mail_id}@{sender.domain}>"


# --- outcomes ---------------------------------------------------------------------------------------------------------


class Phase(StrEnum):
    """How far a try got. From DATA on the relay may have the whole mail; from DOT on it surely had it."""

    CONNECT = "connect"
    MAIL = "mail"
    RCPT = "rcpt"
    DATA = "data"
    DOT = "dot"


class Verdict(StrEnum):
    """What a try came to."""

    SENT = "sent"  #: the relay took it
    DEFERRED = "deferred"  #: it asked to try this mail again later
    REFUSED = "refused"  #: it will never take this mail
    UNREACHED = "unreached"  #: it could not be talked to: no fault of the mail, which costs no attempt
    DOUBTFUL = "doubtful"  #: all bytes were sent, no reply came


@dataclass(frozen=True, slots=True)
class Outcome:
    """The end of one try, in the relay's own words where it said any."""

    verdict: Verdict
    reply: str
    phase: Phase = Phase.DOT
    retry_after: float | None = None  #: seconds it asked us to wait
    advice: str = ""  #: what a person can do about it, where it is our own configuration that stops us
    is_silence: bool = False  #: the relay did not answer this mail: one of them can't bear the other


@dataclass(frozen=True, slots=True, kw_only=True)
class Pause:
    """Something is left alone for a while: a relay that could not be reached."""

    until: float | None  #: None: until a person says so
    failures: int  #: how often it failed in a row
    reason: str
    since: datetime


@dataclass(frozen=True, slots=True)
class Keyed:
    """The mail that was queued first under a key."""

    id: str
    message_id: str
    fingerprint: str | None  #: of what it said, unless that is erased


# --- answers to "what became of it?" ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Receipt:
    """What `send_email()` returns: the mail is stored, and `mailer.status(receipt.id)` tells what became of it."""

    id: str
    message_id: str
    recipients: tuple[str, ...]

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
    """How one recipient's copy is doing."""

    id: int
    recipient: str
    status: Status
    lane: Lane
    attempts: int
    due_at: datetime | None
    finished_at: datetime | None
    reply: str | None
    relay: str | None
    history: tuple[Attempt, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class MailStatus:
    """How a mail is doing, recipient by recipient."""

    id: str
    message_id: str
    subject: str
    created_at: datetime
    sensitive: bool = False
    erased_at: datetime | None = None  #: since then, what it said is gone
    deliveries: tuple[DeliveryStatus, ...]

    @property
    def is_finished(self) -> bool:
        return all(delivery.status.is_final for delivery in self.deliveries)

    def __iter__(self) -> Iterator[DeliveryStatus]:
        return iter(self.deliveries)
