"""Bulk sends come in: the templates are snapshotted, and the recipients stored in chunks."""

import secrets
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from logging import Logger
from typing import Any

import flask_mail

from mailer.errors import BadRow, InvalidMail, KeyInUse, KeyReused
from mailer.intake.bulk_rows import RowReader, extend_digest
from mailer.logs import get_logger
from mailer.message import AddressLike, Attachment, Keyed
from mailer.message.bulk import BulkError, BulkProgress, BulkState
from mailer.message.calendar import Calendar
from mailer.message.ports import Clock
from mailer.store import Chunk, Importer, NewBulk, NewRecipient, Store

# Rows, and bytes of their own parts, that one transaction stores.
_CHUNK_ROWS, _CHUNK_BYTES = 1000, 4_000_000
# In seconds: rows that come slowly are stored after that time, which extends the lease.
_CHUNK_SECONDS = 10.0
# In seconds: an importer that is silent for longer is replaced by the next call with its key.
_LEASE_SECONDS = 60.0
# In seconds: so often a call looks at the import of another one.
_LOOK_SECONDS = 0.5

Progress = Callable[[BulkProgress], object]

log: Logger = get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class BulkMail:
    """The mail that all recipients of a bulk send get, in the caller's words."""

    subject: str
    template: str
    shared: Mapping[str, Any] | None = None
    locales: Collection[str] = ()
    sender: AddressLike | None = None
    reply_to: AddressLike | Iterable[AddressLike] | None = None
    attachments: Iterable[Attachment | flask_mail.Attachment] | None = ()
    headers: Mapping[str, str | None] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BulkOptions:
    """The options of a bulk send, in the caller's words."""

    on_error: str = "skip"
    start: str = "complete"
    progress: Progress | None = None
    require_confirmation_above: int | None = None
    max_failed_share: float = 0.5
    calendar: Calendar | None = None

    @property
    def first_state(self) -> BulkState:
        return BulkState.RUNNING if self.start == "streaming" else BulkState.IMPORTING

    def check(self) -> None:
        """Raise `InvalidMail` for an option that can't be used."""
        if self.on_error not in ("skip", "abort"):
            raise InvalidMail(f"on_error: {self.on_error!r}: give 'skip' or 'abort'.")
        if self.start not in ("complete", "streaming"):
            raise InvalidMail(f"start: {self.start!r}: give 'complete' or 'streaming'.")
        if self.start == "streaming" and self.on_error == "abort":
            raise InvalidMail(
                "on_error: 'abort' means that nothing is sent, and start='streaming' sends at once:"
                " give one of the two."
            )
        if self.start == "streaming" and self.require_confirmation_above is not None:
            raise InvalidMail(
                "require_confirmation_above: start='streaming' sends before the recipients are"
                " counted: give one of the two."
            )
        if not 0 < self.max_failed_share <= 1:
            raise InvalidMail(
                f"max_failed_share: {self.max_failed_share!r}: give a share, above 0 and up to 1."
            )
        if not (self.calendar is None or isinstance(self.calendar, Calendar)):
            raise InvalidMail(
                f"calendar: {self.calendar!r}: give a Calendar(hours='09:00-18:00',"
                " time_zone='Europe/Berlin')."
            )


def check_hours(calendar: Calendar | None, starts_at: float, expires_at: float | None) -> None:
    """Raise `InvalidMail` for a send that would expire before its hours begin."""
    if calendar is None or expires_at is None:
        return
    opens_at = calendar.opens_at(starts_at)
    if opens_at is None or opens_at >= expires_at:
        raise InvalidMail(
            f"expires_at: the mail would expire before its hours begin, {calendar.days}"
            f" {calendar.hours} in {calendar.time_zone}: give a later time, or other hours."
        )


def check_recipients(recipients: object) -> None:
    """Raise `InvalidMail` for recipients that are no iterable of rows."""
    kind = type(recipients).__name__
    if isinstance(recipients, (str, bytes, Mapping)) or not isinstance(recipients, Iterable):
        raise InvalidMail(
            f"recipients: give an iterable of (address, context) or dicts, not {kind}."
        )
    if kind == "DataFrame":
        raise InvalidMail(
            "recipients: a DataFrame is an iterable of its columns, not of its rows. Give"
            " frame.to_dict('records'), with a column email."
        )


