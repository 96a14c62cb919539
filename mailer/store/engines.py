"""How a database is opened: what must hold for every connection is set here."""

import sqlite3
import time
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, create_engine, event
from sqlalchemy.engine import URL
from sqlalchemy.pool import StaticPool

from mailer.errors import ConfigurationError

_BUSY_SECONDS = 10


def make_engine(url: URL) -> Engine:
    return _sqlite_engine(url) if url.get_backend_name() == "sqlite" else _postgresql_engine(url)


def _postgresql_engine(url: URL) -> Engine:
    settings = "-c statement_timeout=30s -c idle_in_transaction_session_timeout=30s"
    return create_engine(
        url.set(drivername="postgresql+psycopg"),
        connect_args={"connect_timeout": 5, "client_encoding": "utf8", "keepalives_idle": 30, "options": settings},
    )


def _sqlite_engine(url: URL) -> Engine:
    if url.database in (None, "", ":memory:"):
        engine = create_engine(url, poolclass=StaticPool, connect_args={"check_same_thread": False})
    else:
        _make_folder(Path(str(url.database)).parent)
        engine = create_engine(url, connect_args={"timeout": 0})
    event.listen(engine, "connect", _configure_sqlite)
    event.listen(engine, "begin", lambda connection: patiently(connection.connection.driver_connection, "BEGIN IMMEDIATE"))
    return engine


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(
            f"MAILER_DATABASE_URL: the folder {str(folder)!r} can't be made ({error.strerror}): name one that can be written to."
        ) from error


def _configure_sqlite(connection: sqlite3.Connection, _record: object) -> None:
    connection.isolation_level = None  # transactions begin where we say, not at the driver's guess
    patiently(connection, "PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA secure_delete = ON")  # what is erased is gone from the file as well


def patiently(connection: Any, sql: str) -> None:
    """Look every millisecond whether nobody else is writing.

    SQLite itself would look ten times a second, and starve beside a process that writes without a pause;
    and for its turn to switch the journal it would not wait at all.
    """
    deadline = time.monotonic() + _BUSY_SECONDS
    while True:
        try:
            connection.execute(sql)
        except sqlite3.OperationalError as error:
            is_busy = error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY  # the other bits say why
            if not is_busy or time.monotonic() > deadline:
                raise
            time.sleep(0.001)
        else:
            return
