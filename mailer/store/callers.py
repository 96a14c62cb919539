"""The caller's own transaction with mail in it: a commit queues the mail, a rollback removes it."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

from sqlalchemy import Connection, Engine, ExceptionContext, event
from sqlalchemy.exc import SQLAlchemyError

from mailer.errors import ConfigurationError, InvalidMail, is_time_limit
from mailer.message.events import AnyEvent
from mailer.store.engines import patiently
from mailer.store.sql import packed
from mailer.store.transactions import Row, sqlstate_of, values_hidden

ARE_THERE = "SELECT id FROM mailer_message WHERE id {mails}"

Render = Callable[[str], str]
#: A call to make after a commit, with the ids of the mails that it is about.
AfterCommit = Callable[[Sequence[str]], object]

#: The key in a connection's `info` under which the calls wait for its commit.
_INFO = "mailer"
#: PostgreSQL's code for any statement after an error in the same transaction.
_HAS_FAILED = "25P02"


class HasConnection(Protocol):
    """An object like SQLAlchemy's `Session` or the `db.session` of Flask-SQLAlchemy."""

    def connection(self) -> Connection:
        """Return the connection of the session, in a transaction."""


CallersConnection = Connection | HasConnection


class CallersTransaction:
    """A transaction of the application, over its own connection. The application ends it."""

    def __init__(self, connection: Connection, render: Render) -> None:
        self._connection = connection
        self._render = render
        self.events: list[AnyEvent] = []  #: to be published after the commit

    @values_hidden
    def execute(self, statement: str, values: Mapping[str, Any]) -> list[Row]:
        """Execute a statement. Return the rows that it finds or returns."""
        result = self._connection.exec_driver_sql(self._render(statement), dict(values))
        return [tuple(row) for row in result] if result.returns_rows else []

    @values_hidden
    def execute_many(self, statement: str, values: Iterable[Mapping[str, Any]]) -> None:
        """Execute a statement once for each row of values."""
        self._connection.exec_driver_sql(self._render(statement), [dict(row) for row in values])


def connection_of(given: CallersConnection) -> Connection:
    """Return the connection of a session, or the given one. Refuse one without transactions."""
    ask: object = getattr(given, "connection", None)
    connection = given if isinstance(given, Connection) else ask() if callable(ask) else None
    if not isinstance(connection, Connection):
        raise InvalidMail(
            f"connection: {type(given).__name__} is no transaction: give a Session or a Connection"
            " of SQLAlchemy, or db.session."
        )
    if getattr(connection.connection.driver_connection, "autocommit", False) is True:
        raise InvalidMail(
            "connection: it is in AUTOCOMMIT, so there is no transaction to wait for: leave"
            " connection= out."
        )
    return connection


def check_leads_to(
    connection: Connection, place: list[Row], look: str, engine: Engine, render: Render
) -> None:
    """Refuse a connection that does not lead to the tables of Mailer's own engine."""
    same_kind = connection.dialect.name == engine.dialect.name
    if (
        not same_kind
        or not place
        or CallersTransaction(connection, render).execute(look, {}) != place
    ):
        raise ConfigurationError(
            f"connection: {connection.engine.url!r} does not lead to the tables that Mailer has in"
            f" {engine.url!r}: set MAILER_DATABASE_URL to the database (on PostgreSQL, the schema)"
            " of your application, or leave connection= out. In tests, set it to 'sqlite://', which"
            " goes with any connection."
        )


def is_in_transaction(connection: Connection) -> bool:
    """Return whether a connection to SQLite is in a transaction, which may have its write lock."""
    return bool(getattr(connection.connection.driver_connection, "in_transaction", False))


@contextmanager
def joined(connection: Connection, render: Render) -> Iterator[CallersTransaction]:
    """Join the caller's transaction with a savepoint, so that an error of ours can be undone."""
    if not connection.in_transaction():
        connection.begin()
    driver: Any = connection.connection.driver_connection
    if connection.dialect.name == "sqlite" and not driver.in_transaction:
        # Otherwise, the savepoint would be the transaction, and its release the commit.
        patiently(driver, "BEGIN IMMEDIATE")
    connection.exec_driver_sql("SAVEPOINT mailer")
    try:
        yield CallersTransaction(connection, render)
    except BaseException:
        with suppress(SQLAlchemyError):  # the connection may be lost, and the transaction with it
            connection.exec_driver_sql("ROLLBACK TO SAVEPOINT mailer")
            connection.exec_driver_sql("RELEASE SAVEPOINT mailer")
        raise
    connection.exec_driver_sql("RELEASE SAVEPOINT mailer")


