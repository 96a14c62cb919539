"""Low-water marks: the places where statements start in their indexes, on PostgreSQL.

While some transaction stays open, PostgreSQL keeps all versions of the rows that were delivered
since, and a claim that starts at the beginning of its index reads past them: 10 ms for each 100,000
mails. A mark is a hint: mail that was given back, or that is committed late, lies before it. From
time to time, within a twentieth of the time, a statement starts at the beginning.

Claims, the question whether mail is due, and lapsed leases use marks. The rank of a new mail of a
tenant, and mail that becomes due and gets its rank, are looked up without.
"""

import time
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from mailer.store.transactions import Transaction

DEAD_ROWS = (
    "SELECT n_dead_tup FROM pg_stat_all_tables WHERE relid = CAST('mailer_delivery' AS regclass)"
)
# With fewer dead rows, statements start at the beginning: they are as fast.
_MANY = 20_000
_COUNT_EVERY = 5.0  # seconds
# In seconds: mail that is stored at the same time by several processes is not committed in its
# order. The ranks of a tenant's mails lie a minute apart.
_TIME_MARGIN, _RANK_MARGIN = 10.0, 600.0
_SHARE = 0.05  # of the time, for statements that start at the beginning


@dataclass(slots=True)
class Places:
    """The places where a statement starts: a time, and a rank."""

    time: float = 0.0
    rank: float = 0.0
    changes: dict[str, float] = field(default_factory=dict[str, float])

    def reached(self, *, time: float | None = None, rank: float | None = None) -> None:
        """Note the first time or rank that the statement has left in the index."""
        if time is not None:
            self.changes["time"] = time - _TIME_MARGIN
        if rank is not None:
            self.changes["rank"] = rank - _RANK_MARGIN


class Marks:
    """The marks of one process, by statement. Threads share them: a lost change costs nothing."""

    def __init__(self) -> None:
        self._places: dict[Hashable, Places] = {}
        self._starts_over_at: dict[Hashable, float] = {}  # on the monotonic clock
        self._counts_at = 0.0
        self._are_used = False

    def count_dead_rows(self, transaction: Transaction) -> None:
        """Decide from time to time whether the marks are used."""
        if (now := time.monotonic()) < self._counts_at:
            return
        self._counts_at = now + _COUNT_EVERY
        [(dead,)] = transaction.execute(DEAD_ROWS, {})
        self._are_used = dead > _MANY

    @contextmanager
    def of(self, statement: Hashable) -> Iterator[Places]:
        """Yield the places where a statement starts, which it moves to those it has reached."""
        began = time.monotonic()
        last = self._places.get(statement, Places())
        goes_on = self._are_used and began < self._starts_over_at.get(statement, 0.0)
        places = Places(last.time, last.rank) if goes_on else Places()
        yield places
        self._places[statement] = Places(
            places.changes.get("time", last.time), places.changes.get("rank", last.rank)
        )
        if not goes_on:
            ended = time.monotonic()
            self._starts_over_at[statement] = ended + (ended - began) / _SHARE
