"""The fair order of the queue: tenants take turns, and retries let first tries pass.

The queue of a lane has three parts, each with an index:

- plain: first tries of mail without a tenant, in the order of `due_at`.
- unranked: mail of tenants, and retries, until they are due and get their rank.
- ranked: mail in the order of `rank`. It is due, whatever the clock says now.

A claim ranks what has become due, and merges plain and ranked mail: a rank is a time, like
`due_at`. The ranks of a tenant's mails lie a minute apart, so a thousand mails of one tenant leave
room for all others. Retries without a tenant are ranked like the mail of a tenant of their own.

No row holds the tail of a tenant's queue: it is looked up among the mail that is queued. Two calls
at the same time may rank two mails of a tenant alike, which is harmless.
"""

from collections import defaultdict
from collections.abc import Sequence

from mailer.message import Lane
from mailer.policy import TenantRules, ranks
from mailer.store.callers import CallersTransaction
from mailer.store.sql import packed, union_all
from mailer.store.transactions import Row, Transaction

ENDS = """
SELECT
    flows.tenant,
    (SELECT MAX(rank) FROM mailer_delivery
     WHERE status = 'queued' AND rank IS NOT NULL AND lane = :lane AND tenant = flows.tenant),
    (SELECT MIN(rank) FROM mailer_delivery WHERE {ranked} AND lane = :lane)
FROM {flows}
"""
# Mail that waited at a limit or for a relay has had its turn: it does not queue up again.
UNRANKED = union_all(
    f"""
    SELECT id, lane, tenant, attempts = 0 AND due_at > queued_at AS has_had_turn
    FROM mailer_delivery
    WHERE {{unranked}} AND lane = {lane:d} AND due_at <= :now
    ORDER BY due_at LIMIT :most {{lock}}
    """
    for lane in Lane
)
IS_UNRANKED = union_all(
    f"""
    SELECT 1 FROM mailer_delivery
    WHERE {{unranked}} AND lane = {lane:d} AND due_at <= :now LIMIT 1
    """
    for lane in Lane
)
RANK = """
UPDATE mailer_delivery SET rank = places.rank
FROM {places}
WHERE {among_places} AND COALESCE(status, '') = 'queued'
RETURNING mailer_delivery.id
"""


def next_ranks(
    transaction: Transaction | CallersTransaction,
    rules: TenantRules,
    lane: Lane,
    tenants: Sequence[str],
    *,
    now: float,
    behind_tails: bool = True,
) -> list[float]:
    """Return the rank of another mail of each of these tenants, in this order."""
    flows = [(tenant,) for tenant in dict.fromkeys(tenants)]
    found = transaction.execute(ENDS, {"lane": lane, "flows": packed(flows)})
    head: float | None = found[0][2] if found else None
    tails = {tenant: tail for tenant, tail, _head in found if tail is not None and behind_tails}
    return ranks(tenants, rules, now=now, head=head, tails=tails)


def rank_due(transaction: Transaction, rules: TenantRules, *, now: float, most: int) -> int:
    """Rank mail that has become due, at most so many in each lane. Return their number."""
    by_lane: dict[tuple[int, bool], list[Row]] = defaultdict(list)
    for row in transaction.execute(UNRANKED, {"now": now, "most": most}):
        by_lane[row[1], bool(row[3])].append(row)
    places: list[tuple[int, float]] = []
    for (lane, has_had_turn), due in by_lane.items():
        tenants = [row[2] for row in due]
        found = next_ranks(
            transaction, rules, Lane(lane), tenants, now=now, behind_tails=not has_had_turn
        )
        places += [(row[0], rank) for row, rank in zip(due, found, strict=True)]
    if places:
        transaction.execute(RANK, {"places": packed(sorted(places))})
    return len(places)
