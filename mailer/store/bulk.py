"""Bulk sends: their release in portions, their progress, and the decisions about them.

A bulk send is a message with a delivery for each recipient. The deliveries are stored as `held`,
and the sweep releases them in portions (held -> queued): nothing goes out before all are stored,
the queue stays short, and a pause has little to hold again.

No row is changed by all workers. A transaction that finishes deliveries inserts rows of counts, and
the sweep sums them up.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from mailer.errors import UnknownMail
from mailer.message import Lane, Status
from mailer.message.bulk import BulkError, BulkProgress, BulkRecipient, BulkSend, BulkState
from mailer.message.events import BulkEvent, EventKind
from mailer.policy import NO_TENANT
from mailer.store import rows, turns
from mailer.store.bulk_imports import GOES_ON
from mailer.store.bulk_zones import (
    NOTE_LEFT_IN_ZONE,
    NOTE_NONE_HELD,
    RELEASED_IN_ZONE,
    RESET_ZONES,
    ZONES,
    BulkZones,
)
from mailer.store.collation import id_by_byte
from mailer.store.moves import EVENT_OF, MOVED_AT_ONCE, NOTE_HELD_AGAIN
from mailer.store.quotas import lock_quota, use_quota
from mailer.store.sql import insert_into, packed
from mailer.store.transactions import Transaction

# In each collation, "g" comes after all hex digits.
_AFTER_ALL_IDS = "g"
# Deliveries of a send that one step looks at, or more. After a pause, those at its front are over:
# if the step may release only a few, it still has to get past them.
_LOOKED_AT = 1000

_COLUMNS = ", ".join(rows.BULK_COLUMNS)
BULK = f"SELECT {_COLUMNS} FROM mailer_bulk WHERE id = :id"
BULKS = f"""
SELECT {_COLUMNS} FROM mailer_bulk
WHERE {{id_by_byte}} < :before
ORDER BY {{id_by_byte}} DESC LIMIT :most
"""
SUBJECTS = "SELECT id, subject FROM mailer_message WHERE id {mails}"
SNAPSHOT = "SELECT snapshot FROM mailer_bulk WHERE id = :id"
OWN_PARTS = """
SELECT delivery_id, own FROM mailer_bulk_recipient WHERE delivery_id {ids} AND own <> ''
"""
# A release, or a cancellation, begins after released_to. It is set back whenever deliveries before
# that place may be held again, that of a zone by RESET_ZONES.
CHANGE_STATE = """
UPDATE mailer_bulk SET state = :to, reason = :reason, released_to = 0
WHERE id = :id AND state {leaving}
RETURNING id
"""

# Whoever resumes it knows how much fails, so that is no reason for the next pause.
PAUSE_FAILING = """
UPDATE mailer_bulk SET state = 'paused', reason = :reason, released_to = 0, max_failed_share = 1
WHERE id = :id AND state = 'running'
RETURNING id
"""
RESCHEDULE = """
UPDATE mailer_bulk SET starts_at = :starts_at
WHERE id = :id AND started_at IS NULL AND state {leaving}
    AND COALESCE(expires_at, :starts_at + 1) > :starts_at
RETURNING id
"""
CANCEL_ABANDONED = f"""
UPDATE mailer_bulk SET state = 'cancelled', reason = 'its import stopped in the middle'
WHERE id = :id AND {GOES_ON} AND NOT EXISTS (
    SELECT 1 FROM mailer_message
    WHERE mailer_message.id = mailer_bulk.id AND idempotency_key IS NOT NULL)
RETURNING id
"""

# --- the sweep -----------------------------------------------------------------------------------

UNFINISHED = f"SELECT {_COLUMNS} FROM mailer_bulk WHERE finished_at IS NULL ORDER BY id"
DUE_IN_LANE = """
SELECT COUNT(*) FROM (
    SELECT 1 FROM mailer_delivery
    WHERE {plain} AND lane = :lane AND due_at <= :now LIMIT :most) AS due
"""
DUE_OF_TENANT = """
SELECT COUNT(*) FROM (
    SELECT 1 FROM mailer_delivery
    WHERE status = 'queued' AND rank IS NOT NULL AND lane = :lane AND tenant = :tenant
    LIMIT :most) AS due
