"""Bulk sends with a calendar: the time zones of their recipients, which open and close.

Each zone has a place of its own up to which it is released, so that a portion is found by the index
of the zone, however many recipients the others have. What is queued when a zone closes is held
again, from that place backwards. A few mails that wait for another try may stay queued: the worker
that claims one looks at the hours, and gives it back.
"""

from collections.abc import Collection

from mailer.message.bulk import BulkZone
from mailer.message.calendar import Calendar
from mailer.store import rows
from mailer.store.bulk_imports import BulkImports
from mailer.store.moves import MOVED_AT_ONCE
from mailer.store.sql import packed
from mailer.store.transactions import Transaction

# What is queued is among so many: twice the deliveries that wait in a lane.
_LATEST = 20_000

CALENDAR = "SELECT calendar FROM mailer_bulk WHERE id = :id"
ZONES = """
SELECT time_zone, has_held, queued_to FROM mailer_bulk_zone WHERE bulk_id = :id ORDER BY time_zone
"""
ZONES_OF = "SELECT delivery_id, time_zone FROM mailer_bulk_recipient WHERE delivery_id {ids}"
RELEASED_IN_ZONE = """
SELECT released_to FROM mailer_bulk_zone WHERE bulk_id = :id AND time_zone = :time_zone
"""
NOTE_LEFT_IN_ZONE = """
UPDATE mailer_bulk_zone
SET released_to = :left_to,
    queued_to = CASE WHEN queued_to < :left_to THEN :left_to ELSE queued_to END
WHERE bulk_id = :id AND time_zone = :time_zone
"""
NOTE_NONE_HELD = """
UPDATE mailer_bulk_zone SET has_held = FALSE WHERE bulk_id = :id AND time_zone = :time_zone
"""
RESET_ZONES = """
UPDATE mailer_bulk_zone SET released_to = 0, has_held = TRUE WHERE bulk_id = :id
"""

# --- a zone that closes --------------------------------------------------------------------------

LOCK = "SELECT id FROM mailer_bulk WHERE id = :id AND state = 'running' {wait}"
# Those in the hands of a worker may come back.
LATEST_IN_ZONE = """
SELECT delivery_id, status = 'queued' FROM (
    SELECT delivery_id FROM mailer_bulk_recipient
    WHERE bulk_id = :id AND time_zone = :time_zone AND delivery_id <= (
        SELECT queued_to FROM mailer_bulk_zone WHERE bulk_id = :id AND time_zone = :time_zone)
    ORDER BY delivery_id DESC LIMIT :most) AS latest
JOIN mailer_delivery ON mailer_delivery.id = delivery_id
WHERE COALESCE(status, '') IN ('queued', 'claimed', 'transmitting')
"""
HOLD_IF_QUEUED = """
WITH queued AS MATERIALIZED (
    SELECT id FROM mailer_delivery
    WHERE id {ids} AND COALESCE(status, '') = 'queued'
    ORDER BY id {lock})
UPDATE mailer_delivery SET status = 'held', due_at = NULL, rank = NULL
WHERE id IN (SELECT id FROM queued)
RETURNING id
"""
NOTE_HELD = "UPDATE mailer_bulk SET released = released - :held WHERE id = :id"
NOTE_HELD_IN_ZONE = """
UPDATE mailer_bulk_zone
SET has_held = TRUE,
    released_to = CASE WHEN released_to < :held_from THEN released_to ELSE :held_from - 1 END
WHERE bulk_id = :id AND time_zone = :time_zone
"""
NOTE_CLOSED = """
UPDATE mailer_bulk_zone SET queued_to = 0 WHERE bulk_id = :id AND time_zone = :time_zone
"""


class BulkZones(BulkImports):
    """The time zones of bulk sends with a calendar."""

    def load_calendar(self, bulk_id: str) -> Calendar | None:
        """Return the calendar of a bulk send, which never changes."""
        with self._look() as transaction:
            found = transaction.execute(CALENDAR, {"id": bulk_id})
        return rows.calendar(found[0][0]) if found else None

    def load_bulk_zones(self, bulk_id: str) -> list[BulkZone]:
        """Return the time zones of the recipients of a bulk send with a calendar."""
        with self._look() as transaction:
            return [*map(rows.bulk_zone, transaction.execute(ZONES, {"id": bulk_id}))]

    def load_zones_of(self, delivery_ids: Collection[int]) -> dict[int, str | None]:
        """Return the time zones of recipients, by the id of the delivery."""
        values = {"ids": packed(delivery_ids)}
        with self._look() as transaction:
            return dict[int, str | None](transaction.execute(ZONES_OF, values))

    def hold_again_in_zone(self, bulk_id: str, time_zone: str) -> set[int]:
        """Hold the deliveries that a zone released last, unless a worker has them: queued -> held.

        Once none of them can be queued any more, the zone is closed.
        """

        def hold(transaction: Transaction) -> set[int]:
            values = {"id": bulk_id, "time_zone": time_zone}
            # Locked first, so that nothing is released meanwhile.
            if not transaction.execute(LOCK, values):
                return set()
            latest = transaction.execute(LATEST_IN_ZONE, {**values, "most": _LATEST})
            if not latest:
                transaction.execute(NOTE_CLOSED, values)
                return set()
            queued = [number for number, is_queued in latest if is_queued]
            ids = packed(sorted(queued)[:MOVED_AT_ONCE])
            held = self._moved(transaction, HOLD_IF_QUEUED, {"ids": ids}, kinds=None)
            if held:
                transaction.execute(NOTE_HELD, {"id": bulk_id, "held": len(held)})
                transaction.execute(NOTE_HELD_IN_ZONE, {**values, "held_from": min(held)})
            return held

        return self._transact(hold)
