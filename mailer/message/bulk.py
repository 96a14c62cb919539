"""Bulk sends: one mail for many recipients, each with a context of its own."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from mailer.message import Lane, Status
from mailer.message.calendar import Calendar

# One encoder for all recipients: to make one takes as long as to use it.
_encode = json.JSONEncoder(allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode


class BulkState(StrEnum):
    """The state of a bulk send.

    >>> from mailer import BulkState
    >>> BulkState.PAUSED == "paused", BulkState("finished").is_over
    (True, True)
    """

    IMPORTING = "importing"  #: its recipients are being stored; nothing is sent
    READY = "ready"  #: it waits until a person confirms it
    RUNNING = "running"  #: workers deliver it
    PAUSED = "paused"  #: until somebody resumes it
    FINISHED = "finished"  #: each delivery has reached a final state
    CANCELLED = "cancelled"  #: nothing more is sent

    @property
    def is_over(self) -> bool:
        """Return whether nothing more will be sent."""
        return self in (BulkState.FINISHED, BulkState.CANCELLED)


@dataclass(frozen=True, slots=True, kw_only=True)
class BulkProgress:
    """The progress of a bulk send, in numbers of recipients.

    >>> bulk = mailer.send_bulk("News", "mail/news", [("ada@example.com", {"name": "Ada"})])
    >>> progress = bulk.progress()
    >>> progress.accepted, progress.sent, progress.state.value
    (1, 1, 'finished')
    """

    state: BulkState
    #: why it is paused or cancelled, or waits: for `confirm()`, for its time, or for its hours
    reason: str | None = None
    resumes_at: datetime | None = None  #: when it goes on by itself, if it waits for a time
    imported: int  #: rows that were read
    accepted: int  #: recipients that were stored, each once
    duplicates: int  #: rows whose recipient was there already
    refused: int  #: rows that could not be used, see `errors()`
    held: int  #: recipients whose turn has not come yet
    queued: int  #: recipients whose mail is queued, or in the hands of a worker
    doubtful: int
    sent: int
    failed: int
    cancelled: int
    expired: int
    suppressed: int
    rate: float | None = None  #: mails a second since it began
    ends_at: datetime | None = None  #: an estimate, at that rate

    @property
    def unfinished(self) -> int:
        """Return the number of recipients whose mail has not reached a final state."""
        return self.held + self.queued + self.doubtful


@dataclass(frozen=True, slots=True)
class BulkError:
    """A row of the recipients that could not be used, or whose mail failed.

    >>> bulk = mailer.send_bulk("News", "mail/news", [("ada@example", {"name": "Ada"})])
    >>> [(error.row, error.address) for error in bulk.errors()]
    [(1, 'ada@example')]
    """

    row: int  #: its place among the recipients, counted from 1
    address: str
    reason: str


@dataclass(frozen=True, slots=True)
class BulkRecipient:
    """A recipient of a bulk send.

    >>> bulk = mailer.send_bulk("News", "mail/news", [("ada@example.com", {"name": "Ada"})])
    >>> [(one.row, one.address, one.status.value) for one in bulk.recipients(state="sent")]
    [(1, 'ada@example.com', 'sent')]
    """

    delivery_id: int
    row: int
    address: str
    status: Status
    reply: str | None  #: the words of the relay at the last try


@dataclass(frozen=True, slots=True, kw_only=True)
class BulkSample:
    """A mail of a rehearsal.

    >>> readers = [("ada@example.com", {"name": "Ada"})]
    >>> [sample] = mailer.send_bulk("News", "mail/news", readers, dry_run=True).samples
    >>> sample.row, sample.address, sample.subject
    (1, 'ada@example.com', 'News')
    """

    row: int
    address: str
    subject: str
    text: str | None = field(repr=False)
    html: str | None = field(repr=False)
    size: int  #: bytes, as the relay gets it, without a DKIM signature


@dataclass(frozen=True, slots=True, kw_only=True)
class Rehearsal:
    """The result of a rehearsal: what a bulk send would do. Nothing was stored or sent.

    >>> readers = [("ada@example.com", {"name": "Ada"}), ("bob@example.com", {})]
    >>> rehearsal = mailer.send_bulk("News", "mail/news", readers, dry_run=True)
    >>> rehearsal.accepted, rehearsal.failed
    (2, 1)
    >>> for error in rehearsal.errors:
    ...     print(error.row, error.address, error.reason)
    2 bob@example.com template 'mail/news.txt': 'name' is undefined...
    """

    imported: int  #: rows that were read
    accepted: int  #: recipients, each once
    duplicates: int  #: rows whose recipient was there already
    refused: int  #: rows that could not be used
    failed: int  #: accepted recipients whose mail could not be rendered
    errors: tuple[BulkError, ...]  #: the first hundred refused rows and failed mails
    samples: tuple[BulkSample, ...]  #: the first mail, one from the middle, the largest
    median_size: int  #: bytes of a mail, to three digits
    largest_size: int  #: bytes
    total_size: int  #: bytes of all mails
    #: The time that the tightest rate takes, or one process to render all mails, if that is longer.
    seconds: float
    limit: str  #: what makes it so long, in words


@dataclass(frozen=True, slots=True, kw_only=True)
class BulkSend:
    """A bulk send, as it is stored."""

    id: str
    state: BulkState
    reason: str | None
    is_complete: bool  #: all recipients are stored
    rows_read: int
    rows_digest: str
    lane: Lane
    tenant: str
    max_failed_share: float
    accepted: int
    released: int  #: recipients that were released or cancelled, less those held again
    released_to: int  #: no delivery up to this id is held
    importer_until: float | None
    starts_at: float
    expires_at: float | None
    calendar: Calendar | None
    started_at: float | None
    finished_at: float | None

    def has_expired(self, now: float) -> bool:
        """Return whether its mail is too late to be of use."""
        return self.expires_at is not None and self.expires_at <= now


@dataclass(frozen=True, slots=True)
class BulkZone:
    """A time zone of the recipients of a bulk send with a calendar."""

    time_zone: str
    has_held: bool  #: deliveries may be held
    has_queued: bool  #: deliveries may be queued


@dataclass(frozen=True, slots=True)
class Wait:
    """The reason why a bulk send waits, and the time until which it does."""

    reason: str
    until: float | None = None


def wait_of(
    now: float,
    starts_at: float,
    expires_at: float | None,
    calendar: Calendar | None,
    zones: Iterable[BulkZone],
) -> Wait | None:
    """Return why a running bulk send releases no mail now. Return None if it may."""
    if now < starts_at:
        return Wait("it waits for its time", starts_at)
    if calendar is None or (expires_at is not None and expires_at <= now):
        return None
    windows = [calendar.window(now, zone.time_zone) for zone in zones if zone.has_held]
    if not windows or any(window.is_open for window in windows):
        return None
    opens = [window.until for window in windows if window.until is not None]
    if not opens:
        return Wait("; ".join(sorted({window.problem for window in windows})))
    return Wait(f"it waits for its hours: {calendar.days} {calendar.hours}", min(opens))


@dataclass(frozen=True, slots=True)
class OwnPart:
    """The part of a mail that belongs to one recipient of a bulk send."""

    context: dict[str, Any] = field(repr=False)
    name: str = ""  #: beside the address in `To`
    locale: str | None = None
    headers: tuple[tuple[str, str | None], ...] = ()  #: None: the mail has no such header

    def to_json(self) -> str:
        """Return the part as JSON, without the fields that are empty."""
        own = {
            "context": self.context,
            "name": self.name,
            "locale": self.locale,
            "headers": self.headers,
        }
        filled = {field: value for field, value in own.items() if value}
        return _encode(filled)

    @classmethod
    def from_json(cls, text: str) -> "OwnPart":
        """Return the part that `to_json` wrote."""
        own = json.loads(text)
        headers = tuple((name, value) for name, value in own.pop("headers", ()))
        return cls(own.pop("context", {}), headers=headers, **own)
