"""The import of a bulk send: its recipients are stored in chunks, each of them once.

One importer works at a time. Each chunk is guarded by its name and by the number of rows before, so
that an importer that was frozen stores nothing beside the one that went on.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mailer.message import Envelope, Keyed, Message, Status
from mailer.message.bulk import BulkError, BulkState
from mailer.message.calendar import Calendar
from mailer.store import blobs, rows
from mailer.store.mails import Mails
from mailer.store.sql import insert_into, packed
from mailer.store.transactions import Transaction

_COLUMNS = (
    "id state snapshot lane tenant max_failed_share is_complete rows_read rows_digest accepted"
    " duplicates refused released released_to importer importer_until starts_at expires_at"
    " calendar".split()
)
INSERT_BULK = insert_into("mailer_bulk", _COLUMNS)
#: An import is not over. A send that streams is running or paused meanwhile.
GOES_ON = "state IN ('importing', 'running', 'paused') AND NOT is_complete"
TAKE_IMPORT = f"""
UPDATE mailer_bulk SET importer = :importer, importer_until = :until
WHERE id = :id AND {GOES_ON} AND (importer IS NULL OR importer_until < :now)
RETURNING rows_read, rows_digest
"""
LEAVE_IMPORT = """
UPDATE mailer_bulk SET importer = NULL, importer_until = NULL
WHERE id = :id AND importer = :importer
RETURNING id
"""
STORED = "SELECT address FROM mailer_bulk_recipient WHERE bulk_id = :id AND address {addresses}"
NOTE_CHUNK = f"""
UPDATE mailer_bulk
SET rows_read = rows_read + :rows, rows_digest = :digest, accepted = accepted + :accepted,
    duplicates = duplicates + :duplicates, refused = refused + :refused, importer_until = :until
WHERE id = :id AND importer = :importer AND rows_read = :rows_before AND {GOES_ON}
RETURNING calendar
"""
NOTE_ZONE = """
INSERT INTO mailer_bulk_zone (bulk_id, time_zone, released_to, has_held, queued_to)
VALUES (:id, :zone, 0, TRUE, 0)
ON CONFLICT (bulk_id, time_zone) DO UPDATE SET has_held = TRUE
"""
# OFFSET 0: the sequence is looked up once, not for each id, which takes five times as long.
NEXT_IDS = """
SELECT nextval(name) FROM generate_series(1, :most), (
    SELECT CAST(pg_get_serial_sequence('mailer_delivery', 'id') AS regclass) AS name OFFSET 0
) AS sequence
"""
NEXT_ID_IN_SQLITE = "SELECT COALESCE(MAX(id), 0) + 1 FROM mailer_delivery"
# An import that has a reason is paused: it goes on, and the send does not begin at its end. Of one
# that streams, the state itself is 'paused'.
PAUSE_IMPORT = """
UPDATE mailer_bulk SET reason = :reason
WHERE id = :id AND state = 'importing' AND reason IS NULL
RETURNING id
"""
RESUME_IMPORT = """
UPDATE mailer_bulk SET reason = NULL
WHERE id = :id AND state = 'importing' AND reason IS NOT NULL
RETURNING id
"""
# An undo window begins when all recipients are stored.
END_IMPORT = """
UPDATE mailer_bulk
SET is_complete = (:state <> 'cancelled'), importer = NULL,
    starts_at = CASE WHEN starts_at < :starts_at THEN :starts_at ELSE starts_at END,
    state = CASE
        WHEN :state = 'running' AND state = 'importing' AND reason IS NOT NULL THEN 'paused'
        WHEN :state = 'cancelled' OR state = 'importing' THEN :state
        ELSE state END,
    reason = CASE
        WHEN state = 'importing' AND reason IS NOT NULL AND :state = 'ready'
        THEN reason || '; ' || :reason
        ELSE COALESCE(:reason, reason) END
