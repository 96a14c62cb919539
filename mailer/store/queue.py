"""The queue: the moves of workers and of the sweep.

Each move of a delivery is one statement, guarded by the state it leaves and by the token of the
claim. It returns the ids of the rows it moved: of two at the same time, the second moves nothing.

The statistics of PostgreSQL may be from a time when the queue was empty. Two habits keep its
planner from reading the whole queue then:

- A statement that chooses many rows does so in a WITH, which guards and locks them; the UPDATE has
  only their ids. With the guard in both, PostgreSQL would compare each chosen row with each one.
- A statement that is given ids wraps the column of a partial index in COALESCE, so that PostgreSQL
  finds the rows by their ids and not by that index.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from mailer.message import Delivery, Lane, Outcome, Status, Verdict
from mailer.message.events import EventKind
from mailer.policy import Move
from mailer.store import erasing, rows
from mailer.store.claims import Claims
from mailer.store.moves import EVENT_OF, MOVED_AT_ONCE
from mailer.store.sql import insert_into, packed
from mailer.store.transactions import Transaction

# --- a worker's statements -----------------------------------------------------------------------
# States are literals, not parameters: otherwise, the partial indexes would not be used.

MARK = """
UPDATE mailer_delivery SET status = 'transmitting', lease_until = :lease_until
WHERE id {ids} AND token = :token AND status = 'claimed' AND COALESCE(lease_until, 0) > :now
RETURNING id
"""
# A doubtful delivery keeps its token: if the reply comes after all, its worker may still record it.
RECORD = """
UPDATE mailer_delivery
SET status = results.status,
    due_at = results.due_at,
    rank = NULL,
    finished_at = results.finished_at,
    reply = results.reply,
    relay = :relay,
    attempts = mailer_delivery.attempts - results.uncounted,
    doubts = mailer_delivery.doubts + results.doubts,
    token = CASE WHEN results.status = 'doubtful' THEN mailer_delivery.token END,
    lease_until = NULL
FROM {results}
WHERE {among_results} AND mailer_delivery.token = results.token
    AND (mailer_delivery.status = 'transmitting'
        OR (mailer_delivery.status = 'doubtful' AND results.status <> 'doubtful'))
RETURNING mailer_delivery.id
"""
# A delivery is doubtful here if its worker was frozen for too long: only the worker knows that it
# never began.
RELEASE = """
UPDATE mailer_delivery
SET status = 'queued',
    attempts = attempts - 1,
    token = NULL,
    lease_until = NULL,
    due_at = COALESCE(
        waits.due_at,
        CASE WHEN status = 'doubtful' THEN queued_at ELSE mailer_delivery.due_at END),
    rank = CASE WHEN waits.due_at IS NULL AND status <> 'doubtful' THEN rank END,
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
# Like RECORD, for a mail that could not be prepared: no relay was asked.
SET_ASIDE = """
UPDATE mailer_delivery
SET status = results.status,
    due_at = results.due_at,
    rank = NULL,
    finished_at = results.finished_at,
    reply = results.reply,
    attempts = mailer_delivery.attempts - results.uncounted,
    token = NULL,
    lease_until = NULL
FROM {results}
WHERE {among_results} AND mailer_delivery.token = results.token
    AND mailer_delivery.status = 'claimed'
RETURNING mailer_delivery.id
"""
INSERT_ATTEMPT = insert_into(
    "mailer_attempt", ("delivery_id", "at", "verdict", "phase", "reply", "relay")
)
# A delivery that another worker has claimed, and is about to release, waits as well.
IS_WAITING = """
SELECT 1 WHERE EXISTS (
    SELECT 1 FROM mailer_delivery
    WHERE {plain} AND lane = :lane AND due_at > :now AND due_at <= :until
        AND due_at > queued_at AND (:domain = '' OR domain = :domain))
OR EXISTS (
    SELECT 1 FROM mailer_delivery
    WHERE {unranked} AND lane = :lane AND due_at > :now AND due_at <= :until
        AND due_at > queued_at AND (:domain = '' OR domain = :domain))
OR EXISTS (
    SELECT 1 FROM mailer_delivery
    WHERE lease_until > :now - 60 AND status = 'claimed' AND lane = :lane AND token <> :token
        AND (:domain = '' OR domain = :domain))
"""
# Rows are locked in the order of `waits`, which is sorted by id. To lock them in a WITH, as others
# do, would take three times as long, and this moves 5000 at once.
POSTPONE = """
UPDATE mailer_delivery SET due_at = waits.due_at, rank = NULL
FROM {waits}
WHERE {among_waits} AND COALESCE(status, '') = 'queued'
    AND COALESCE(mailer_delivery.due_at, :now + 1) <= :now
RETURNING mailer_delivery.id
"""

