"""The engines: every connection to a database is configured here."""

import sqlite3
import threading
import time
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL
from sqlalchemy.pool import StaticPool

from mailer.errors import ConfigurationError
from mailer.private import make_private_file, make_private_folder
from mailer.settings.database import file_of, may_be_made

# Ten, during which somebody else may write, and two for the turns of all who waited as long.
_BUSY_SECONDS = 12.0
#: Bytes of SQLite's write-ahead log that stay on the disk for the next writers. A long reader makes
#: it grow far beyond.
WAL_BYTES = 16 * 1024 * 1024


class _Patience(threading.local):
    """The time that a thread waits for those who write."""

    deadline: float | None = None  #: set while it has its turn


_patience = _Patience()


class Turn:
    """SQLite has one writer: threads wait for their turn here, which is cheaper than in its busy loop.

    Whoever has the turn waits for other processes only for the rest of the time: see `patiently`.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._outer: float | None = (
            None  # the deadline of the same thread's turn in another database
        )

    def __enter__(self) -> None:
        deadline = time.monotonic() + _BUSY_SECONDS
        if not self.lock.acquire(timeout=_BUSY_SECONDS):
            raise sqlite3.OperationalError("database is locked")
        self._outer, _patience.deadline = _patience.deadline, deadline

    def __exit__(self, *_exception: object) -> None:
        _patience.deadline = self._outer
        self.lock.release()


def make_engine(url: URL, *, pgbouncer: bool = False) -> Engine:
    if url.get_backend_name() == "sqlite":
        return _sqlite_engine(url)
    from mailer.store import postgresql  # noqa: PLC0415 -- its driver is an extra

    return postgresql.make_engine(url, pgbouncer=pgbouncer)


def without_timeouts(engine: Engine) -> Engine:
    """Return an engine for the same database without time limits."""
    if engine.dialect.name == "sqlite":
        return engine
    from mailer.store import postgresql  # noqa: PLC0415 -- its driver is an extra

    return postgresql.make_patient_engine(engine.url)


def _sqlite_engine(url: URL) -> Engine:
    file = file_of(url)
    if file is None:
        engine = create_engine(url, poolclass=StaticPool, connect_args={"check_same_thread": False})
    else:
        file = file.absolute()
        _make_folder(file.parent)
        engine = create_engine(url, connect_args={"timeout": 0})
        if may_be_made(url):
            event.listen(engine, "do_connect", lambda *_arguments: _make_file(file))
    event.listen(engine, "connect", _configure_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _make_folder(folder: Path) -> None:
    try:
        make_private_folder(folder)
    except OSError as error:
        raise ConfigurationError(
            f"MAILER_DATABASE_URL: the folder {str(folder)!r} can't be made ({error.strerror}):"
            " name one that can be written to."
        ) from error


def _make_file(file: Path) -> None:
    """Make the file before SQLite does, which would let everybody read it. Fail as SQLite would."""
    try:
        make_private_file(file)
    except OSError as error:
        raise sqlite3.OperationalError(f"unable to open database file: {error}") from error


def _configure_sqlite(connection: sqlite3.Connection, _record: object) -> None:
    connection.isolation_level = None  # transactions begin where we say, not at the driver's guess
    patiently(connection, "PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute(f"PRAGMA journal_size_limit = {WAL_BYTES}")
    connection.execute("PRAGMA foreign_keys = ON")
    # SQLite's own knows ASCII only, and a subject is searched for in any case.
    connection.create_function("lower", 1, _lower, deterministic=True)
    connection.execute("PRAGMA secure_delete = ON")  # erased content is gone from the file as well


def _lower(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value


def _begin_sqlite(connection: Connection) -> None:
    """Begin as a writer; a reader does not wait for an application that writes and asks us in the middle of it."""
    reads = connection.get_execution_options().get("reads_only", False)
    begin = begin_reading if reads else begin_writing
    begin(connection.connection.driver_connection)


def begin_writing(connection: Any) -> None:
    """Begin as a writer: one that begins as a reader fails at once, without waiting, when another writes in between."""
    patiently(connection, "BEGIN IMMEDIATE")


def begin_reading(connection: Any) -> None:
    """Begin as a reader, with a first look.

    That waits while a file is recovered, or left by its last user; no later one does.
    """
    connection.execute("BEGIN")
    patiently(connection, "SELECT 1 FROM sqlite_master LIMIT 1")


def patiently(connection: Any, sql: str) -> None:
    """Look every millisecond whether nobody else is writing.

    SQLite itself would look ten times a second, and starve beside a process that writes without a
    pause; and for its turn to switch the journal it would not wait at all.
    """
    deadline = _patience.deadline or time.monotonic() + _BUSY_SECONDS
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
