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

# Ten for a transaction of somebody else, and two for the others that wait for its end as well.
_BUSY_SECONDS = 12.0
#: The bytes of SQLite's write-ahead log that are kept for the next writers. During a long read the
#: log grows far beyond.
WAL_BYTES = 16 * 1024 * 1024


class _Patience(threading.local):
    """The deadline of a thread that waits for other writers."""

    deadline: float | None = None  #: set while the thread has its turn


_patience = _Patience()


class Turn:
    """The lock of SQLite's one writer in this process, cheaper than SQLite's own busy loop.

    Its wait and the wait for other processes, in `patiently`, have one deadline together.
    """

    def __init__(self) -> None:
        self.lock: threading.Lock = threading.Lock()
        #: The deadline of the turn that the same thread has in another database.
        self._outer: float | None = None

    def __enter__(self) -> None:
        deadline = time.monotonic() + _BUSY_SECONDS
        if not self.lock.acquire(timeout=_BUSY_SECONDS):
            raise sqlite3.OperationalError("database is locked")
        self._outer, _patience.deadline = _patience.deadline, deadline

    def __exit__(self, *_exception: object) -> None:
        try:
            _patience.deadline = self._outer
        finally:  # also if a signal handler raises here
            self.lock.release()


def make_engine(url: URL, *, pgbouncer: bool = False) -> Engine:
    if url.get_backend_name() == "sqlite":
        return _sqlite_engine(url)
    from mailer.store import postgresql  # noqa: PLC0415 -- its driver is an extra

    return postgresql.make_engine(url, pgbouncer=pgbouncer)


def without_timeouts(engine: Engine) -> Engine:
    """Return an engine for the same database, without time limits."""
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
    """Make the file before SQLite does, whose file everybody could read. Fail like SQLite."""
    try:
        make_private_file(file)
    except OSError as error:
        raise sqlite3.OperationalError(f"unable to open database file: {error}") from error


def _configure_sqlite(connection: sqlite3.Connection, _record: object) -> None:
    connection.isolation_level = None  # we begin transactions, not the driver
    patiently(connection, "PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute(f"PRAGMA journal_size_limit = {WAL_BYTES}")
    connection.execute("PRAGMA foreign_keys = ON")
    # SQLite's own lower() knows ASCII only, and a search for a subject ignores case.
    connection.create_function("lower", 1, _lower, deterministic=True)
    connection.execute("PRAGMA secure_delete = ON")  # overwrites erased content in the file


def _lower(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value


def _begin_sqlite(connection: Connection) -> None:
    """Begin a transaction of SQLAlchemy as a writer, or with `reads_only` as a reader.

    A reader need not wait for an application that calls us while it writes.
    """
    reads = connection.get_execution_options().get("reads_only", False)
    begin = begin_reading if reads else begin_writing
    begin(connection.connection.driver_connection)


def begin_writing(connection: Any) -> None:
    """Begin as a writer: a reader that writes later fails at once if another has written since."""
    patiently(connection, "BEGIN IMMEDIATE")


def begin_reading(connection: Any) -> None:
    """Begin as a reader, with a first query.

    It waits while another process recovers or closes the file. A later query never waits.
    """
    connection.execute("BEGIN")
    patiently(connection, "SELECT 1 FROM sqlite_master LIMIT 1")


def patiently(connection: Any, sql: str) -> None:
    """Execute a statement, and again every millisecond while another process is writing.

    SQLite's own busy loop tries only ten times a second, so it starves beside a process that writes
    without a pause. It would not wait at all to switch the journal.
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
