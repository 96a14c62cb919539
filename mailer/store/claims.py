"""Claims: the next due deliveries of the queue, and the questions about them.

The queue has parts, which `turns.py` describes, and `marks.py` the places where claims start.
"""

from collections.abc import Collection, Iterable, Mapping
from functools import partial
from typing import Any

from mailer.message import Delivery, Lane, id_at
from mailer.store import rows, turns
from mailer.store.moves import MOVED_AT_ONCE, Moves
from mailer.store.sql import packed, union_all
from mailer.store.transactions import Row, Transaction

# States are literals, not parameters: otherwise, the partial indexes would not be used.

_CLAIM_DUE = """
UPDATE mailer_delivery
SET status = 'claimed', token = :token, lease_until = :lease_until, attempts = attempts + 1
WHERE id IN (SELECT id FROM due)
RETURNING {delivery}
"""
CLAIM = f"""
WITH plain AS MATERIALIZED (
    SELECT id, due_at AS turn FROM mailer_delivery
    WHERE {{plain}} AND lane = :lane AND due_at >= :due_from AND due_at <= :now
        AND (expires_at IS NULL OR expires_at > :now) {{unless_paused}}
    ORDER BY due_at LIMIT {{most_unless_paused}} {{lock}}),
ranked AS MATERIALIZED (
    SELECT id, rank AS turn FROM mailer_delivery
    WHERE {{ranked}} AND lane = :lane AND rank >= :rank_from
        AND (expires_at IS NULL OR expires_at > :now) {{unless_paused}}
    ORDER BY rank LIMIT {{most_unless_paused}} {{lock}}),
due AS MATERIALIZED (
    SELECT id FROM (SELECT id, turn FROM plain UNION ALL SELECT id, turn FROM ranked) AS merged
    ORDER BY turn LIMIT :most)
{_CLAIM_DUE}"""
CLAIM_OF = f"""
WITH due AS MATERIALIZED (
    SELECT id FROM mailer_delivery
    WHERE mail_id {{mails}} AND COALESCE(status, '') = 'queued' AND lane = :lane
        AND due_at <= :now
        AND (expires_at IS NULL OR expires_at > :now) {{unless_paused}}
    ORDER BY due_at LIMIT {{most_unless_paused}} {{lock}})
{_CLAIM_DUE}"""
HEAD = union_all(
    f"""
    SELECT {{delivery}} FROM mailer_delivery
    WHERE {part} AND lane = :lane ORDER BY {order} LIMIT :most
    """
    for part, order in (("{plain} AND due_at <= :now", "due_at"), ("{ranked}", "rank"))
)
RECALL = """
WITH early AS MATERIALIZED (
    SELECT id FROM mailer_delivery
    WHERE {part} AND lane = :lane AND due_at > :now AND due_at <= :was
        AND {mail_id_by_byte} > :made_after
    ORDER BY due_at LIMIT :most {lock})
UPDATE mailer_delivery SET due_at = :now
WHERE id IN (SELECT id FROM early)
RETURNING id
"""
RECALLS = tuple(
    RECALL.replace("{part}", part) for part in ("{plain}", "{unranked}", "{over_quota}")
)
_DUE_PARTS = {
    "{plain} AND due_at >= :due_from AND due_at <= :now": "due_at",
    "{ranked} AND rank >= :rank_from": "rank",
    "{unranked} AND due_at <= :now": "due_at",
}
IS_DUE = union_all(
    f"""
    SELECT due_at, rank FROM mailer_delivery
    WHERE {part} AND lane = :lane
        AND (expires_at IS NULL OR expires_at > :now) {{unless_paused}}
    ORDER BY {order} LIMIT {{most_unless_paused}}
    """
    for part, order in _DUE_PARTS.items()
)
NEXT_DUE = """
SELECT MIN(due_at) FROM (
    SELECT MIN(due_at) AS due_at FROM mailer_delivery
    WHERE {plain} AND lane = :lane AND due_at > :now AND due_at <= :before
    UNION ALL
    SELECT MIN(due_at) FROM mailer_delivery
    WHERE {unranked} AND lane = :lane AND due_at > :now AND due_at <= :before) AS coming
WHERE NOT {paused}
"""

# A claim ranks more mail than it takes, so that what becomes due at once is soon in order.
_RANKED_AT_ONCE = 2


