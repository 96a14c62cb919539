"""Quotas of tenants: mail is held at intake, and released as far as the quota goes.

A quota counts mails when they are released, each once, in the transaction that releases them. Its
periods begin at full multiples of their length since 1970: a day at midnight, UTC.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

from mailer.message import Lane, Status
from mailer.message.tenants import QuotaStatus, TenantStatus
from mailer.policy import TenantRules
from mailer.store import turns
from mailer.store.moves import Moves
from mailer.store.rows import when
from mailer.store.sql import packed
from mailer.store.transactions import Transaction

# More mail of a tenant is released by the next claim or sweep.
_RELEASED_AT_ONCE = 1000
# In seconds: a period that begins so much later than the next one was written by a wrong clock.
_WRONG_CLOCK = 3600.0

# Step by step through the index, however much mail each tenant has.
WAITING_TENANTS = (
    """
WITH RECURSIVE waiting (tenant) AS (
    SELECT MIN(tenant) FROM mailer_delivery WHERE {over_quota}
    UNION ALL
    SELECT (
        SELECT MIN(tenant) FROM mailer_delivery WHERE {over_quota} AND tenant > waiting.tenant)
    FROM waiting WHERE waiting.tenant IS NOT NULL)
SELECT tenant FROM waiting WHERE tenant IS NOT NULL AND (
"""
    + " OR ".join(
        f"""EXISTS (
    SELECT 1 FROM mailer_delivery
    WHERE {{over_quota}} AND tenant = waiting.tenant AND lane = {lane:d} AND due_at <= :now
        AND (expires_at IS NULL OR expires_at > :now))
"""
        for lane in Lane
    )
    + ")"
)
USED = """
SELECT tenant, seconds, used FROM mailer_quota
WHERE began_at + seconds > :now AND began_at <= :now + seconds + :wrong
"""
# Locks the quota. If the clock was set back, the period stays the same, unless a clock that was far
# ahead has begun it.
OPEN_PERIOD = """
INSERT INTO mailer_quota (tenant, seconds, began_at, used)
VALUES (:tenant, :seconds, :began_at, 0)
ON CONFLICT (tenant, seconds) DO UPDATE SET
    used = CASE WHEN {another_period} THEN 0 ELSE mailer_quota.used END,
    began_at = CASE WHEN {another_period} THEN excluded.began_at ELSE mailer_quota.began_at END
RETURNING used
""".replace(
    "{another_period}",
    "(excluded.began_at > mailer_quota.began_at"
    " OR mailer_quota.began_at > excluded.began_at + :seconds + :wrong)",
)
FORGET = """
DELETE FROM mailer_quota WHERE began_at + seconds < :before RETURNING tenant
"""
USE = "UPDATE mailer_quota SET used = used + :number WHERE tenant = :tenant RETURNING used"
OVER_QUOTA = """
SELECT id FROM mailer_delivery
WHERE {over_quota} AND tenant = :tenant AND lane = :lane AND due_at <= :now
    AND (expires_at IS NULL OR expires_at > :now)
ORDER BY due_at LIMIT :most {lock}
"""
# Reads all mail that is queued or held, for a person.
WAITING = """
SELECT tenant, status, COUNT(*) FROM mailer_delivery
WHERE tenant <> '' AND status IN ('queued', 'held')
GROUP BY tenant, status
"""
RELEASE = """
UPDATE mailer_delivery SET status = 'queued', rank = places.rank
FROM {places}
WHERE {among_places} AND COALESCE(status, '') = 'held'
RETURNING mailer_delivery.id
"""


def lock_quota(
    transaction: Transaction, rules: TenantRules, tenant: str, *, now: float
) -> int | None:
    """Lock the quotas of a tenant. Return what is left of them, or None if it has none."""
    left = []
    for quota in sorted(rules.quotas_of(tenant), key=lambda quota: quota.seconds):
        values = {
            "tenant": tenant,
            "seconds": quota.seconds,
            "began_at": now - now % quota.seconds,
            "wrong": _WRONG_CLOCK,
        }
        [(used,)] = transaction.execute(OPEN_PERIOD, values)
        left.append(max(0, quota.amount - used))
    return min(left, default=None)


def use_quota(transaction: Transaction, tenant: str, number: int) -> None:
    """Count mails of a tenant whose quotas are locked."""
    transaction.execute(USE, {"tenant": tenant, "number": number})


class Quotas(Moves):
    """The mail of tenants that is held for their quotas."""

    def release_within_quotas(self, now: float) -> set[int]:
        """Release some mail of each tenant whose quotas are not used up: held -> queued."""
        with self._look() as transaction:
            waiting = [tenant for (tenant,) in transaction.execute(WAITING_TENANTS, {"now": now})]
            used = transaction.execute(USED, {"now": now, "wrong": _WRONG_CLOCK}) if waiting else []
        used_up = self._used_up({(tenant, seconds): number for tenant, seconds, number in used})
        released: set[int] = set()
        for tenant in waiting:
            if tenant not in used_up:
                released |= self._transact(partial(self._release, tenant=tenant, now=now))
        return released

    def purge_quotas(self, before: float) -> int:
        """Forget quotas whose last period ended before a time. Return their number."""
        return len(self._transact(lambda done: done.execute(FORGET, {"before": before})))

    def tenants(self, now: float) -> list[TenantStatus]:
        """Return the tenants that have mail waiting, or have sent mail under a quota."""
        with self._read() as transaction:
            waiting = transaction.execute(WAITING, {})
            used = transaction.execute(USED, {"now": now, "wrong": _WRONG_CLOCK})
        numbers = {(tenant, status): number for tenant, status, number in waiting}
        periods = {(tenant, seconds): number for tenant, seconds, number in used}
        names = {tenant for tenant, _status in numbers} | {tenant for tenant, _seconds in periods}
        return [
            TenantStatus(
                name=name,
                queued=numbers.get((name, Status.QUEUED), 0),
                held=numbers.get((name, Status.HELD), 0),
                quotas=tuple(
                    QuotaStatus(
                        amount=quota.amount,
                        used=periods.get((name, quota.seconds), 0),
                        ends_at=when(now - now % quota.seconds + quota.seconds),
                    )
                    for quota in self._rules.quotas_of(name)
                ),
            )
            for name in sorted(names)
        ]

    def _used_up(self, used: Mapping[tuple[str, int], int]) -> set[str]:
        """Return the tenants of which nothing more is released in the present period."""
        return {
            tenant
            for tenant, _seconds in used
            if any(
                used.get((tenant, quota.seconds), 0) >= quota.amount
                for quota in self._rules.quotas_of(tenant)
            )
        }

    def _release(self, transaction: Transaction, tenant: str, now: float) -> set[int]:
        """Release some mail of a tenant, the most urgent lane first."""
        left = lock_quota(transaction, self._rules, tenant, now=now)
        most = _RELEASED_AT_ONCE if left is None else min(left, _RELEASED_AT_ONCE)
        released: set[int] = set()
        for lane in Lane:
            values: dict[str, Any] = {"tenant": tenant, "lane": lane, "now": now}
            found = transaction.execute(OVER_QUOTA, {**values, "most": most - len(released)})
            if not found:
                continue
            ids = [number for (number,) in found]
            ranks = turns.next_ranks(transaction, self._rules, lane, [tenant] * len(ids), now=now)
            places = packed(zip(ids, ranks, strict=True))
            released |= self._moved(transaction, RELEASE, {"places": places}, kinds=None)
        if released and left is not None:
            use_quota(transaction, tenant, len(released))
        return released