class BulkImport:
    """The import of one bulk send, by one importer.

    It can be repeated after any interruption: with the idempotency key, the next call goes on after
    the rows that are stored.
    """

    def __init__(
        self,
        store: Store,
        clock: Clock,
        reader: RowReader,
        new: NewBulk,
        options: BulkOptions,
        check_same: Callable[[Keyed], None],
    ) -> None:
        self._store = store
        self._clock = clock
        self._reader = reader
        self._new = new
        self._options = options
        self._check_same = check_same
        self._name = secrets.token_hex(8)
        self._id = new.message.id
        self._rows = 0
        self._digest = ""

    def run(self, recipients: Iterable[object]) -> str:
        """Store the recipients. Return the id of the bulk send."""
        earlier = self._store.insert_bulk(self._new, self._importer)
        if earlier is not None:
            self._check_same(earlier)
            self._id = earlier.id
        rows = self._read(recipients)
        try:
            if earlier is None or self._takes_over(rows):
                self._store_all(rows)
        except BaseException as error:  # also KeyboardInterrupt: the next call need not wait
            self._leave(error)
            raise
        return self._id

    @property
    def _importer(self) -> Importer:
        return Importer(self._name, self._clock.time() + _LEASE_SECONDS)

    def _read(self, recipients: Iterable[object]) -> Iterator[NewRecipient | BulkError]:
        for number, row in enumerate(recipients, start=1):
            read = self._reader.read(row, number)
            if isinstance(read, BulkError) and self._options.on_error == "abort":
                raise BadRow(read.row, read.address, read.reason)
            yield read

    # --- an earlier call -------------------------------------------------------------------------

    def _takes_over(self, rows: Iterator[NewRecipient | BulkError]) -> bool:
        """Wait for the importer of an earlier call. Return whether its import has to go on."""
        waits = False
        while (taken := self._take()) is None:
            bulk = self._store.load_bulk(self._id)
            if bulk.is_complete or bulk.state.is_over:
                self._skip(rows, bulk.rows_read, bulk.rows_digest)
                if bulk.is_complete and next(rows, None) is not None:
                    raise self._other_rows()
                return False
            if not waits:
                log.warning(
                    "Another call imports this bulk send, or died less than a minute ago, so this"
                    " call waits: bulk=%s",
                    self._id,
                )
            waits = True
            self._clock.sleep(_LOOK_SECONDS)
        self._skip(rows, *taken)
        return True

    def _take(self) -> tuple[int, str] | None:
        return self._store.take_import(self._id, self._importer, now=self._clock.time())

    def _skip(self, rows: Iterator[NewRecipient | BulkError], number: int, digest: str) -> None:
        """Skip rows that are stored. Raise `KeyReused` if they are other ones."""
        for row in rows if number else ():
            self._rows, self._digest = row.row, extend_digest(self._digest, row)
            if self._rows == number:
                break
        if (self._rows, self._digest) != (number, digest):
            raise self._other_rows()

    def _other_rows(self) -> KeyReused:
        key = self._new.envelope.key
        return KeyReused(
            f"idempotency_key: {key.name if key else None!r} belongs to the bulk send {self._id},"
            " which has other recipients: give each bulk send a key of its own. If they are to be"
            " the same, give them in the same order."
        )

    # --- chunks ----------------------------------------------------------------------------------

    def _store_all(self, rows: Iterator[NewRecipient | BulkError]) -> None:
        for chunk in self._chunks(rows):
            stored = self._store.store_chunk(self._id, chunk, self._new.envelope, self._importer)
            if not stored:
                self._wait_for_the_other()
                return
            if self._options.progress is not None:
                self._options.progress(self._progress())
        state, reason = BulkState.RUNNING, None
        above = self._options.require_confirmation_above
        if above is not None and (accepted := self._progress().accepted) > above:
            state, reason = BulkState.READY, f"{accepted:,} recipients wait to be confirmed"
        starts_at = self._clock.time() + self._new.undo if self._new.undo else 0.0
        end = self._store.end_import
        if not end(self._id, self._importer, state, reason, starts_at=starts_at):
            self._wait_for_the_other()

    def _chunks(self, rows: Iterator[NewRecipient | BulkError]) -> Iterator[Chunk]:
        recipients, errors, size = list[NewRecipient](), list[BulkError](), 0
        rows_before, ends_at = self._rows, self._clock.monotonic() + _CHUNK_SECONDS
        for row in rows:
            self._rows, self._digest = row.row, extend_digest(self._digest, row)
            if isinstance(row, BulkError):
                errors.append(row)
            else:
                recipients.append(row)
                size += len(row.own)
            is_full = self._rows - rows_before == _CHUNK_ROWS or size > _CHUNK_BYTES
            if is_full or self._clock.monotonic() > ends_at:
                yield Chunk(recipients, errors, self._rows - rows_before, rows_before, self._digest)
                recipients, errors, size = [], [], 0
                rows_before, ends_at = self._rows, self._clock.monotonic() + _CHUNK_SECONDS
        if self._rows > rows_before:
            yield Chunk(recipients, errors, self._rows - rows_before, rows_before, self._digest)

    def _wait_for_the_other(self) -> None:
        """Wait for the importer that took over while this process was frozen."""
        while True:
            bulk = self._store.load_bulk(self._id)
            if bulk.is_complete or bulk.state.is_over:
                return
            if bulk.importer_until is None or bulk.importer_until < self._clock.time():
                raise KeyInUse(
                    f"The import of the bulk send {self._id} was taken over by another call, which"
                    " did not finish it. Call again with the same idempotency_key."
                )
            self._clock.sleep(_LOOK_SECONDS)

    def _progress(self) -> BulkProgress:
        return self._store.bulk_progress(self._id, now=self._clock.time())

    def _leave(self, error: BaseException) -> None:
        """Leave the import to the next call with its key. Without a key, nothing more is sent.

        After a bad row that aborts the import, the key is free for the recipients in another form.
        """
        is_final = self._new.envelope.key is None or isinstance(error, BadRow)
        name = type(error).__name__
        reason = str(error) if isinstance(error, BadRow) else f"its import ended with {name}"
        try:
            if is_final:
                self._store.end_import(self._id, self._importer, BulkState.CANCELLED, reason)
            else:
                self._store.leave_import(self._id, self._importer)
        except Exception:  # the first error counts; the lease ends, and the sweep cancels it
            log.exception("Import of a bulk send could not be ended: bulk=%s", self._id)
