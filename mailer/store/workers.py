"""Workers: a row for each process, renewed every few seconds, and the chores that they share."""

from collections.abc import Collection
from dataclasses import dataclass, fields

from mailer.message import Lane
from mailer.store.database import Database
from mailer.store.sql import union_all
from mailer.store.transactions import Transaction

BEAT = """
INSERT INTO mailer_worker (id, machine, pid, version, lanes, started_at, seen_at, delivered_at)
VALUES (:id, :machine, :pid, :version, :lanes, :started_at, :seen_at, :delivered_at)
ON CONFLICT (id) DO UPDATE SET seen_at = excluded.seen_at, delivered_at = excluded.delivered_at
"""
LEAVE = "DELETE FROM mailer_worker WHERE id = :id"
FORGET_WORKERS = "DELETE FROM mailer_worker WHERE seen_at < :before OR seen_at > :after"
WORKERS = """
SELECT id, machine, pid, version, lanes, started_at, seen_at, delivered_at FROM mailer_worker
WHERE seen_at >= :since AND seen_at <= :until ORDER BY seen_at DESC
"""
LAST_SEEN = """
SELECT (SELECT MAX(seen_at) FROM mailer_worker WHERE seen_at <= :until),
    (SELECT due_at FROM mailer_chore WHERE name = :sweep AND due_at <= :until)
"""
# Mail of a tenant with a quota begins as held, and only workers release it.
_DUE_PARTS = (
    "{plain} AND due_at <= :now",
    "{ranked}",
    "{unranked} AND due_at <= :now",
    "{over_quota} AND due_at <= :now",
)
_DUE = union_all(
    f"""
    SELECT mail_id FROM mailer_delivery
    WHERE {part} AND lane = :lane
        AND (expires_at IS NULL OR expires_at > :now) {{unless_paused}}
    LIMIT {{most_unless_paused}}
    """
    for part in _DUE_PARTS
)
COUNT_DUE = f"""
SELECT COUNT(*), COUNT(DISTINCT mail_id) FROM (
    SELECT mail_id FROM ({_DUE}) AS due LIMIT {{most_unless_paused}}) AS counted
"""
# A date after :latest was written by a clock that ran ahead: it must not stop the chore until then.
CHORE_IS_DONE = """
SELECT 1 FROM mailer_chore
WHERE name = :name AND due_at > :now AND due_at <= :latest
"""
TAKE_CHORE = """
INSERT INTO mailer_chore (name, due_at) VALUES (:name, :next)
ON CONFLICT (name) DO UPDATE SET due_at = :next
WHERE mailer_chore.due_at <= :now OR mailer_chore.due_at > :latest
RETURNING name
"""

#: The chore that one worker does each time. Its row says when it is due again.
SWEEP = "mailer.sweep"
#: Deliveries are counted up to this number, since counting more would take long.
MAX_COUNTED = 10_000

# All in seconds. The row of a worker is deleted after such a silence.
_FORGOTTEN_AFTER = 3600.0
# A time that is further in the future was written by a clock that was wrong.
_SKEW = 60.0
# Clocks of machines may differ by so much, or by the period of a chore if that is longer.
_CLOCKS_DIFFER = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """A worker, by the main process of its pool."""

    id: str
    machine: str
    pid: int
    version: str
    lanes: str
    started_at: float
    seen_at: float
    delivered_at: float | None = None  #: when a relay last accepted a mail from its pool


_NAMES = tuple(field.name for field in fields(Worker))


@dataclass(frozen=True, slots=True)
class Due:
    """The number of mails that are due now, or a lower bound if not all were counted."""

    mails: int
    is_all: bool


class Workers(Database):
    """The workers that deliver the mail of this database."""

    def beat(self, worker: Worker) -> None:
        """Renew the row of a worker, and delete those of workers that were silent for long."""
        now = worker.seen_at

        def beat(transaction: Transaction) -> None:
            transaction.execute(BEAT, {name: getattr(worker, name) for name in _NAMES})
            old = {"before": now - _FORGOTTEN_AFTER, "after": now + _SKEW}
            transaction.execute(FORGET_WORKERS, old)

        self._transact(beat)

    def leave(self, worker_id: str) -> None:
        """Delete the row of a worker that stops."""
        self._transact(lambda transaction: transaction.execute(LEAVE, {"id": worker_id}))

    def present_workers(self, now: float, *, silent: float) -> list[Worker]:
        """Return the workers that were seen within `silent` seconds, the latest first."""
        with self._look() as transaction:
            found = transaction.execute(WORKERS, {"since": now - silent, "until": now + _SKEW})
        return [Worker(**dict(zip(_NAMES, row, strict=True))) for row in found]

    def worker_seen_at(self, now: float) -> float | None:
        """Return when any worker was seen last, or did the sweep, whose row is never deleted."""
        with self._look() as transaction:
            [seen] = transaction.execute(LAST_SEEN, {"sweep": SWEEP, "until": now + _SKEW})
        times = [time for time in seen if time is not None]
        return min(now, max(times)) if times else None

    def due(self, now: float, lanes: Collection[Lane] = tuple(Lane)) -> Due:
        """Count the mails of these lanes that are due, lane by lane."""
        values = {"now": now, "most": MAX_COUNTED}
        with self._look() as transaction:
            found = [transaction.execute(COUNT_DUE, {"lane": lane, **values})[0] for lane in lanes]
        is_all = all(copies < MAX_COUNTED for copies, _mails in found)
        return Due(sum(mails for _copies, mails in found), is_all)

    def take_chore(self, name: str, *, now: float, every: float) -> bool:
        """Take a chore that is due every `every` seconds. Return False if it is not due."""
        latest = now + every + max(every, _CLOCKS_DIFFER)
        values = {"name": name, "now": now, "next": now + every, "latest": latest}
        with self._look() as transaction:
            if transaction.execute(CHORE_IS_DONE, values):
                return False
        return self._changes(TAKE_CHORE, values)
