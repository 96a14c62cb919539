"""Repeated measurement of an installation: its processes, servers and database."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import redis
from sqlalchemy import text

from mailer.message import Status
from mailer.store import Store
from tests.chaos.flatness import Bound, Series
from tests.chaos.gauges import Taken, children_of, connections_at, descriptors_of, taken_by
from tests.chaos.site import Database, Site

_MB = 1_000_000
_WAITING = (Status.QUEUED, Status.CLAIMED, Status.TRANSMITTING)

MEMORY, DESCRIPTORS, THREADS = "Memory", "File descriptors", "Threads"
CONNECTIONS, SIZE, QUEUE, MAILS = "Connections", "Database", "Queue", "Mails"
#: Descriptors, threads or connections of one process more are a leak. Memory varies.
_BOUNDS: Mapping[str, Bound] = {
    MEMORY: Bound(share=0.03, beside=1),
    DESCRIPTORS: Bound(share=0, beside=2),
    THREADS: Bound(share=0, beside=2),
    CONNECTIONS: Bound(share=0, beside=2),
    SIZE: Bound(share=0.05, beside=1),
    QUEUE: Bound(share=0.1, beside=50),
}
_UNITS = {MEMORY: "MB", SIZE: "MB", MAILS: "a second"}


class Watch:
    """All figures of one run.

    `prefork` and `threads` are the main processes of two workers that are never killed.
    """

    def __init__(
        self, site: Site, database: Database, *, web: Sequence[int], prefork: int, threads: int
    ) -> None:
        self.moments: list[float] = []  #: seconds since the beginning
        self.series: list[Series] = []
        self._groups = {
            "web processes": list(web),
            "prefork worker, main": [prefork],
            "prefork worker, children": children_of(prefork),
            "threads worker": [threads],
        }
        self._site = site
        self._store: Store = site.app().extensions["mailer"].store
        self._broker = redis.Redis.from_url(site.redis.url, socket_timeout=0.5)
        self._database = (
            _SqliteFigures(site.folder, self._groups)
            if database == "sqlite"
            else _PostgresFigures(self._store)
        )
        self._by_name: dict[tuple[str, str], Series] = {}
        self._sent = 0

    def read(self, moment: float) -> None:
        """Read all figures at this moment."""
        elapsed = moment - self.moments[-1] if self.moments else 0.0
        self.moments.append(moment)
        for name, pids in self._groups.items():
            try:
                self._note_processes(name, taken_by(pids))
            except (FileNotFoundError, ProcessLookupError):
                raise RuntimeError(
                    f"{name}: a process has ended by itself; its log says why"
                ) from None
        self._note(CONNECTIONS, "to the relay", connections_at(self._site.sink.port))
        self._note(CONNECTIONS, "to Redis", self._redis_clients())
        self._note(CONNECTIONS, "to the database", self._database.connections())
        self._note(SIZE, "including its log", self._database.size() / _MB)
        self._note(
            QUEUE,
            "waiting",
            sum(count for status, _, count, _ in self._store.counts() if status in _WAITING),
        )
        before, self._sent = self._sent, self._site.sink.count()
        self._note(
            MAILS, "accepted by the relay", (self._sent - before) / elapsed if elapsed else None
        )

    def _note_processes(self, name: str, taken: Taken) -> None:
        self._note(MEMORY, name, taken.memory / _MB)
        self._note(DESCRIPTORS, name, taken.descriptors)
        self._note(THREADS, name, taken.threads)

    def _note(self, plot: str, name: str, value: float | None) -> None:
        if (plot, name) not in self._by_name:
            self._by_name[plot, name] = one = Series(
                plot, name, _UNITS.get(plot, ""), _BOUNDS.get(plot)
            )
            self.series.append(one)
        self._by_name[plot, name].values.append(value)

    def _redis_clients(self) -> float | None:
        """Count the clients of Redis. Return None while Redis does not answer."""
        with suppress(redis.RedisError):
            return float(self._broker.info("clients")["connected_clients"])
        return None


class _SqliteFigures:
    """The size of the file, and the descriptors that refer to it, as connections."""

    def __init__(self, folder: Path, groups: Mapping[str, Sequence[int]]) -> None:
        self._folder = folder
        self._pids = [pid for pids in groups.values() for pid in pids]

    def connections(self) -> int:
        return descriptors_of(self._folder / "mailer.sqlite3", self._pids)

    def size(self) -> int:
        return sum(file.stat().st_size for file in self._folder.glob("mailer.sqlite3*"))


class _PostgresFigures:
    """The connections and the size as the server counts them."""

    def __init__(self, store: Store) -> None:
        self._engine = store.engine

    def connections(self) -> int:
        return self._ask("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()")

    def size(self) -> int:
        return self._ask(
            "SELECT pg_database_size(current_database()) + (SELECT sum(size) FROM pg_ls_waldir())"
        )

    def _ask(self, question: str) -> int:
        with self._engine.connect() as connection:
            return int(connection.execute(text(question)).scalar_one())
