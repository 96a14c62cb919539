"""Rehearsals of bulk sends: each mail is rendered, and nothing is stored or sent."""

import hashlib
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import replace

from mailer.content import SnapshotRenderer, personal_mail
from mailer.errors import MailerError, is_time_limit
from mailer.intake.bulk_rows import RowReader
from mailer.intake.duration import DomainCounts, Duration, relays_duration
from mailer.message import Lane, Message
from mailer.message.bulk import (
    BulkError,
    BulkProgress,
    BulkSample,
    BulkState,
    OwnPart,
    Rehearsal,
)
from mailer.message.ports import Clock
from mailer.message.text import printable
from mailer.mime import compose
from mailer.settings import Settings
from mailer.store import NewRecipient

_MOST_ERRORS = 100
_ROWS_BETWEEN_REPORTS = 1000
# With a million addresses, a bucket has about fifteen, and each new address is compared with them.
_BUCKETS = 1 << 16


class RehearsalRun:
    """A rehearsal that is under way, in flat memory but for eight bytes of each address."""

    def __init__(
        self,
        settings: Settings,
        clock: Clock,
        reader: RowReader,
        renderer: SnapshotRenderer,
        message: Message,
        lane: Lane,
        progress: Callable[[BulkProgress], object] | None = None,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._reader = reader
        self._renderer = renderer
        self._message = message
        self._lane = lane
        self._report = progress
        self._counts: Counter[str] = Counter()
        self._errors = list[BulkError]()
        self._seen = SeenAddresses()
        self._mails = _Mails(clock)
        self._domains = DomainCounts(settings)
        self._attached: int | None = None

    def run(self, recipients: Iterable[object]) -> Rehearsal:
        """Read and render each recipient."""
        started = self._clock.monotonic()
        for number, row in enumerate(recipients, start=1):
            self._counts["imported"] = number
            self._rehearse(self._reader.read(row, number))
            if self._report is not None and number % _ROWS_BETWEEN_REPORTS == 0:
                self._report(self._progress())
        duration = self._duration(self._clock.monotonic() - started)
        return Rehearsal(
            imported=self._counts["imported"],
            accepted=self._counts["accepted"],
            duplicates=self._counts["duplicates"],
            refused=self._counts["refused"],
            failed=self._counts["failed"],
            errors=tuple(self._errors),
            samples=self._mails.samples(),
            median_size=self._mails.median_size(),
            largest_size=self._mails.largest_size,
            total_size=self._mails.total_size,
            seconds=duration.seconds,
            limit=duration.limit,
        )

    def _rehearse(self, read: NewRecipient | BulkError) -> None:
        if isinstance(read, BulkError):
            self._note_error("refused", read)
            return
        if not self._seen.add(read.key):
            self._counts["duplicates"] += 1
            return
        self._counts["accepted"] += 1
        self._domains.add(read.address.rpartition("@")[2])
        try:
            self._mails.add(self._rendered(read))
        except Exception as error:
            if is_time_limit(error):
                raise
            name = "" if isinstance(error, MailerError) else f"{type(error).__name__}: "
            reason = printable(f"{name}{error}")
            self._note_error("failed", BulkError(read.row, read.address, reason))

    def _note_error(self, kind: str, error: BulkError) -> None:
        self._counts[kind] += 1
        if len(self._errors) < _MOST_ERRORS:
            self._errors.append(error)

    def _rendered(self, recipient: NewRecipient) -> BulkSample:
        """Render and compose a mail, as a worker does."""
        mail = personal_mail(
            self._message,
            self._renderer,
            OwnPart.from_json(recipient.own),
            recipient=recipient.address,
            delivery_id=recipient.row,  # for the Message-ID: there is no delivery
            prefix=self._settings.subject_prefix,
        )
        # The attachments of the first mail stand for those of all: they are the same bytes.
        size = _size(replace(mail, attachments=()))
        if self._attached is None:
            self._attached = _size(mail) - size
        return BulkSample(
            row=recipient.row,
            address=recipient.address,
            subject=mail.subject,
            text=mail.text,
            html=mail.html,
            size=size + self._attached,
        )

    def _duration(self, elapsed: float) -> Duration:
        """Return the longest of the times that the limits and the rendering take."""
        count = self._counts["accepted"] - self._counts["failed"]
        rate = f"{count / elapsed:,.0f}" if elapsed > 0 else "all"
        here = Duration(elapsed, f"one process of this machine renders {rate} mails a second")
        limited = [*self._domains.durations()]
        if (of_relays := relays_duration(self._settings, self._lane, count)) is not None:
            limited.append(of_relays)
        return max([here, *limited], key=lambda one: one.seconds)

    def _progress(self) -> BulkProgress:
        return BulkProgress(
            state=BulkState.IMPORTING,
            imported=self._counts["imported"],
            accepted=self._counts["accepted"],
            duplicates=self._counts["duplicates"],
            refused=self._counts["refused"],
            held=self._counts["accepted"] - self._counts["failed"],
            queued=0,
            doubtful=0,
            sent=0,
            failed=self._counts["failed"],
            cancelled=0,
            expired=0,
            suppressed=0,
        )


class SeenAddresses:
    """Remembers addresses, in about eight bytes each."""

    def __init__(self) -> None:
        self._buckets: defaultdict[int, array[int]] = defaultdict(lambda: array("Q"))

    def add(self, address: str) -> bool:
        """Add an address. Return whether it is new."""
        digest = hashlib.blake2b(address.encode(), digest_size=8).digest()
        number = int.from_bytes(digest, "big")
        bucket = self._buckets[number % _BUCKETS]
        if number in bucket:
            return False
        bucket.append(number)
        return True


class _Mails:
    """The sizes of mails, and three of them."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._count = 0
        self._sizes: Counter[int] = Counter()
        self._first: BulkSample | None = None
        self._middle: BulkSample | None = None
        self._largest: BulkSample | None = None
        self.total_size: int = 0

    def add(self, mail: BulkSample) -> None:
        self._count += 1
        self._sizes[_to_three_digits(mail.size)] += 1
        self.total_size += mail.size
        if self._first is None:
            self._first = mail
        elif self._clock.random() * (self._count - 1) < 1:  # each of them is as likely
            self._middle = mail
        if self._largest is None or mail.size > self._largest.size:
            self._largest = mail

    @property
    def largest_size(self) -> int:
        return self._largest.size if self._largest else 0

    def median_size(self) -> int:
        before = 0
        for size, count in sorted(self._sizes.items()):
            before += count
            if 2 * before >= self._count:
                return min(size, self.largest_size)
        return 0

    def samples(self) -> tuple[BulkSample, ...]:
        found = (self._first, self._middle, self._largest)
        return tuple({one.row: one for one in found if one is not None}.values())


def _to_three_digits(size: int) -> int:
    return round(size, 3 - len(str(size)))


def _size(mail: Message) -> int:
    return compose(mail).form(eightbit=True).size
