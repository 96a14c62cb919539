"""A PostgreSQL with the durability of its package that counts statements, and its figures."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psycopg

from bench.contenders.ours import DURABLE, OursOnPostgres
from bench.program import waiting_seconds
from tests.services.postgres import DEBIAN_FOLDERS, running_postgres
from tests.services.requirement import find_program

DATABASE = "mailer"
_COUNTING = ["-c", "shared_preload_libraries=pg_stat_statements", "-c", "track_wal_io_timing=on"]


class CountedPostgres(OursOnPostgres):
    """Mailer on a PostgreSQL whose statements are counted; `session` is open meanwhile."""

    key = "counted-postgres"
    title = "Mailer on PostgreSQL"

    @contextmanager
    def running_database(self, folder: Path) -> Iterator[str]:
        initdb = find_program("initdb", also_in=DEBIAN_FOLDERS)
        assert initdb, "require() has looked"
        with running_postgres(Path(initdb), [*DURABLE, *_COUNTING]) as server:
            url = server.create(DATABASE)
            with server.connect(DATABASE) as self.session:
                self.session.execute("CREATE EXTENSION pg_stat_statements")
                yield url


def value(session: psycopg.Connection, query: str) -> float:
    """Return the only value of a query, and 0 for none."""
    row = session.execute(query.encode()).fetchone()
    return float(row[0] or 0) if row else 0.0


def row(session: psycopg.Connection, query: str) -> tuple[Any, ...]:
    found = session.execute(query.encode()).fetchone()
    assert found is not None, query
    return found


def processor_seconds(session: psycopg.Connection) -> float:
    """Return the processor time of the server, with that of its processes that have ended."""
    main, children = _processes(session)
    ticks = sum(map(int, _stat(main)[11:15]))
    for child in children:
        with suppress(OSError):  # it has just ended
            ticks += sum(map(int, _stat(child)[11:13]))
    return ticks / os.sysconf("SC_CLK_TCK")


def processor_waits(session: psycopg.Connection) -> float:
    """Return the seconds for which the server's processes have waited for a processor."""
    main, children = _processes(session)
    return sum(map(waiting_seconds, [main, *children]))


def _processes(session: psycopg.Connection) -> tuple[int, list[int]]:
    """Return the main process of the server, and the others."""
    main = int(_stat(int(row(session, "SELECT pg_backend_pid()")[0]))[1])
    children = Path(f"/proc/{main}/task/{main}/children").read_text().split()
    return main, [int(child) for child in children]


def _stat(pid: int) -> list[str]:
    """Return the fields of a process from its state on."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
