"""The queue: the moves of workers and of the sweep.

Each move of a delivery is one statement, guarded by the state it leaves and by the token of the
claim. It returns the ids that moved: who comes second moves nothing.

A statement that takes many rows does so in two steps. The first chooses, guards and locks;
the second has only ids. With the guard in the second step as well, PostgreSQL would compare every
row of the queue with every chosen one whenever its statistics are from a time when the queue was
empty.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from mailer.message import Delivery, Lane, Outcome, Status, Verdict
from mailer.message.events import EventKind
from mailer.policy import Move
from mailer.store import erasing, rows
from mailer.store.moves import MOVED_AT_ONCE, Moves
from mailer.store.sql import insert_into, packed
from mailer.store.transactions import Transaction

# --- a worker's statements -----------------------------------------------------------------------
# States stand in the statements as literals: the partial indexes are found only so.

CLAIM = """
WITH due AS MATERIALIZED (
    SELECT id FROM mailer_delivery
    WHERE status = 'queued' AND lane = :lane AND due_at <= :now AND (expires_at IS NULL OR expires_at > :now) {unless_paused}
    ORDER BY due_at LIMIT {most_unless_paused} {lock})
UPDATE mailer_delivery
SET status = 'claimed', token = :token, lease_until = :lease_until, attempts = attempts + 1
WHERE id IN (SELECT id FROM due)
RETURNING {delivery}
"""
# COALESCE, here and below, keeps PostgreSQL from scanning all leases, or the whole queue, for a few
# ids.
MARK = """
UPDATE mailer_delivery SET status = 'transmitting', lease_until = :lease_until
WHERE id {ids} AND token = :token AND status = 'claimed' AND COALESCE(lease_until, 0) > :now
RETURNING id
"""
# A doubtful delivery keeps its token: if the reply comes after all, its worker may still record it.
RECORD = """
UPDATE mailer_delivery
SET status = results.status, due_at = results.due_at, finished_at = results.finished_at, reply = results.reply, relay = :relay,
    attempts = mailer_delivery.attempts - results.uncounted, doubts = mailer_delivery.doubts + results.doubts,
    token = CASE WHEN results.status = 'doubtful' THEN mailer_delivery.token END, lease_until = NULL
FROM {results}
WHERE {among_results} AND mailer_delivery.token = results.token
    AND (mailer_delivery.status = 'transmitting' OR (mailer_delivery.status = 'doubtful' AND results.status <> 'doubtful'))
RETURNING mailer_delivery.id
"""
# A delivery is doubtful here if its worker was frozen for too long: only the worker knows that it
# never began.
RELEASE = """
UPDATE mailer_delivery
SET status = 'queued', attempts = attempts - 1, token = NULL, lease_until = NULL,
    due_at = COALESCE(waits.due_at, CASE WHEN status = 'doubtful' THEN queued_at ELSE mailer_delivery.due_at END),
    doubts = CASE WHEN status = 'doubtful' THEN doubts - 1 ELSE doubts END,
    reply = CASE WHEN status = 'doubtful' THEN NULL ELSE reply END
FROM {waits}
WHERE {among_waits} AND token = :token AND status IN ('claimed', 'transmitting', 'doubtful')
RETURNING mailer_delivery.id
"""
# Two queries: no single index has all of them, and few rows have a lease.
HELD = """
SELECT {delivery} FROM mailer_delivery WHERE lease_until IS NOT NULL AND token = :token
UNION ALL
SELECT {delivery} FROM mailer_delivery WHERE status = 'doubtful' AND token = :token
"""
# Like RECORD, for a mail that could not be prepared: no relay was told of it.
SET_ASIDE = """
UPDATE mailer_delivery
SET status = results.status, due_at = results.due_at, finished_at = results.finished_at, reply = results.reply,
    attempts = mailer_delivery.attempts - results.uncounted, token = NULL, lease_until = NULL