# --- the sweep's statements ----------------------------------------------------------------------
# A process that is frozen in a transaction still holds its rows, so the sweep skips locked rows.

REQUEUE_LAPSED = """
WITH lapsed AS MATERIALIZED (
    SELECT id FROM mailer_delivery
    WHERE status = 'claimed' AND lease_until >= :lapsed_from AND lease_until <= :now {lock})
UPDATE mailer_delivery
SET status = 'queued', attempts = attempts - 1, token = NULL, lease_until = NULL
WHERE id IN (SELECT id FROM lapsed)
RETURNING id
"""
DOUBT_LAPSED = """
WITH lapsed AS MATERIALIZED (
    SELECT id FROM mailer_delivery
    WHERE status = 'transmitting' AND lease_until >= :lapsed_from AND lease_until <= :now {lock})
UPDATE mailer_delivery
SET status = 'doubtful',
    doubts = doubts + 1,
    rank = NULL,
    lease_until = NULL,
    reply = 'the worker died or lost its connection before the reply was recorded',
    due_at = CASE WHEN on_doubt = 'resend' AND doubts = 0 THEN :resend_at END
WHERE id IN (SELECT id FROM lapsed)
RETURNING id
"""
RESEND = """
WITH again AS MATERIALIZED (
    SELECT id FROM mailer_delivery
    WHERE status = 'doubtful' AND due_at <= :now
        AND NOT EXISTS (SELECT 1 FROM mailer_pause WHERE scope = 'all') {lock})
UPDATE mailer_delivery SET status = 'queued', token = NULL
WHERE id IN (SELECT id FROM again)
RETURNING id
"""
RESEND_OF = RESEND.replace(
    "WHERE status = 'doubtful'", "WHERE mail_id {mails} AND COALESCE(status, '') = 'doubtful'"
)
OVERDUE = """
SELECT id, {private} FROM mailer_delivery
WHERE expires_at IS NOT NULL AND (status = 'queued' OR ({over_quota})) AND expires_at <= :now
ORDER BY expires_at LIMIT :most
"""
OVERDUE_OF = """
SELECT id, {private} FROM mailer_delivery
WHERE mail_id {mails} AND {waiting} AND expires_at <= :now
ORDER BY expires_at LIMIT :most
"""
EXPIRE = """
WITH overdue AS MATERIALIZED (
    SELECT id FROM mailer_delivery
    WHERE id {ids} AND {waiting} AND COALESCE(expires_at, :now + 1) <= :now
    {lock})
UPDATE mailer_delivery
SET status = 'expired', due_at = NULL, finished_at = :now
WHERE id IN (SELECT id FROM overdue)
RETURNING id
"""


@dataclass(frozen=True, slots=True)
class Result:
    """The result of one try, ready to be recorded."""

    delivery: Delivery
    outcome: Outcome
    move: Move
    #: Whether the mail may be sensitive: its row is locked then, to be erased with the last result.
    may_be_sensitive: bool = True

    @property
    def event(self) -> EventKind | None:
        """Return the event of the move. A mail whose relay can't be reached is not deferred."""
        if self.move.to is Status.QUEUED:
            return EventKind.DEFERRED if self.outcome.verdict is Verdict.DEFERRED else None
        return EVENT_OF.get(self.move.to)


