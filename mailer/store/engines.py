"""The engines: every connection to a database is configured here."""

import sqlite3
import threading
import time
from collections.abc import Callable
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
_PAUSE_SECONDS = 0.001
#: The bytes of SQLite's write-ahead log that are kept for the next writers. During a long read the
#: log grows far beyond.
WAL_BYTES = 16 * 1024 * 1024


class _Patience(threading.local):
    """The turn of a thread, and the deadline of its wait for other writers."""

    turn: "Turn | None" = None
    deadline: float | None = None  #: set while the thread has its turn
    gave_way: bool = False  #: the lock of its turn is not held, and may never be again


_patience = _Patience()


class Turn:
    """The lock of SQLite's one writer in this process, cheaper than SQLite's own busy loop.

    Its wait and the wait for other processes, in `patiently`, have one deadline together.
    """

    def __init__(self) -> None:
        self.lock: threading.Lock = threading.Lock()
        #: The turn that the same thread has in another database, and its deadline.
        self._outer: tuple[Turn | None, float | None] = None, None

    def __enter__(self) -> None:
        deadline = time.monotonic() + _BUSY_SECONDS
        if not self.lock.acquire(timeout=_BUSY_SECONDS):
            raise sqlite3.OperationalError("database is locked")
        self._outer = _patience.turn, _patience.deadline
        _patience.turn, _patience.deadline = self, deadline

    def __exit__(self, *_exception: object) -> None:
        try:
            _patience.turn, _patience.deadline = self._outer
        finally:  # also if a signal handler raises here
            if _patience.gave_way:
                _patience.gave_way = False
            else:
                self.lock.release()

    def give_way(self) -> None:
        """Let other threads of this process have their turn for a moment.

        If a signal handler raises in the wait for the lock, another thread may have it: then the
        end of this turn must not release it.
        """
        try:
            self.lock.release()
            time.sleep(_PAUSE_SECONDS)
        finally:
            _patience.gave_way = True
            self.lock.acquire()
            _patience.gave_way = False


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
    """Begin as a writer: a reader that writes later fails at once if another has written since.

    Meanwhile other threads may read: the writer for whom this one waits may be one of them. A
    connection that is being opened gives no way: SQLAlchemy has a lock then, for which another
    thread would wait in its turn.
    """
    turn = _patience.turn
    patiently(connection, "BEGIN IMMEDIATE", _pause if turn is None else turn.give_way)


def begin_reading(connection: Any) -> None:
    """Begin as a reader, with a first query.

    It waits while another process recovers or closes the file. A later query never waits.
    """
    connection.execute("BEGIN")
    patiently(connection, "SELECT 1 FROM sqlite_master LIMIT 1")


def _pause() -> None:
    time.sleep(_PAUSE_SECONDS)


def patiently(connection: Any, sql: str, pause: Callable[[], None] = _pause) -> None:
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
            pause()
        else:
            return