FROM {results}
WHERE {among_results} AND mailer_delivery.token = results.token AND mailer_delivery.status = 'claimed'
RETURNING mailer_delivery.id
"""
INSERT_ATTEMPT = insert_into(
    "mailer_attempt", ("delivery_id", "at", "verdict", "phase", "reply", "relay")
)
HEAD = """
SELECT {delivery} FROM mailer_delivery
WHERE status = 'queued' AND lane = :lane AND due_at <= :now
ORDER BY due_at LIMIT :most
"""
# A delivery that another worker has claimed, and is about to release, waits as well.
IS_WAITING = """
SELECT 1 WHERE EXISTS (
    SELECT 1 FROM mailer_delivery
    WHERE status = 'queued' AND lane = :lane AND due_at > :now AND due_at <= :until AND due_at > queued_at
        AND (:domain = '' OR domain = :domain))
OR EXISTS (
    SELECT 1 FROM mailer_delivery
    WHERE lease_until IS NOT NULL AND status = 'claimed' AND lane = :lane AND token <> :token
        AND (:domain = '' OR domain = :domain))
"""
POSTPONE = """
UPDATE mailer_delivery SET due_at = waits.due_at
FROM {waits}
WHERE {among_waits} AND COALESCE(status, '') = 'queued' AND COALESCE(mailer_delivery.due_at, 0) <= :now
RETURNING mailer_delivery.id
"""
# --- the sweep's statements -----------------------------------------------------------------------
# A process that is frozen in a transaction still holds its rows: the sweep steps over them.
REQUEUE_LAPSED = """
WITH lapsed AS MATERIALIZED (
    SELECT id FROM mailer_delivery WHERE status = 'claimed' AND lease_until <= :now {lock})
UPDATE mailer_delivery SET status = 'queued', attempts = attempts - 1, token = NULL, lease_until = NULL
WHERE id IN (SELECT id FROM lapsed)
RETURNING id
"""
DOUBT_LAPSED = """
WITH lapsed AS MATERIALIZED (
    SELECT id FROM mailer_delivery WHERE status = 'transmitting' AND lease_until <= :now {lock})
UPDATE mailer_delivery
SET status = 'doubtful', doubts = doubts + 1, lease_until = NULL,
    reply = 'the worker died or lost its connection before the reply was recorded',
    due_at = CASE WHEN on_doubt = 'resend' AND doubts = 0 THEN :resend_at END
WHERE id IN (SELECT id FROM lapsed)
RETURNING id
"""
RESEND = """
WITH again AS MATERIALIZED (
    SELECT id FROM mailer_delivery
    WHERE status = 'doubtful' AND due_at <= :now AND NOT EXISTS (SELECT 1 FROM mailer_pause WHERE scope = 'all') {lock})
UPDATE mailer_delivery SET status = 'queued', token = NULL
WHERE id IN (SELECT id FROM again)
RETURNING id
"""
RECALL = """
WITH early AS MATERIALIZED (
    SELECT id FROM mailer_delivery
    WHERE status = 'queued' AND lane = :lane AND due_at > :now AND due_at <= :was
    ORDER BY due_at LIMIT :most {lock})
UPDATE mailer_delivery SET due_at = :now
WHERE id IN (SELECT id FROM early)
RETURNING id
"""
OVERDUE = """
SELECT id, {private} FROM mailer_delivery
WHERE status = 'queued' AND expires_at IS NOT NULL AND expires_at <= :now
ORDER BY expires_at LIMIT :most
"""
EXPIRE = """
WITH overdue AS MATERIALIZED (
    SELECT id FROM mailer_delivery
    WHERE id {ids} AND COALESCE(status, '') = 'queued' AND COALESCE(expires_at, :now) <= :now {lock})
