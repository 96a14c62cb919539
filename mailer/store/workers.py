"""Who delivers: a row for each worker process, renewed every few seconds, and what is due while none is there."""

from dataclasses import dataclass, fields

from mailer.message import Lane
from mailer.store import statements as sql
from mailer.store.transactions import Transaction

#: The chore that every worker takes its turns at; the row says until when it is done.
SWEEP = "mailer.sweep"

# In seconds. Nobody asks for the row of a worker that was silent for so long.
_FORGOTTEN_AFTER = 3600.0
# What is this far in the future was written by a clock that was wrong, and tells nothing.
_SKEW = 60.0
#: Beyond so many deliveries nobody needs the number, and counting would take long.
MOST = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """A worker process: the main one of a pool."""

    id: str
    machine: str
    pid: int
    version: str
    lanes: str
    started_at: float
    seen_at: float
    delivered_at: float | None = None  #: when a relay last took a mail from any process of its pool


_NAMES = tuple(field.name for field in fields(Worker))


@dataclass(frozen=True, slots=True)
class Due:
    """What is due now: at least `mails`, if there is more than was counted."""

    mails: int
    is_all: bool


def beat(transaction: Transaction, worker: Worker) -> None:
    """Write that the worker is alive, and forget others that were silent for long."""
    now = worker.seen_at
    transaction.execute(sql.BEAT, {name: getattr(worker, name) for name in _NAMES})
    transaction.execute(sql.FORGET_WORKERS, {"before": now - _FORGOTTEN_AFTER, "after": now + _SKEW})


def leave(transaction: Transaction, worker_id: str) -> None:
    """Remove the row of a worker that stops."""
    transaction.execute(sql.LEAVE, {"id": worker_id})


def present(transaction: Transaction, now: float, *, silent: float) -> list[Worker]:
    """Return the workers that were seen within the last `silent` seconds, the one that was seen last first."""
    values = {"since": now - silent, "until": now + _SKEW}
    return [Worker(**dict(zip(_NAMES, row, strict=True))) for row in transaction.execute(sql.WORKERS, values)]


def last_seen(transaction: Transaction, now: float) -> float | None:
    """Return when any worker was seen last: by its row, or by the last sweep, which outlives the row."""
    [(beat_at, swept_until)] = transaction.execute(sql.LAST_SEEN, {"sweep": SWEEP, "until": now + _SKEW})
    moments = [moment for moment in (beat_at, swept_until) if moment is not None]
    return min(now, max(moments)) if moments else None


def due(transaction: Transaction, now: float) -> Due:
    """Count the mails of which copies are due, lane by lane."""
    found = [transaction.execute(sql.COUNT_DUE, {"lane": lane, "now": now, "most": MOST})[0] for lane in Lane]
    return Due(sum(mails for _copies, mails in found), all(copies < MOST for copies, _mails in found))