WHERE id = :id AND importer = :importer AND NOT is_complete
RETURNING id
"""
FREE_KEY = """
UPDATE mailer_message SET idempotency_key = NULL, fingerprint = NULL, fingerprint_key = NULL
WHERE id = :id
RETURNING id
"""
_DELIVERY_COLUMNS = ("id", *rows.DELIVERY_COLUMNS)
_RECIPIENT_COLUMNS = ("delivery_id", "bulk_id", "address", "row", "own", "time_zone")
_ERROR_COLUMNS = ("bulk_id", "row", "address", "reason")


@dataclass(frozen=True, slots=True, kw_only=True)
class NewBulk:
    """A bulk send that is to be stored, without its recipients."""

    message: Message
    envelope: Envelope  #: without recipients
    snapshot: str
    state: BulkState
    max_failed_share: float
    calendar: Calendar | None = None
    undo: float = 0.0  #: seconds for which it can be taken back once it is stored


@dataclass(frozen=True, slots=True)
class Importer:
    """An importer, and the time until which it may be silent."""

    name: str
    until: float


@dataclass(frozen=True, slots=True)
class NewRecipient:
    """A recipient that is to be stored."""

    address: str
    row: int
    own: str  #: the own part of the mail, as JSON
    size: int
    time_zone: str | None = None  #: None: that of the calendar, if there is one

    @property
    def key(self) -> str:
        """Return the form of the address that is stored once: few providers tell case apart."""
        return self.address.lower()


@dataclass(frozen=True, slots=True)
class Chunk:
    """Rows that are stored in one transaction."""

    recipients: Sequence[NewRecipient]
    errors: Sequence[BulkError]
    rows: int
    rows_before: int
    digest: str  #: of all rows up to the last one of the chunk


class BulkImports(Mails):
    """The imports of bulk sends."""

    def insert_bulk(self, new: NewBulk, importer: Importer) -> Keyed | None:
        """Insert a bulk send without recipients. Return the one that has its key already."""
        zeros = "rows_read accepted duplicates refused released released_to".split()
        row = dict.fromkeys(zeros, 0) | {
            "id": new.message.id,
            "state": str(new.state),
            "snapshot": new.snapshot,
            "lane": int(new.envelope.lane),
            "tenant": new.envelope.tenant,
            "max_failed_share": new.max_failed_share,
            "is_complete": False,
            "rows_digest": "",
            "importer": importer.name,
            "importer_until": importer.until,
            "starts_at": new.envelope.due_at,
            "expires_at": new.envelope.expires_at,
            "calendar": None if new.calendar is None else new.calendar.to_json(),
        }

        def insert(transaction: Transaction) -> Keyed | None:
            earlier = self._insert_message(transaction, new.message, new.envelope.key)
            if earlier is None:
                if new.message.attachments:
                    blobs.insert_attachments(transaction, new.message, None)
                transaction.execute(INSERT_BULK, row)
            return earlier

        return self._transact(insert)

    def take_import(
        self, bulk_id: str, importer: Importer, *, now: float
    ) -> tuple[int, str] | None:
        """Take over an import that nobody works on. Return its rows so far, and their digest."""
        values = {"id": bulk_id, "importer": importer.name, "now": now, "until": importer.until}
        found = self._transact(lambda transaction: transaction.execute(TAKE_IMPORT, values))
        return (found[0][0], found[0][1]) if found else None

    def leave_import(self, bulk_id: str, importer: Importer) -> None:
        """Leave an import to whoever calls with its key again."""
        self._changes(LEAVE_IMPORT, {"id": bulk_id, "importer": importer.name})

    def store_chunk(
        self, bulk_id: str, chunk: Chunk, envelope: Envelope, importer: Importer
    ) -> bool:
        """Store recipients as held, each address once. Return False if the import was lost."""

        def store(transaction: Transaction) -> bool:
            new = self._without_stored(transaction, bulk_id, chunk.recipients)
            noted = {
                "id": bulk_id,
                "importer": importer.name,
                "until": importer.until,
                "rows": chunk.rows,
                "rows_before": chunk.rows_before,
                "digest": chunk.digest,
                "accepted": len(new),
                "duplicates": len(chunk.recipients) - len(new),
                "refused": len(chunk.errors),
            }
            found = transaction.execute(NOTE_CHUNK, noted)
            if not found:
                return False
            calendar = rows.calendar(found[0][0])  # that of the call that began it
            if calendar is not None:
                zones = {one.time_zone or calendar.time_zone for one in new}
                noted_zones = [{"id": bulk_id, "zone": zone} for zone in sorted(zones)]
                transaction.execute_many(NOTE_ZONE, noted_zones)
            ids = self._next_ids(transaction, len(new))
            _insert(transaction, bulk_id, envelope, calendar, [*zip(ids, new, strict=True)])
            errors = [(bulk_id, one.row, one.address, one.reason) for one in chunk.errors]
            transaction.insert_rows("mailer_bulk_error", _ERROR_COLUMNS, errors)
            return True

        return self._transact(store)

    def _without_stored(
        self, transaction: Transaction, bulk_id: str, recipients: Sequence[NewRecipient]
    ) -> list[NewRecipient]:
        """Return the recipients that are not stored yet, each once."""
        first: dict[str, NewRecipient] = {}
        for one in recipients:
            first.setdefault(one.key, one)
        values = {"id": bulk_id, "addresses": packed(first)}
        for (key,) in transaction.execute(STORED, values):
            del first[key]
        return [*first.values()]

    def _next_ids(self, transaction: Transaction, number: int) -> Iterable[int]:
        if self._sqlite:  # this transaction is the only writer
            [(first,)] = transaction.execute(NEXT_ID_IN_SQLITE, {})
            return range(first, first + number)
        return [one for (one,) in transaction.execute(NEXT_IDS, {"most": number})]

    def pause_import(self, bulk_id: str, reason: str) -> bool:
        """Let a send that is being imported wait at its end. Return whether it would not have."""
        return self._changes(PAUSE_IMPORT, {"id": bulk_id, "reason": reason})

    def resume_import(self, bulk_id: str) -> bool:
        """Let a send begin at the end of its import. Return whether it would have waited."""
        return self._changes(RESUME_IMPORT, {"id": bulk_id})

    def end_import(
        self,
        bulk_id: str,
        importer: Importer,
        to: BulkState,
        reason: str | None = None,
        *,
        starts_at: float = 0.0,
    ) -> bool:
        """End an import. Return False if it was lost.

        The send starts at that time, or later. A paused one waits, as does one that needs a
        confirmation, paused or not. A cancelled one leaves its idempotency key to another call.
        """
        values = {
            "id": bulk_id,
            "importer": importer.name,
            "state": str(to),
            "reason": reason,
            "starts_at": starts_at,
        }

        def end(transaction: Transaction) -> bool:
            if not transaction.execute(END_IMPORT, values):
                return False
            if to is BulkState.CANCELLED:
                transaction.execute(FREE_KEY, {"id": bulk_id})
            return True

        return self._transact(end)


def _insert(
    transaction: Transaction,
    bulk_id: str,
    envelope: Envelope,
    calendar: Calendar | None,
    new: Sequence[tuple[int, NewRecipient]],
) -> None:
    default = None if calendar is None else calendar.time_zone
    shared = (
        str(Status.HELD),
        int(envelope.lane),
        str(envelope.on_doubt),
        envelope.due_at,
        None,  # held, so not due at any time
        envelope.expires_at,
    )
    no_tries = (0, 0)  # attempts and doubts
    place = (envelope.tenant, None)  # without a rank until it is released
    transaction.insert_rows(
        "mailer_delivery",
        _DELIVERY_COLUMNS,
        [
            (
                number,
                bulk_id,
                one.address,
                one.address.rpartition("@")[2],
                *shared,
                one.size,
                *no_tries,
                *place,
            )
            for number, one in new
        ],
    )
    transaction.insert_rows(
        "mailer_bulk_recipient",
        _RECIPIENT_COLUMNS,
        [
            (number, bulk_id, one.key, one.row, one.own, default and (one.time_zone or default))
            for number, one in new
        ],
    )
