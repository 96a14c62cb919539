"""The tables of a database in memory: migrated once in a process, and then copied.

A test suite makes hundreds of applications, each with a database of its own.
"""

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

from sqlalchemy import Engine, make_url

from mailer import schema
from mailer.forks import survive_forks
from mailer.store.engines import make_engine


def make_tables(engine: Engine) -> None:
    """Make the tables in a database in memory that has none.

    Only an empty database is copied into, as a copy replaces all tables.
    """
    with _driver_connection(engine) as connection:
        if not connection.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone():
            with closing(sqlite3.connect(":memory:")) as template:
                template.deserialize(_template.tables())
                template.backup(connection)
            return
    schema.migrate(engine)


class _Template:
    """An empty database with the tables, as the migrations leave them."""

    def __init__(self) -> None:
        self._tables: bytes | None = None
        self._lock = threading.Lock()
        survive_forks(self)

    def tables(self) -> bytes:
        with self._lock:  # Alembic migrates in one thread at a time
            if self._tables is None:
                self._tables = self._migrate()
            return self._tables

    def _migrate(self) -> bytes:
        engine = make_engine(make_url("sqlite://"))
        try:
            schema.migrate(engine)
            with _driver_connection(engine) as connection:
                return bytes(connection.serialize())
        finally:
            engine.dispose()

    def after_fork_in_child(self) -> None:
        """Take a new lock: another thread of the parent may have held it."""
        self._lock = threading.Lock()


_template = _Template()


@contextmanager
def _driver_connection(engine: Engine) -> Iterator[Any]:
    connection = engine.raw_connection()
    try:
        yield connection.driver_connection
    finally:
        connection.close()
