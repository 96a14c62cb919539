"""The decisions of a person: to cancel mail, to retry, resolve or hold it."""

from collections.abc import Iterable, Iterator

from mailer.message import IN_HAND, TRANSITIONS, Lane, Status, could_be_id, is_bulk_id
from mailer.message.events import EventKind
from mailer.store import outlook
from mailer.store.erasing import LOCK_MAILS
from mailer.store.moves import EVENT_OF, MOVED_AT_ONCE, Moves
from mailer.store.outlook import Outlook
from mailer.store.sql import packed, union_all
from mailer.store.transactions import Transaction

_RESTING = """
    mail_id = :mail_id AND status {leaving}
        AND id = COALESCE(CAST(:delivery_id AS bigint), id)
        AND (:to <> 'queued' OR EXISTS (
            SELECT 1 FROM mailer_message WHERE id = :mail_id AND erased_at IS NULL))
        AND (:to <> 'queued' OR NOT EXISTS (
            SELECT 1 FROM mailer_bulk WHERE id = :mail_id AND state = 'cancelled'))
        AND (:to <> 'queued' OR NOT EXISTS (
            SELECT 1 FROM mailer_bulk_recipient
            WHERE delivery_id = mailer_delivery.id AND own = ''))
"""
# Only a person moves a delivery out of a final state. It is counted again when it is finished.
UNCOUNT = f"""
INSERT INTO mailer_bulk_count (bulk_id, status, number)
SELECT mail_id, status, -COUNT(*) FROM mailer_delivery
WHERE {_RESTING} AND finished_at IS NOT NULL
GROUP BY mail_id, status
"""
SETTLE = f"""
WITH resting AS MATERIALIZED (
    SELECT id FROM mailer_delivery
    WHERE {_RESTING}
    ORDER BY id {{wait}})
UPDATE mailer_delivery
SET status = :to,
    due_at = :due_at,
    rank = NULL,
    finished_at = :finished_at,
    token = NULL,
    attempts = CASE WHEN :to = 'queued' THEN 0 ELSE attempts END,
    queued_at = CASE WHEN :to = 'queued' THEN :now ELSE queued_at END
WHERE id IN (SELECT id FROM resting)
RETURNING id
"""
_PARTS = ("{plain}", "{ranked}", "{unranked}", "{over_quota}")
DUE_BEFORE = union_all(
    f"""
    SELECT id, {{private}} AS mail_id FROM mailer_delivery
    WHERE {part} AND lane = :lane AND due_at < :before
    LIMIT :most
    """
    for part in _PARTS
)
CANCEL = """
WITH due AS MATERIALIZED (
    SELECT id FROM mailer_delivery
    WHERE id {ids} AND {waiting} AND COALESCE(due_at, :before) < :before
    ORDER BY id {wait})
UPDATE mailer_delivery
SET status = 'cancelled', due_at = NULL, finished_at = :now
WHERE id IN (SELECT id FROM due)
RETURNING id
"""
RESCHEDULE = """
WITH queued AS MATERIALIZED (
    SELECT id FROM mailer_delivery
    WHERE mail_id = :mail_id AND {waiting}
        AND id = COALESCE(CAST(:delivery_id AS bigint), id)
        AND (expires_at IS NULL OR expires_at > :due_at)
    ORDER BY id {wait})
UPDATE mailer_delivery SET due_at = :due_at, queued_at = :due_at, rank = NULL
WHERE id IN (SELECT id FROM queued)
RETURNING id
"""
HOLD = """
WITH doubtful AS MATERIALIZED (
    SELECT id FROM mailer_delivery
    WHERE status = 'doubtful' AND due_at IS NOT NULL AND lane = :lane AND queued_at < :before
    ORDER BY id {wait})
UPDATE mailer_delivery SET due_at = NULL
WHERE id IN (SELECT id FROM doubtful)
RETURNING id
"""


class Decisions(Moves):
    """The moves that a person decides."""

    def settle_if_resting(
        self, mail_id: str, to: Status, *, now: float, delivery_id: int | None = None
    ) -> set[int]:
        """Move the deliveries of a mail, or one of them, along the state chart.

        None is moved into a worker's hands, nor out of them, and none is released. A bulk send
        cancels the deliveries that it holds, and what is queued of a paused one is held at once.
        """
        if not could_be_id(mail_id):
            return set()
        has_bulk = is_bulk_id(mail_id)
        cancels_held = to is Status.CANCELLED and not has_bulk
        excluded = IN_HAND if cancels_held else IN_HAND | {Status.HELD}
        leaving = [
            str(source)
            for source, target in TRANSITIONS
            if target is to and not {source, target} & excluded
        ]
        if not leaving:
            return set()
        values = {
            "mail_id": mail_id,
            "delivery_id": delivery_id,
            "to": str(to),
            "leaving": packed(leaving),
            "due_at": now if to is Status.QUEUED else None,
            "finished_at": now if to.is_final else None,
            "now": now,
        }
        kind = EVENT_OF.get(to)

        def settle(transaction: Transaction) -> set[int]:
            # Locked, so that the mail is not erased while it is queued again.
            transaction.execute(LOCK_MAILS, {"mails": packed([mail_id])})
            if has_bulk:
                transaction.execute(UNCOUNT, values)
            moved = self._finish(
                transaction, SETTLE, values, mails=[mail_id], has_bulk=has_bulk, kinds=kind
            )
            if has_bulk and to is Status.QUEUED:
                self._hold_of_stopped(transaction, moved)
            return moved

        return self._transact(settle)

    def reschedule_if_queued(
        self, mail_id: str, due_at: float, *, delivery_id: int | None = None
    ) -> set[int]:
        """Give queued deliveries of a mail another due time, unless they would expire before."""
        return self._move(RESCHEDULE, mail_id=mail_id, due_at=due_at, delivery_id=delivery_id)

    def cancel_if_due_before(
        self, before: float, *, now: float, lanes: Iterable[Lane] = tuple(Lane)
    ) -> Iterator[set[int]]:
        """Cancel deliveries due before a time, step by step: queued or held -> cancelled."""
        for lane in lanes:
            values = {"lane": lane, "before": before, "now": now, "most": MOVED_AT_ONCE}
            kind = EventKind.CANCELLED
            yield from self._finish_in_steps(DUE_BEFORE, CANCEL, values, kind=kind)

    def hold_if_due_before(self, before: float, *, lanes: Iterable[Lane] = tuple(Lane)) -> set[int]:
        """Let doubtful deliveries that were due before a time wait for a person."""
        return set().union(*(self._move(HOLD, lane=lane, before=before) for lane in lanes))

    def outlook(self, *, now: float, most: int) -> Outlook:
        """Return the mail that will go out by itself: see `outlook.look`."""
        with self._read() as transaction:
            return outlook.look(transaction, now=now, most=most)
