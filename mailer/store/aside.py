"""Mail that waits for the commit of a transaction in another database.

A database in memory, as tests have it, can't be part of the application's transaction. So a mail with
`connection=` is kept aside, and is queued when that transaction has been committed. It vanishes with
a rollback, also with that of the savepoint it was queued in.
"""

import re
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakSet

from sqlalchemy import Connection, Engine, ExceptionContext, event

from mailer.errors import StoreError
from mailer.logs import get_logger
from mailer.message import Envelope, Keyed, Message

#: The place in a connection's `info` where we note what waits for its commit.
_INFO = "mailer-aside"

_SAVEPOINT = re.compile(
    r"\s*(?P<verb>SAVEPOINT|RELEASE(\s+SAVEPOINT)?|ROLLBACK(\s+(WORK|TRANSACTION))?\s+TO(\s+SAVEPOINT)?)"
    r"""\s+["'`]?(?P<name>\w+)""",
    re.IGNORECASE,
)

log = get_logger(__name__)


@dataclass(slots=True)
class _Mail:
    """A mail that waits, and what is to be called once it is queued."""

    queue: Callable[[Message, Envelope], Keyed | None]
    message: Message
    envelope: Envelope
    calls: list[Callable[[], object]] = field(default_factory=list)

    def settle(self) -> None:
        """Queue the mail. The application's transaction has ended well, so nothing is raised."""
        try:
            earlier = self.queue(self.message, self.envelope)
        except StoreError:
            log.exception("A mail was not queued: mail_id=%s", self.message.id)
            return
        if earlier is not None:
            log.warning(
                "A mail was not queued, another transaction took its idempotency key: mail_id=%s earlier=%s",
                self.message.id,
                earlier.id,
            )
            return
        for call in self.calls:
            call()


class _Waiting:
    """The mails of one transaction, between the names of the savepoints that were made meanwhile."""

    def __init__(self, connection: Connection) -> None:
        self._connection = weakref.ref(connection)
        self.entries: list[_Mail | str] = []
        self.committed: list[_Mail] = []

    def mails(self) -> Iterator[_Mail]:
        return (entry for entry in self.entries if isinstance(entry, _Mail))

    def commit(self) -> None:
        self.committed += self.mails()
        self.entries.clear()

    def roll_back_to(self, savepoint: str) -> None:
        """Forget what came after the savepoint: everything, if it is older than the first mail."""
        at = self._last(savepoint)
        del self.entries[0 if at is None else at + 1 :]

    def release(self, savepoint: str) -> None:
        if (at := self._last(savepoint)) is not None:
            del self.entries[at]

    def _last(self, savepoint: str) -> int | None:
        found = [at for at, entry in enumerate(self.entries) if entry == savepoint]
        return found[-1] if found else None

    @property
    def is_over(self) -> bool:
        connection = self._connection()
        return connection is None or connection.closed or not connection.in_transaction()


class Aside:
    """The mails of callers' transactions, for one database in memory."""

    def __init__(
        self,
        queue: Callable[[Message, Envelope], Keyed | None],
        find: Callable[[str], Keyed | None],
    ) -> None:
        self._queue = queue
        self._find = find
        self._waiting: WeakSet[_Waiting] = WeakSet()

    def keep(self, connection: Connection, message: Message, envelope: Envelope) -> Keyed | None:
        """Keep a mail until the commit. Return the mail that has its idempotency key, if there is one."""
        if not connection.in_transaction():
            connection.begin()
        waiting = self._waiting_of(connection)
        if envelope.key is not None:
            for mail in waiting.mails():
                if mail.envelope.key is not None and mail.envelope.key.name == envelope.key.name:
                    return Keyed(mail.message.id, mail.message.message_id, mail.envelope.key.fingerprint)
            if (earlier := self._find(envelope.key.name)) is not None:
                return earlier
        waiting.entries.append(_Mail(self._queue, message, envelope))
        return None

    def after_commit(self, connection: Connection, mail_id: str, call: Callable[[], object]) -> None:
        """Call this once the mail is queued."""
        for mail in self._waiting_of(connection).mails():
            if mail.message.id == mail_id:
                mail.calls.append(call)

    def settle(self) -> None:
        """Queue what was committed over connections that are kept, and do nothing since."""
        for waiting in list(self._waiting):
            if waiting.committed and waiting.is_over:
                _settle(waiting)

    def _waiting_of(self, connection: Connection) -> _Waiting:
        _listen(connection.engine)
        waiting: _Waiting | None = connection.info.get(_INFO)
        if waiting is None:
            waiting = connection.info[_INFO] = _Waiting(connection)
        self._waiting.add(waiting)
        return waiting


def _settle(waiting: _Waiting) -> None:
    committed, waiting.committed = waiting.committed, []
    for mail in committed:
        mail.settle()


# --- what SQLAlchemy tells of the caller's transaction ----------------------------------------------------------------


def _listen(engine: Engine) -> None:
    if not event.contains(engine, "commit", _commits):
        for name, listener in _LISTENERS.items():
            event.listen(engine, name, listener)


def _of(connection: Connection | None) -> _Waiting | None:
    if connection is None or connection.invalidated:
        return None
    waiting: _Waiting | None = connection.info.get(_INFO)
    return waiting


def _has_executed(connection: Connection, _cursor: object, statement: str, *_more: object) -> None:
    """Savepoints are known by their statements: SQLAlchemy's event of a new one does not tell its name."""
    found = _SAVEPOINT.match(statement)
    if found is None or (waiting := _of(connection)) is None:
        return
    match found["verb"].upper().split()[0]:
        case "SAVEPOINT":
            waiting.entries.append(found["name"])
        case "RELEASE":
            waiting.release(found["name"])
        case _:
            waiting.roll_back_to(found["name"])


def _rolls_back(connection: Connection) -> None:
    if waiting := _of(connection):
        waiting.entries.clear()


def _commits(connection: Connection) -> None:
    """SQLAlchemy tells it just before."""
    if waiting := _of(connection):
        waiting.commit()


def _fails(context: ExceptionContext) -> None:
    """It may be the commit."""
    if waiting := _of(context.connection):
        waiting.committed.clear()


def _begins(connection: Connection) -> None:
    """The transaction before is over."""
    if waiting := _of(connection):
        _settle(waiting)


def _is_returned(_driver_connection: object, record: Any) -> None:
    """The connection goes back to its pool: what is not committed by now never is."""
    waiting: _Waiting | None = record.info.pop(_INFO, None)
    if waiting is not None:
        _settle(waiting)


_LISTENERS: dict[str, Callable[..., None]] = {
    "after_cursor_execute": _has_executed,
    "rollback": _rolls_back,
    "commit": _commits,
    "handle_error": _fails,
    "begin": _begins,
    "checkin": _is_returned,
}