UPDATE mailer_delivery
SET status = 'expired', due_at = NULL, finished_at = :now
WHERE id IN (SELECT id FROM overdue)
RETURNING id
"""
IS_DUE = """
SELECT 1 FROM mailer_delivery
WHERE status = 'queued' AND lane = :lane AND due_at <= :now AND (expires_at IS NULL OR expires_at > :now) {unless_paused}
LIMIT {most_unless_paused}
"""
NEXT_DUE = """
SELECT MIN(due_at) FROM mailer_delivery
WHERE status = 'queued' AND lane = :lane AND due_at > :now AND due_at <= :before AND NOT {paused}
"""


@dataclass(frozen=True, slots=True)
class Result:
    """The result of one try, ready to be recorded."""

    delivery: Delivery
    outcome: Outcome
    move: Move

    @property
    def event(self) -> EventKind | None:
        """Return the event of the move.

        A relay that can't be reached defers no mail: that is no try.
        """
        if self.move.to is Status.QUEUED:
            return EventKind.DEFERRED if self.outcome.verdict is Verdict.DEFERRED else None
        return _EVENTS.get(self.move.to)


_EVENTS = {
    Status.SENT: EventKind.SENT,
    Status.FAILED: EventKind.FAILED,
    Status.DOUBTFUL: EventKind.DOUBTFUL,
}


class Queue(Moves):
    """The deliveries that wait, that workers have, and that are in doubt."""

    # --- a worker's ------------------------------------------------------------------------------

    def claim_due(
        self,
        limit: int,
        *,
        token: str,
        now: float,
        lease_until: float,
        lanes: Iterable[Lane] = tuple(Lane),
    ) -> list[Delivery]:
        """queued -> claimed: the most urgent lane first, in it the longest due."""

        def claim(transaction: Transaction) -> list[Delivery]:
            claimed: list[Delivery] = []
            for lane in sorted(lanes):
                if len(claimed) == limit:
                    break
                values = {
                    "lane": lane,
                    "now": now,
                    "most": limit - len(claimed),
                    "token": token,
                    "lease_until": lease_until,
                }
                claimed += rows.deliveries(transaction.execute(CLAIM, values), token)
            return claimed

        return self._transact(claim)

    def mark_if_claimed(
        self, ids: Collection[int], *, token: str, now: float, lease_until: float
    ) -> set[int]:
        """claimed -> transmitting, if the lease still holds: from here on a death means doubt."""
        return self._move(MARK, ids=packed(ids), token=token, now=now, lease_until=lease_until)

    def record_if_transmitting(
        self, results: Iterable[Result], *, now: float, relay: str
    ) -> set[int]:
        """transmitting -> sent, failed, queued or doubtful.

        A late reply settles a doubtful delivery, too.
        """
        return self._record(RECORD, results, {"relay": relay}, now=now, relay=relay)

    def set_aside_if_claimed(
        self, results: Iterable[Result], *, now: float, relay: str
    ) -> set[int]:
        """claimed -> queued or failed: mail that could not be prepared, with the reason in its history."""
        return self._record(SET_ASIDE, results, {}, now=now, relay=relay)

    def _record(
        self,
        statement: str,
        results: Iterable[Result],
        values: Mapping[str, str],
        *,
        now: float,
        relay: str,
    ) -> set[int]:
        results = sorted(results, key=lambda result: result.delivery.id)
        packed_results = packed(
            rows.result_row(one.delivery, one.outcome, one.move, now) for one in results
        )
        mails = {result.delivery.mail_id for result in results}
        kinds = {one.delivery.id: kind for one in results if (kind := one.event) is not None}

        def record(transaction: Transaction) -> set[int]:
            given = {"results": packed_results, **values}
            moved = self._finish(transaction, statement, given, mails=mails, kinds=kinds, now=now)
            tries = [
                rows.attempt_row(one.delivery.id, one.outcome, now, relay)
                for one in results
                if one.outcome.verdict is not Verdict.SENT and one.delivery.id in moved
            ]
            if tries:
                transaction.execute_many(INSERT_ATTEMPT, tries)
            return moved

        return self._transact(record)

    def release_if_held(self, due_at: Mapping[int, float | None], *, token: str) -> set[int]:
        """claimed, transmitting or doubtful -> queued, as if never claimed, with a later due time if one is given.

        Only the worker knows that it did not begin: the sweep may have called it doubtful meanwhile.
        """
        return self._move(RELEASE, waits=packed(due_at.items()), token=token) if due_at else set()

    def postpone_if_queued(self, due_at: Mapping[int, float], *, now: float) -> set[int]:
        """Give due deliveries a later due time: they wait for their turn at a limit."""
        return self._move(POSTPONE, waits=packed(due_at.items()), now=now)

    def lock_sensitive(self, mail_ids: Collection[str]) -> None:
        """Lock sensitive mails inside `together()`, before the first of several moves that may be their last."""
        self._transact(lambda transaction: erasing.lock_sensitive(transaction, mail_ids))

    def load_held(self, token: str) -> list[Delivery]:
        """Return the deliveries that a worker has in its hands, or had before they came into doubt."""
        with self._look() as transaction:
            return rows.deliveries(transaction.execute(HELD, {"token": token}), token)

    def head(self, lane: Lane, *, now: float, most: int) -> list[Delivery]:
        """Return the due deliveries of a lane that nobody has claimed, the longest due first."""
        with self._look() as transaction:
            found = transaction.execute(HEAD, {"lane": lane, "now": now, "most": most})
        return rows.deliveries(found, token="")

    def is_waiting(
        self, lanes: Iterable[Lane], domain: str, *, now: float, until: float, token: str
    ) -> bool:
        """Return whether mail of a domain, or of any domain if it is empty, is due again by then.

        The deliveries of the worker with this token do not count.
        """
        values = {"domain": domain, "now": now, "until": until, "token": token}
        with self._look() as transaction:
            return any(transaction.execute(IS_WAITING, {"lane": lane, **values}) for lane in lanes)

    # --- the sweep's -----------------------------------------------------------------------------

    def requeue_lapsed_claims(self, now: float) -> set[int]:
        """claimed -> queued: their worker is gone, and never began."""
        return self._move(REQUEUE_LAPSED, now=now)

    def doubt_lapsed_transmissions(self, now: float, *, resend_at: float) -> set[int]:
        """transmitting -> doubtful: their worker is gone, and nobody knows how far it came."""
        return self._move(DOUBT_LAPSED, kind=EventKind.DOUBTFUL, now=now, resend_at=resend_at)

    def resend_doubtful(self, now: float) -> set[int]:
        """doubtful -> queued, where the mail wants it and the time has come."""
        return self._move(RESEND, now=now)

    def expire_overdue(self, now: float) -> set[int]:
        """queued -> expired: too late to be of use. Step by step, so that a million hold up nobody."""
        values = {"now": now, "most": MOVED_AT_ONCE}
        kind = EventKind.EXPIRED
        steps = self._finish_in_steps(OVERDUE, EXPIRE, values, kind=kind, now=now, waits=False)
        return set().union(*steps)

    def recall_queued(self, now: float, *, was: float) -> int:
        """Make deliveries due again that were due before the clock was set back.

        Return the number of deliveries.
        """
        recalled = 0
        for lane in Lane:
            while step := self._move(RECALL, lane=lane, now=now, was=was, most=MOVED_AT_ONCE):
                recalled += len(step)
        return recalled

    def is_due(self, now: float) -> bool:
        """Return whether there is anything to claim."""
        with self._look() as transaction:
            return any(
                transaction.execute(IS_DUE, {"lane": lane, "now": now, "most": 1}) for lane in Lane
            )

    def next_due(self, now: float, *, before: float) -> float | None:
        """Return when the next delivery gets due. Return None if that is not before a time."""
        values = {"now": now, "before": before}
        with self._look() as transaction:
            found = [transaction.execute(NEXT_DUE, {"lane": lane, **values}) for lane in Lane]
        return min((moment for [(moment,)] in found if moment is not None), default=None)