"""
NEXT = """
SELECT delivery_id, mailer_delivery.status = 'held' FROM mailer_bulk_recipient
JOIN mailer_delivery ON mailer_delivery.id = delivery_id
WHERE bulk_id = :id AND delivery_id > :after
ORDER BY delivery_id LIMIT :most
"""
NEXT_IN_ZONE = NEXT.replace("WHERE bulk_id = :id", "WHERE bulk_id = :id AND time_zone = :time_zone")
LOCK_IN_STATE = """
SELECT released_to, tenant, lane FROM mailer_bulk
WHERE id = :id AND state = :state AND (starts_at <= :now OR state = 'cancelled') {wait}
"""
LOCK_IF_STOPPED = """
SELECT id FROM mailer_bulk WHERE id = :id AND state IN ('paused', 'cancelled') {wait}
"""
NOTE_LEFT = """
UPDATE mailer_bulk
SET released = released + :left, released_to = :left_to, started_at = COALESCE(started_at, :now)
WHERE id = :id
"""
RELEASE = """
UPDATE mailer_delivery
SET status = 'queued', due_at = :now, queued_at = :now, rank = places.rank
FROM {places}
WHERE {among_places} AND COALESCE(status, '') = 'held'
RETURNING mailer_delivery.id
"""
FINISH_HELD = """
UPDATE mailer_delivery SET status = :to, finished_at = :now
WHERE id {ids} AND COALESCE(status, '') = 'held'
RETURNING id
"""
HOLD_AGAIN = """
WITH queued AS MATERIALIZED (
    SELECT id FROM mailer_delivery
    WHERE mail_id = :id AND COALESCE(status, '') = 'queued'
    ORDER BY id LIMIT :most {lock})
UPDATE mailer_delivery SET status = 'held', due_at = NULL, rank = NULL
WHERE id IN (SELECT id FROM queued)
RETURNING id
"""
FINISH = """
UPDATE mailer_bulk
SET state = CASE WHEN state = 'running' THEN 'finished' ELSE state END, finished_at = :now
WHERE id = :id AND finished_at IS NULL AND state IN ('running', 'cancelled')
RETURNING state
"""

# --- progress ------------------------------------------------------------------------------------

PROGRESS = """
SELECT state, reason, rows_read, accepted, duplicates, refused, released, started_at, finished_at,
    starts_at, expires_at, calendar
FROM mailer_bulk WHERE id = :id
"""
COUNTS = "SELECT status, SUM(number) FROM mailer_bulk_count WHERE bulk_id = :id GROUP BY status"
# COALESCE: the index of doubtful deliveries is small, that of a mail's deliveries is not.
DOUBTFUL = """
SELECT COUNT(*) FROM mailer_delivery
WHERE status = 'doubtful' AND COALESCE(mail_id, '') = :id
"""
COUNT_ROWS = """
SELECT COUNT(*) FROM (
    SELECT 1 FROM mailer_bulk_count WHERE bulk_id = :id LIMIT :most) AS counts