class Queue(Claims):
    """The deliveries that are queued, in the hands of workers, or doubtful."""

    # --- a worker's ------------------------------------------------------------------------------

    def mark_if_claimed(
        self, ids: Collection[int], *, token: str, now: float, lease_until: float
    ) -> set[int]:
        """Mark deliveries as begun while the lease holds: claimed -> transmitting."""
        return self._move(MARK, ids=packed(ids), token=token, now=now, lease_until=lease_until)

    def record_if_transmitting(
        self, results: Iterable[Result], *, now: float, relay: str
    ) -> set[int]:
        """Record results: transmitting, or doubtful if late -> sent, failed, queued or doubtful."""
        return self._record(RECORD, results, now=now, relay=relay)

    def set_aside_if_claimed(
        self, results: Iterable[Result], *, now: float, relay: str
    ) -> set[int]:
        """Record why mail could not be prepared: claimed -> queued or failed."""
        return self._record(SET_ASIDE, results, now=now, relay=relay)

    def _record(
        self, statement: str, results: Iterable[Result], *, now: float, relay: str
    ) -> set[int]:
        results = sorted(results, key=lambda result: result.delivery.id)
        packed_results = packed(
            rows.result_row(one.delivery, one.outcome, one.move, now) for one in results
        )
        values = {"results": packed_results, "relay": relay, "now": now}
        mails = {one.delivery.mail_id for one in results if one.may_be_sensitive}
        has_bulk = any(one.delivery.is_bulk for one in results)
        kinds = {one.delivery.id: kind for one in results if (kind := one.event) is not None}

        def record(transaction: Transaction) -> set[int]:
            moved = self._finish(
                transaction, statement, values, mails=mails, has_bulk=has_bulk, kinds=kinds
            )
            tries = [
                rows.attempt_row(one.delivery.id, one.outcome, now, relay)
                for one in results
                if one.outcome.verdict is not Verdict.SENT and one.delivery.id in moved
            ]
            if tries:
                transaction.execute_many(INSERT_ATTEMPT, tries)
            return moved

        return self._transact(record)

    def release_if_in_hand(self, due_at: Mapping[int, float | None], *, token: str) -> set[int]:
        """Give back deliveries that were not begun: claimed, transmitting or doubtful -> queued.

        They are as before the claim, but for a later due time, if one is given. A delivery is
        doubtful if its lease was over before its worker could say that it had not begun.
        """
        return self._move(RELEASE, waits=packed(due_at.items()), token=token) if due_at else set()

    def postpone_if_queued(self, due_at: Mapping[int, float], *, now: float) -> set[int]:
        """Give deliveries that are due a later due time: they wait for a limit, or for a relay."""
        return self._move(POSTPONE, waits=packed(sorted(due_at.items())), now=now)

    def lock_sensitive(self, mail_ids: Collection[str]) -> None:
        """Lock sensitive mails before the first of several moves inside `together()`."""
        self._transact(lambda transaction: erasing.lock_sensitive(transaction, mail_ids))

    def load_in_hand(self, token: str) -> list[Delivery]:
        """Return the deliveries of a claim: those in a worker's hands, and the doubtful ones."""
        with self._look() as transaction:
            return rows.deliveries(transaction.execute(HELD, {"token": token}), token)

    def is_waiting(
        self, lanes: Iterable[Lane], domain: str, *, now: float, until: float, token: str
    ) -> bool:
        """Return whether mail of a domain is waiting that is due again by the time `until`.

        An empty domain stands for any domain. Deliveries of the claim `token` do not count.
        """
        values = {"domain": domain, "now": now, "until": until, "token": token}
        with self._look() as transaction:
            return any(transaction.execute(IS_WAITING, {"lane": lane, **values}) for lane in lanes)

    # --- the sweep's -----------------------------------------------------------------------------

    def requeue_lapsed_claims(self, now: float) -> set[int]:
        """Requeue deliveries whose worker is gone, and has not begun them: claimed -> queued."""
        with self._marks.of("requeue") as (start, mark):
            moved = self._move(REQUEUE_LAPSED, now=now, lapsed_from=start.time)
            mark.reach(time=now)
        return moved

    def doubt_lapsed_transmissions(self, now: float, *, resend_at: float) -> set[int]:
        """Doubt deliveries whose worker is gone since it began them: transmitting -> doubtful."""
        values = {"now": now, "resend_at": resend_at}
        with self._marks.of("doubt") as (start, mark):
            values["lapsed_from"] = start.time
            moved = self._move(DOUBT_LAPSED, kind=EventKind.DOUBTFUL, **values)
            mark.reach(time=now)
        return moved

    def resend_doubtful(self, now: float, mails: Collection[str] | None = None) -> set[int]:
        """Requeue doubtful deliveries that are to be sent again by now: doubtful -> queued.

        Those of a bulk send that is stopped are held at once. With `mails`, the ids of mails,
        requeue those of no other mail.
        """
        statement = RESEND if mails is None else RESEND_OF
        values = {"now": now, "mails": packed(mails or ())}

        def resend(transaction: Transaction) -> set[int]:
            resent = self._moved(transaction, statement, values, kinds=None)
            self._hold_of_stopped(transaction, resent)
            return resent

        return self._transact(resend)

    def expire_overdue(self, now: float, mails: Collection[str] | None = None) -> set[int]:
        """Expire deliveries after their `expires_at`, step by step: queued or held -> expired.

        With `mails`, the ids of mails, expire those of no other mail.
        """
        values: dict[str, Any] = {"now": now, "most": MOVED_AT_ONCE}
        choose = OVERDUE
        if mails is not None:
            choose, values["mails"] = OVERDUE_OF, packed(mails)
        kind = EventKind.EXPIRED
        return set().union(*self._finish_in_steps(choose, EXPIRE, values, kind=kind, waits=False))
