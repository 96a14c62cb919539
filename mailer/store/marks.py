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
from dataclasses import dataclass, replace

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
class Mark:
    """The place in an index where a statement starts: a time, and a rank."""

    time: float = 0.0
    rank: float = 0.0
    starts_over_at: float = 0.0  #: on the monotonic clock

    def reach(self, *, time: float | None = None, rank: float | None = None) -> None:
        """Move to the first time or rank that the statement has left in the index."""
        if time is not None:
            self.time = time - _TIME_MARGIN
        if rank is not None:
            self.rank = rank - _RANK_MARGIN


_BEGINNING = Mark()


class Marks:
    """The marks of one process, by statement. Threads share them: a lost change costs nothing."""

    def __init__(self) -> None:
        self._marks: dict[Hashable, Mark] = {}
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
    def of(self, statement: Hashable) -> Iterator[tuple[Mark, Mark]]:
        """Yield the place where a statement starts, and its mark, which it moves."""
        mark, began = self._marks.setdefault(statement, Mark()), time.monotonic()
        goes_on = self._are_used and began < mark.starts_over_at
        yield (replace(mark) if goes_on else _BEGINNING), mark
        if not goes_on:
            ended = time.monotonic()
            mark.starts_over_at = ended + (ended - began) / _SHARE