# --- after the commit ---------------------------------------------------------------------------


@dataclass(slots=True)
class _Calls:
    """The calls that wait for the commit of a connection's transaction."""

    render: Render
    #: Calls to make if the mail with this id is committed.
    by_mail: dict[str, list[AfterCommit]] = field(default_factory=dict)
    #: Calls to make as soon as the commit is done, each once, in order, and with which mails.
    committed: dict[AfterCommit, list[str]] = field(default_factory=dict)


def after_commit(connection: Connection, mail_id: str, call: AfterCommit, render: Render) -> None:
    """Make a call once the caller's transaction has been committed with this mail in it."""
    if not event.contains(connection.engine, "commit", _look_for_mails):
        for name, listener in _LISTENERS.items():
            event.listen(connection.engine, name, listener)
    calls: _Calls = connection.info.setdefault(_INFO, _Calls(render))
    calls.by_mail.setdefault(mail_id, []).append(call)


def _look_for_mails(connection: Connection) -> None:
    """Find the mails that are about to be committed. SQLAlchemy calls this just before the commit.

    Mails of a savepoint that was rolled back are not found any more.
    """
    calls: _Calls | None = connection.info.get(_INFO)
    if calls is None:
        return
    try:
        found = CallersTransaction(connection, calls.render).execute(
            ARE_THERE, {"mails": packed(calls.by_mail)}
        )
        committed = {mail_id for (mail_id,) in found}
        for mail_id, its_calls in calls.by_mail.items():
            if mail_id in committed:
                for call in its_calls:
                    calls.committed.setdefault(call, []).append(mail_id)
    except SQLAlchemyError as error:
        # After this error, PostgreSQL answers the commit with a rollback, and no driver calls that
        # an error. So raise it, unless the transaction had failed before, which the caller knows.
        if connection.dialect.name == "postgresql" and sqlstate_of(error) != _HAS_FAILED:
            calls.by_mail.clear()
            with suppress(Exception):  # SQLAlchemy rolls nothing back after a failed commit
                connection.connection.rollback()
            raise
    calls.by_mail.clear()


def _forget_calls(context: ExceptionContext) -> None:
    """Forget the calls after any error: it may be the commit that failed."""
    if context.connection is not None and not context.connection.invalidated:
        calls: _Calls | None = context.connection.info.get(_INFO)
        if calls is not None:
            calls.committed.clear()


def _call_before_next(connection: Connection) -> None:
    """Make the calls at the beginning of the next transaction: the one before is over."""
    try:
        _call(connection.info)
    except BaseException:
        # SQLAlchemy would begin no transaction over it any more, and its commits would do nothing.
        connection.close()
        raise


def _call_at_return(_driver_connection: object, record: Any) -> None:
    """Make the calls when the connection goes back to its pool: its transaction is over."""
    try:
        _call(record.info)
    except BaseException:
        # SQLAlchemy would leave the connection out of its pool, and its place would stay taken.
        record.checkin(_fairy_was_created=False)
        raise


def _call(info: dict[Any, Any]) -> None:
    """Make each of the calls, also after one that raises an exception for the caller."""
    calls: _Calls | None = info.pop(_INFO, None)
    committed = calls.committed if calls else {}
    with ExitStack() as every:  # begins with the last that it is given
        for call, mail_ids in reversed(committed.items()):
            every.callback(_call_safely, call, mail_ids)


def _call_safely(call: AfterCommit, mail_ids: Sequence[str]) -> None:
    """Make a call. Its errors are not the caller's, who has committed, but a time limit is."""
    try:
        call(mail_ids)
    except Exception as error:
        if is_time_limit(error):
            raise


# Most connections go back to their pool right after the commit. If one stays open and idle, the
# sweep finds the mail.
_LISTENERS: dict[str, Callable[..., None]] = {
    "commit": _look_for_mails,
    "handle_error": _forget_calls,
    "begin": _call_before_next,
    "checkin": _call_at_return,
}
