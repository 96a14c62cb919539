"""Mail that waits for the commit of a transaction in another database.

A database in memory, as in tests, can't be part of the application's transaction. So a mail with
`connection=` is kept aside, and is queued when that transaction has been committed. A rollback
discards it, also a rollback to a savepoint that was made before it.
"""

import re
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from logging import Logger
from typing import Any
from weakref import WeakSet

from sqlalchemy import Connection, Engine, ExceptionContext, event

from mailer.logs import get_logger
from mailer.message import Envelope, Keyed, Message
from mailer.store.callers import AfterCommit

#: The key in a connection's `info` under which the mails wait for its commit.
_INFO = "mailer-aside"

_SAVEPOINT = re.compile(
    r"\s*(?P<verb>SAVEPOINT|RELEASE(\s+SAVEPOINT)?"
    r"|ROLLBACK(\s+(WORK|TRANSACTION))?\s+TO(\s+SAVEPOINT)?)"
    r"""\s+["'`]?(?P<name>\w+)""",
    re.IGNORECASE,
)

log: Logger = get_logger(__name__)


@dataclass(slots=True)
class _Mail:
    """A mail that waits for a commit, and the calls to make once it is queued."""

    queue: Callable[[Message, Envelope], Keyed | None]
    message: Message
    envelope: Envelope
    calls: list[AfterCommit] = field(default_factory=list)

    def settle(self) -> None:
        """Queue the mail. Log an error instead of raising it: the application has committed."""
        try:
            earlier = self.queue(self.message, self.envelope)
        except Exception:
            log.exception("A mail was not queued: mail_id=%s", self.message.id)
            return
        if earlier is not None:
            log.warning(
                "A mail was not queued, another transaction took its idempotency key: mail_id=%s"
                " earlier=%s",
                self.message.id,
                earlier.id,
            )
            return
        for call in self.calls:
            with suppress(Exception):
                call([self.message.id])


class _Kept:
    """The mails of one transaction, among the names of its savepoints, in the order of both."""

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
        """Forget the mails after a savepoint. One that is unknown is older than all of them."""
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
        self._all_kept: WeakSet[_Kept] = WeakSet()

    def keep(self, connection: Connection, message: Message, envelope: Envelope) -> Keyed | None:
        """Keep a mail until the commit, or return the mail that has its idempotency key."""
        if not connection.in_transaction():
            connection.begin()
        kept = self._kept_for(connection)
        if envelope.key is not None:
            for mail in kept.mails():
                if mail.envelope.key is not None and mail.envelope.key.name == envelope.key.name:
                    return Keyed(
                        mail.message.id, mail.message.message_id, mail.envelope.key.fingerprint
                    )
            if (earlier := self._find(envelope.key.name)) is not None:
                return earlier
        kept.entries.append(_Mail(self._queue, message, envelope))
        return None

    def after_commit(self, connection: Connection, mail_id: str, call: AfterCommit) -> None:
        """Make this call once the mail is queued."""
        for mail in self._kept_for(connection).mails():
            if mail.message.id == mail_id:
                mail.calls.append(call)

    def settle(self) -> None:
        """Queue the committed mails of connections that are still open, but idle."""
        for kept in list(self._all_kept):
            if kept.committed and kept.is_over:
                _settle(kept)

    def _kept_for(self, connection: Connection) -> _Kept:
        _listen(connection.engine)
        kept: _Kept | None = connection.info.get(_INFO)
        if kept is None:
            kept = connection.info[_INFO] = _Kept(connection)
        self._all_kept.add(kept)
        return kept


def _settle(kept: _Kept) -> None:
    committed, kept.committed = kept.committed, []
    for mail in committed:
        mail.settle()


# --- listeners of SQLAlchemy's events -----------------------------------------------------------


def _listen(engine: Engine) -> None:
    if not event.contains(engine, "commit", _keep_committed):
        for name, listener in _ASIDE_LISTENERS.items():
            event.listen(engine, name, listener)


def _kept_by(connection: Connection | None) -> _Kept | None:
    if connection is None or connection.invalidated:
        return None
    kept: _Kept | None = connection.info.get(_INFO)
    return kept


def _notice_savepoint(
    connection: Connection, _cursor: object, statement: str, *_more: object
) -> None:
    """Follow savepoints by their statements: SQLAlchemy's own event comes without their names."""
    found = _SAVEPOINT.match(statement)
    if found is None or (kept := _kept_by(connection)) is None:
        return
    match found["verb"].upper().split()[0]:
        case "SAVEPOINT":
            kept.entries.append(found["name"])
        case "RELEASE":
            kept.release(found["name"])
        case _:
            kept.roll_back_to(found["name"])


def _forget(connection: Connection) -> None:
    if kept := _kept_by(connection):
        kept.entries.clear()


def _keep_committed(connection: Connection) -> None:
    """Move the mails to the committed ones. SQLAlchemy calls this just before the commit."""
    if kept := _kept_by(connection):
        kept.commit()


def _forget_committed(context: ExceptionContext) -> None:
    """Forget the committed mails after any error: it may be the commit that failed."""
    if kept := _kept_by(context.connection):
        kept.committed.clear()


def _queue_before_next(connection: Connection) -> None:
    """Queue the committed mails at the beginning of the next transaction."""
    if kept := _kept_by(connection):
        _settle(kept)


def _queue_at_return(_driver_connection: object, record: Any) -> None:
    """Queue the committed mails when the connection goes back to its pool. Discard the others."""
    kept: _Kept | None = record.info.pop(_INFO, None)
    if kept is not None:
        _settle(kept)


_ASIDE_LISTENERS: dict[str, Callable[..., None]] = {
    "after_cursor_execute": _notice_savepoint,
    "rollback": _forget,
    "commit": _keep_committed,
    "handle_error": _forget_committed,
    "begin": _queue_before_next,
    "checkin": _queue_at_return,
}