class Claims(Moves):
    """The mail that is due next."""

    def claim_due(
        self,
        limit: int,
        *,
        token: str,
        now: float,
        lease_until: float,
        lanes: Iterable[Lane] = tuple(Lane),
        mails: Collection[str] | None = None,
    ) -> list[Delivery]:
        """Claim due deliveries, the most urgent lane first, the longest due: queued -> claimed.

        A part of the claim is kept for each less urgent lane that has due mail, so that none
        starves. With `mails`, the ids of mails, claim those of no other mail.
        """
        claim_in = self._claim_in_order if mails is None else _claim_of_mails
        values: dict[str, Any] = {"now": now, "token": token, "lease_until": lease_until}
        if mails is not None:
            values["mails"] = packed(mails)
        urgent_first = sorted(lanes)
        kept = self._lane_shares.take(limit, urgent_first)

        def claim(transaction: Transaction) -> list[Delivery]:
            if mails is None:
                self._count_dead_rows(transaction)
                turns.rank_due(transaction, self._rules, now=now, most=_RANKED_AT_ONCE * limit)
            claimed: dict[Lane, list[Delivery]] = {lane: [] for lane in urgent_first}

            def take(lane: Lane, kept_for_others: int) -> bool:
                """Claim mail of a lane. Return whether it may have more."""
                most = limit - kept_for_others - sum(map(len, claimed.values()))
                if most <= 0:
                    return True
                found = claim_in(transaction, {**values, "lane": lane, "most": most})
                claimed[lane] += rows.deliveries(found, token)
                return len(found) == most

            full = [
                lane
                for lane in urgent_first
                if take(lane, sum(part for other, part in kept.items() if other > lane))
            ]
            for lane in full:
                take(lane, 0)
            return [one for of_lane in claimed.values() for one in of_lane]

        return self._transact(claim)

    def _claim_in_order(self, transaction: Transaction, values: Mapping[str, Any]) -> list[Row]:
        with self._marks.of(("claim", values["lane"])) as (start, mark):
            starts = {"due_from": start.time, "rank_from": start.rank}
            found = transaction.execute(CLAIM, {**values, **starts})
            # If it is full, there may be more of either kind.
            now = None if len(found) == values["most"] else values["now"]
            claimed = [rows.place(row) for row in found]
            mark.reach(**rows.first_places(claimed, if_none=now))
        return found

    def _count_dead_rows(self, transaction: Transaction) -> None:
        if not self._sqlite:
            self._marks.count_dead_rows(transaction)

    def rank_due(self, now: float) -> int:
        """Rank mail of tenants, and retries, that have become due. Return their number."""
        with self._look() as transaction:
            is_any_due = bool(transaction.execute(turns.IS_UNRANKED, {"now": now}))
        rank = partial(turns.rank_due, rules=self._rules, now=now, most=MOVED_AT_ONCE)
        return sum(iter(lambda: self._transact(rank), 0)) if is_any_due else 0

    def head(self, lane: Lane, *, now: float, most: int) -> list[Delivery]:
        """Return the first deliveries of a lane that are due, the longest due first."""
        with self._look() as transaction:
            found = transaction.execute(HEAD, {"lane": lane, "now": now, "most": most})
        return rows.deliveries(found, token="")[:most]

    def recall_queued(self, now: float, *, was: float, made_after: float = 0.0) -> int:
        """Make deliveries due now that were due by `was`, before the clock was set back.

        Return the number of deliveries. Only mail that was made after a time is looked at.
        """
        made, most = id_at(made_after), MOVED_AT_ONCE
        recalled = 0
        for lane in Lane:
            for recall in RECALLS:
                while step := self._move(
                    recall, lane=lane, now=now, was=was, made_after=made, most=most
                ):
                    recalled += len(step)
        return recalled

    def is_due(self, now: float, lanes: Iterable[Lane] = tuple(Lane)) -> bool:
        """Return whether mail of these lanes is due that no person has paused."""
        with self._look() as transaction:
            self._count_dead_rows(transaction)
            return any(self._is_due_in(transaction, lane, now) for lane in lanes)

    def _is_due_in(self, transaction: Transaction, lane: Lane, now: float) -> bool:
        with self._marks.of(("is due", lane)) as (start, mark):
            values: dict[str, Any] = {"lane": lane, "now": now, "most": 1}
            values |= {"due_from": start.time, "rank_from": start.rank}
            found = transaction.execute(IS_DUE, values)
            mark.reach(**rows.first_places(found, if_none=now))
        return bool(found)

    def next_due(self, now: float, *, before: float) -> float | None:
        """Return when the next delivery gets due. Return None if none does by the time `before`."""
        values = {"now": now, "before": before}
        with self._look() as transaction:
            found = [transaction.execute(NEXT_DUE, {"lane": lane, **values}) for lane in Lane]
        return min((moment for [(moment,)] in found if moment is not None), default=None)


def _claim_of_mails(transaction: Transaction, values: Mapping[str, Any]) -> list[Row]:
    return transaction.execute(CLAIM_OF, values)
