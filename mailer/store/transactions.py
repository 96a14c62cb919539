"""Transactions on the connections of the driver, without SQLAlchemy's bookkeeping.

For such short statements, it would take longer than they do. The pool is SQLAlchemy's.
"""

import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from sqlalchemy import Engine
from sqlalchemy.exc import StatementError

from mailer.message.events import AnyEvent
from mailer.store.engines import begin_reading, begin_writing

Row = tuple[Any, ...]

P = ParamSpec("P")
T = TypeVar("T")

# In seconds: a connection to a server that was restarted fails within that time, and is replaced. A
# server that is silent for longer is not asked again.
_AT_ONCE = 1.0


def values_hidden(execute: Callable[P, T]) -> Callable[P, T]:
    """Decorate a method that executes a statement: remove the values from its errors.

    The application may log them. SQLAlchemy adds the parameters to the message, and PostgreSQL adds
    the row. A mail may be sensitive.
    """

    @wraps(execute)
    def hiding(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return execute(*args, **kwargs)
        except Exception as error:
            _hide_values(error)
            raise

    return hiding


def _hide_values(error: Exception) -> None:
    driver_error: Exception = getattr(error, "orig", None) or error
    if first := getattr(getattr(driver_error, "diag", None), "message_primary", None):
        kind = type(driver_error)
        driver_error.args = (first,)
        if driver_error is not error:
            error.args = (f"({kind.__module__}.{kind.__name__}) {first}",)
    if isinstance(error, StatementError):
        error.hide_parameters = True


class CommitUnanswered(Exception):
    """The error of a commit without an answer: it may be done or not."""


class Transaction:
    """A transaction on a connection of the driver.

    `begin` is called with the connection before the first statement; `limits`, if there are any, is
    the first statement.
    """

    def __init__(
        self,
        engine: Engine,
        render: Callable[[str], str],
        begin: Callable[[Any], None],
        limits: str | None = None,
    ) -> None:
        self._engine = engine
        self._render = render
        self._begin = begin
        self._limits = limits
        self._is_begun = False
        self.events: list[AnyEvent] = []  #: to be published after the commit
        self._open()

    def execute(self, statement: str, values: Mapping[str, Any]) -> list[Row]:
        """Execute a statement. Return the rows that it finds or returns."""
        render_sql, started = self._render(statement), time.monotonic()
        try:
            self._execute(render_sql, values)
        except self._engine.dialect.loaded_dbapi.Error as error:
            if self._is_begun or not self._is_lost(error) or time.monotonic() - started > _AT_ONCE:
                raise
            # The server was restarted since the last use of the connection. Nothing has been done
            # in this transaction, so begin it again on a new connection.
            self.abandon(error)
            self._open()
            self._execute(render_sql, values)
        self._is_begun = True
        return self._cursor.fetchall() if self._cursor.description else []

    @values_hidden
    def _execute(self, render_sql: str, values: Mapping[str, Any]) -> None:
        if self._limits and not self._is_begun:
            self._cursor.execute(self._limits)
        self._cursor.execute(render_sql, values)

    @values_hidden
    def execute_many(self, statement: str, values: Iterable[Mapping[str, Any]]) -> None:
        """Execute a statement once for each row of values."""
        self._cursor.executemany(self._render(statement), values)

    @values_hidden
    def insert_rows(
        self, table: str, columns: Sequence[str], values: Sequence[tuple[Any, ...]]
    ) -> None:
        """Insert many rows, after another statement of this transaction.

        PostgreSQL takes them with COPY, several times as fast as with INSERT.
        """
        names = ", ".join(f'"{column}"' for column in columns)
        if self._engine.dialect.name == "sqlite":
            marks = ", ".join("?" * len(columns))
            self._cursor.executemany(f"INSERT INTO {table} ({names}) VALUES ({marks})", values)
            return
        with self._cursor.copy(f"COPY {table} ({names}) FROM STDIN") as copy:
            for row in values:
                copy.write_row(row)

    def commit(self) -> None:
        try:
            self._connection.commit()
        except self._engine.dialect.loaded_dbapi.Error as error:
            if self._is_lost(error) or _may_be_on_disk(error):
                raise CommitUnanswered from error
            raise

    def close(self) -> None:
        """Return the connection to its pool, which rolls back all that was not committed."""
        self._close_cursor()
        self._connection.close()

    def abandon(self, error: Exception) -> None:
        """Discard the connection, and all others of the pool if their server went away."""
        self._close_cursor()
        if self._is_lost(error):
            pool: Any = self._engine.pool
            pool._invalidate(self._connection, error)  # noqa: SLF001 -- as SQLAlchemy itself does
        elif self._connection.is_valid:
            self._connection.invalidate(error)

    def _open(self) -> None:
        self._connection = self._engine.raw_connection()
        try:
            self._begin(self._connection.driver_connection)
            self._cursor: Any = self._connection.cursor()
        except BaseException:
            # A connection that was opened while SQLite's log was read-only can never write.
            self._connection.invalidate()
            raise

    def _close_cursor(self) -> None:
        """Close the cursor, whose statement would keep the files of a closed SQLite open."""
        with suppress(self._engine.dialect.loaded_dbapi.Error):  # its connection is closed already
            self._cursor.close()

    def _is_lost(self, error: Any) -> bool:
        connection = self._connection.driver_connection
        return self._engine.dialect.is_disconnect(error, connection, self._cursor)


class Transactions:
    """The transactions of one database."""

    def __init__(
        self, engine: Engine, render: Callable[[str], str], *, limits_each: bool = False
    ) -> None:
        self._engine = engine
        self._render = render
        self._limits = _limits() if limits_each and engine.dialect.name != "sqlite" else None
        is_sqlite = engine.dialect.name == "sqlite"
        self._begin_writing = begin_writing if is_sqlite else _by_itself
        self._begin_reading = begin_reading if is_sqlite else _by_itself
        self._begin_looking = begin_reading if is_sqlite else _without_transaction

    def write(self) -> AbstractContextManager[Transaction]:
        """Open a transaction that writes, all of it or nothing."""
        return self._opened(self._begin_writing, self._limits, commits=True)

    def read(self) -> AbstractContextManager[Transaction]:
        """Open a transaction that reads from one snapshot."""
        return self._opened(self._begin_reading, self._limits)

    def look(self) -> AbstractContextManager[Transaction]:
        """Open a connection that reads without a transaction: PostgreSQL saves two round trips."""
        return self._opened(self._begin_looking)

    @contextmanager
    def _opened(
        self, begin: Callable[[Any], None], limits: str | None = None, *, commits: bool = False
    ) -> Iterator[Transaction]:
        driver = self._engine.dialect.loaded_dbapi
        transaction = Transaction(self._engine, self._render, begin, limits)
        try:
            yield transaction
            if commits:
                transaction.commit()
        except (driver.OperationalError, driver.InternalError, CommitUnanswered) as error:
            # InternalError: a server that has become a standby, which can only be read.
            transaction.abandon(error)
            raise
        finally:
            transaction.close()


def _limits() -> str:
    from mailer.store import postgresql  # noqa: PLC0415 -- its driver is an extra

    return postgresql.LIMITS


def sqlstate_of(error: object) -> str | None:
    """Return PostgreSQL's code of an error of any driver, also if SQLAlchemy has wrapped it."""
    driver_error = getattr(error, "orig", None) or error
    code: str | None = getattr(driver_error, "sqlstate", None)
    return code or getattr(driver_error, "pgcode", None)


def _may_be_on_disk(error: Exception) -> bool:
    """Return whether a failed commit may be on disk: SQLite recovers it if only the sync failed."""
    return isinstance(error, sqlite3.Error) and error.sqlite_errorcode == sqlite3.SQLITE_IOERR_FSYNC


def _by_itself(connection: Any) -> None:
    """Let the driver begin a transaction with the first statement."""
    if connection.autocommit:
        connection.autocommit = False


def _without_transaction(connection: Any) -> None:
    if not connection.autocommit:
        connection.autocommit = True