"""
TAKE_COUNTS = "DELETE FROM mailer_bulk_count WHERE bulk_id = :id RETURNING status, number"
INSERT_COUNT = insert_into("mailer_bulk_count", ("bulk_id", "status", "number"))

# --- pages ---------------------------------------------------------------------------------------

ERRORS = """
SELECT "row", address, reason FROM mailer_bulk_error
WHERE bulk_id = :id AND "row" > :after
ORDER BY "row" LIMIT :most
"""
RECIPIENT = """
SELECT delivery_id FROM mailer_bulk_recipient WHERE bulk_id = :id AND address = :address
"""
RECIPIENTS = """
SELECT delivery_id, "row", recipient, status, reply FROM mailer_bulk_recipient
JOIN mailer_delivery ON mailer_delivery.id = delivery_id
WHERE bulk_id = :id AND delivery_id > :after {and_status}
ORDER BY delivery_id LIMIT :most
"""


class BulkSends(BulkZones):
    """Bulk sends: the store's part that releases, decides and counts."""

    # --- loading ---------------------------------------------------------------------------------

    def load_bulk(self, bulk_id: str) -> BulkSend:
        """Return a bulk send. Raise `UnknownMail` if none has this id."""
        with self._look() as transaction:
            found = transaction.execute(BULK, {"id": bulk_id})
        if not found:
            raise _unknown(bulk_id)
        return rows.bulk(found[0])

    def load_bulks(self, *, before: str | None = None, most: int) -> list[BulkSend]:
        """Return the newest bulk sends, or the newest ones before the bulk send `before`."""
        values = {"before": _AFTER_ALL_IDS if before is None else before, "most": most}
        with self._look() as transaction:
            statement = BULKS.replace("{id_by_byte}", id_by_byte(transaction))
            return [*map(rows.bulk, transaction.execute(statement, values))]

    def load_unfinished_bulks(self) -> list[BulkSend]:
        """Return the bulk sends that still have something to do."""
        with self._look() as transaction:
            return [*map(rows.bulk, transaction.execute(UNFINISHED, {}))]

    def load_snapshot(self, bulk_id: str) -> str:
        """Return the snapshot of a bulk send's templates, as JSON."""
        with self._look() as transaction:
            found = transaction.execute(SNAPSHOT, {"id": bulk_id})
        if not found:
            raise _unknown(bulk_id)
        return str(found[0][0])

    def load_own_parts(self, delivery_ids: Collection[int]) -> dict[int, str]:
        """Return the own parts of recipients that are not erased, by the id of the delivery."""
        values = {"ids": packed(delivery_ids)}
        with self._look() as transaction:
            return dict[int, str](transaction.execute(OWN_PARTS, values))

    def load_bulk_errors(self, bulk_id: str, *, after: int, most: int) -> list[BulkError]:
        """Return refused rows of a bulk send, in their order."""
        values = {"id": bulk_id, "after": after, "most": most}
        with self._look() as transaction:
            return [BulkError(*row) for row in transaction.execute(ERRORS, values)]

    def load_bulk_recipients(
        self, bulk_id: str, *, status: Status | None, after: int, most: int
    ) -> list[BulkRecipient]:
        """Return recipients of a bulk send after a delivery, in the order of their rows."""
        values = {"id": bulk_id, "after": after, "most": most, "status": status and str(status)}
        condition = "" if status is None else "AND mailer_delivery.status = :status"
        statement = RECIPIENTS.replace("{and_status}", condition)
        with self._look() as transaction:
            found = transaction.execute(statement, values)
        return [
            BulkRecipient(number, row, address, Status(state), reply)
            for number, row, address, state, reply in found
        ]

    def find_bulk_recipient(self, bulk_id: str, address: str) -> int | None:
        """Return the delivery of a recipient, by its checked address, in any case."""
        values = {"id": bulk_id, "address": address.lower()}
        with self._look() as transaction:
            found = transaction.execute(RECIPIENT, values)
        return found[0][0] if found else None

    def load_subjects(self, bulk_ids: Collection[str]) -> dict[str, str]:
        """Return the subjects of bulk sends as they were given, by id."""
        with self._look() as transaction:
            found = transaction.execute(SUBJECTS, {"mails": packed(bulk_ids)})
        return dict[str, str](found)

    # --- decisions -------------------------------------------------------------------------------

    def change_bulk_if(
        self,
        bulk_id: str,
        leaving: Collection[BulkState],
        to: BulkState,
        *,
        reason: str | None = None,
    ) -> bool:
        """Move a bulk send out of one of these states. Return whether it was in one."""
        values = {"id": bulk_id, "to": str(to), "reason": reason}
        values["leaving"] = packed(map(str, leaving))
        return self._change_state(CHANGE_STATE, values)

    def pause_failing(self, bulk_id: str, reason: str) -> bool:
        """Pause a bulk send of which too much fails. After a resume, that is not asked again.

        Return whether it was running.
        """
        return self._change_state(PAUSE_FAILING, {"id": bulk_id, "reason": reason})

    def _change_state(self, statement: str, values: Mapping[str, Any]) -> bool:
        def change(transaction: Transaction) -> bool:
            moved = transaction.execute(statement, values) != []
            if moved:
                transaction.execute(RESET_ZONES, {"id": values["id"]})
            return moved

        return self._transact(change)

    def reschedule_if_not_started(self, bulk_id: str, starts_at: float) -> bool:
        """Let a bulk send that has not started begin at another time, before it expires."""
        waits = packed(str(state) for state in BulkState if not state.is_over)
        values = {"id": bulk_id, "starts_at": starts_at, "leaving": waits}
        return self._changes(RESCHEDULE, values)

    def cancel_if_without_key(self, bulk_id: str) -> bool:
        """Cancel a bulk send whose import stopped, unless a call with its key can go on."""
        return self._changes(CANCEL_ABANDONED, {"id": bulk_id})

    # --- the sweep -------------------------------------------------------------------------------

    def count_due(self, lane: Lane, tenant: str, *, now: float, most: int) -> int:
        """Return how many deliveries of a tenant are due in a lane, or `most` if there are more."""
        statement = DUE_IN_LANE if tenant == NO_TENANT else DUE_OF_TENANT
        values = {"lane": lane, "tenant": tenant, "now": now, "most": most}
        with self._look() as transaction:
            [(count,)] = transaction.execute(statement, values)
        return int(count)

    def release_held(self, bulk_id: str, *, now: float, most: int) -> set[int] | None:
        """Release the next deliveries of a running bulk send: held -> queued.

        Return None if there is nothing to release.
        """
        return self._leave_held(bulk_id, BulkState.RUNNING, Status.QUEUED, now=now, most=most)

    def release_held_in_zone(
        self, bulk_id: str, time_zone: str, *, now: float, most: int
    ) -> set[int] | None:
        """Release the next deliveries in a time zone: held -> queued.

        Return None if there is nothing to release.
        """
        return self._leave_held(
            bulk_id, BulkState.RUNNING, Status.QUEUED, now=now, most=most, time_zone=time_zone
        )

    def cancel_held(self, bulk_id: str, *, now: float) -> set[int] | None:
        """Cancel the next deliveries of a cancelled bulk send: held -> cancelled.

        Return None if there is nothing to cancel.
        """
        return self._leave_held(
            bulk_id, BulkState.CANCELLED, Status.CANCELLED, now=now, most=MOVED_AT_ONCE
        )

    def expire_held(self, bulk_id: str, *, now: float) -> set[int] | None:
        """Expire the next deliveries of a running bulk send: held -> expired.

        Return None if there is nothing to expire.
        """
        return self._leave_held(
            bulk_id, BulkState.RUNNING, Status.EXPIRED, now=now, most=MOVED_AT_ONCE
        )

    def _leave_held(
        self,
        bulk_id: str,
        state: BulkState,
        to: Status,
        *,
        now: float,
        most: int,
        time_zone: str | None = None,
    ) -> set[int] | None:
        """Move the next deliveries that are held, if the bulk send is in this state."""
        is_release = to is Status.QUEUED
        statement = RELEASE if is_release else FINISH_HELD
        kind = EventKind.QUEUED if is_release else EVENT_OF[to]

        def leave(transaction: Transaction) -> set[int] | None:
            values: dict[str, Any] = {"id": bulk_id, "state": str(state), "to": str(to), "now": now}
            values |= {"most": max(most, _LOOKED_AT), "time_zone": time_zone}
            # Locked first, so that nothing is held again behind the place that is looked at.
            locked = transaction.execute(LOCK_IN_STATE, values)
            found = locked
            if locked and time_zone is not None:
                found = transaction.execute(RELEASED_IN_ZONE, values)
            if not found:
                return None
            _released_to, tenant, lane = locked[0]
            following = transaction.execute(
                NEXT if time_zone is None else NEXT_IN_ZONE, {**values, "after": found[0][0]}
            )
            if not following:
                if time_zone is not None:
                    transaction.execute(NOTE_NONE_HELD, values)
                return None
            left = lock_quota(transaction, self._rules, tenant, now=now) if is_release else None
            if left == 0:
                return None
            held = [number for number, is_held in following if is_held]
            ids = held[: most if left is None else min(most, left)]
            left_to = following[-1][0] if ids == held else ids[-1]
            values |= {"ids": packed(ids), "left": len(ids), "left_to": left_to}
            if time_zone is not None:
                transaction.execute(NOTE_LEFT_IN_ZONE, values)
                values["left_to"] = 0  # it says nothing of the other zones
            transaction.execute(NOTE_LEFT, values)
            if is_release:
                values["places"] = self._places(transaction, ids, tenant, Lane(lane), now)
            if left is not None:
                use_quota(transaction, tenant, len(ids))
            return self._finish(
                transaction, statement, values, mails=(), has_bulk=not is_release, kinds=kind
            )

        return self._transact(leave)

    def _places(
        self, transaction: Transaction, ids: Sequence[int], tenant: str, lane: Lane, now: float
    ) -> str:
        """Return the ranks of deliveries of a tenant. Mail without a tenant has none."""
        if tenant == NO_TENANT:
            return packed((number, None) for number in ids)
        tenants = [tenant] * len(ids)
        ranks = turns.next_ranks(transaction, self._rules, lane, tenants, now=now)
        return packed(zip(ids, ranks, strict=True))

    def hold_again(self, bulk_id: str) -> set[int]:
        """Hold queued deliveries of a bulk send that is paused or cancelled: queued -> held."""

        def hold(transaction: Transaction) -> set[int]:
            values = {"id": bulk_id, "most": MOVED_AT_ONCE}
            if not transaction.execute(LOCK_IF_STOPPED, values):
                return set()
            held = self._moved(transaction, HOLD_AGAIN, values, kinds=None)
            transaction.execute(NOTE_HELD_AGAIN, {"id": bulk_id, "held": len(held)})
            transaction.execute(RESET_ZONES, {"id": bulk_id})
            return held

        return self._transact(hold)

    def finish_bulk_if_done(self, bulk_id: str, *, now: float) -> bool:
        """Finish a bulk send whose deliveries are all in a final state."""
        progress = self.bulk_progress(bulk_id, now=now)
        if progress.unfinished:
            return False

        def finish(transaction: Transaction) -> bool:
            finished = transaction.execute(FINISH, {"id": bulk_id, "now": now})
            for (state,) in finished if self._outlet.listens_to(EventKind.BULK_FINISHED) else ():
                transaction.events.append(
                    BulkEvent(
                        kind=EventKind.BULK_FINISHED,
                        at=rows.when(now),
                        bulk_id=bulk_id,
                        progress=replace(progress, state=BulkState(state)),
                    )
                )
            return finished != []

        return self._transact(finish)

    def sum_up_counts(self, bulk_id: str, *, at_least: int = 2) -> None:
        """Sum up the rows of counts of a bulk send, if there are so many."""
        with self._look() as transaction:
            values = {"id": bulk_id, "most": at_least}
            [(number,)] = transaction.execute(COUNT_ROWS, values)
        if number < at_least:
            return

        def sum_up(transaction: Transaction) -> None:
            sums: Counter[str] = Counter()
            for status, number in transaction.execute(TAKE_COUNTS, {"id": bulk_id}):
                sums[status] += number
            summed = [
                {"bulk_id": bulk_id, "status": status, "number": number}
                for status, number in sums.items()
            ]
            if summed:
                transaction.execute_many(INSERT_COUNT, summed)

        self._transact(sum_up)

    # --- progress --------------------------------------------------------------------------------

    def bulk_progress(self, bulk_id: str, *, now: float) -> BulkProgress:
        """Return the progress of a bulk send. Raise `UnknownMail` if none has this id."""
        values = {"id": bulk_id}
        with self._read() as transaction:
            found = transaction.execute(PROGRESS, values)
            counts = dict[str, int](transaction.execute(COUNTS, values))
            [(doubtful,)] = transaction.execute(DOUBTFUL, values)
            has_calendar = bool(found) and found[0][-1] is not None
            zones = transaction.execute(ZONES, values) if has_calendar else []
        if not found:
            raise _unknown(bulk_id)
        return rows.bulk_progress(found[0], counts, doubtful, map(rows.bulk_zone, zones), now)


def _unknown(bulk_id: str) -> UnknownMail:
    return UnknownMail(
        f"No bulk send has the id {bulk_id!r}: it was never begun here, or it has been purged."
    )
