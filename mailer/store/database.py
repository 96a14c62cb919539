"""The database of one app: its connections, its tables, and the meaning of its failures."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache, partial
from logging import Logger
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakSet, finalize

from sqlalchemy import Connection, Engine, make_url
from sqlalchemy import exc as sqlalchemy_errors

from mailer import schema
from mailer.errors import CommitLost, SchemaMismatch, StoreUnavailable
from mailer.forks import notice_fork, survive_forks
from mailer.logs import get_logger
from mailer.message.events import AnyEvent
from mailer.settings.database import file_of
from mailer.store import callers, machine_lock, memory, sqlite_locks
from mailer.store.callers import CallersTransaction
from mailer.store.engines import Turn, make_engine, without_timeouts
from mailer.store.sql import render_sql
from mailer.store.transactions import CommitUnanswered, Transaction, Transactions, sqlstate_of

#: The identity of a database, whatever its URL. No row for a SQLite database in memory.
WHICH_SQLITE = "SELECT file FROM pragma_database_list WHERE name = 'main' AND file <> ''"
WHICH_POSTGRESQL = """
SELECT EXTRACT(EPOCH FROM pg_postmaster_start_time()), current_database(),
    CAST(to_regclass('mailer_message') AS oid)
"""

#: A table that is there if the tables of Mailer are.
HAS_TABLES = "SELECT 1 FROM sqlite_master WHERE name = 'mailer_version'"

T = TypeVar("T")

# The sqlstates of a serialization failure and of a deadlock.
_UNDONE_FOR_OTHERS = frozenset({"40001", "40P01"})

log: Logger = get_logger(__name__)


class Database:
    """A database, safe to share between threads and to carry over a fork."""

    def __init__(self, url: str, *, pgbouncer: bool = False) -> None:
        self.engine: Engine = make_engine(make_url(url), pgbouncer=pgbouncer)
        self._sqlite = self.engine.dialect.name == "sqlite"
        self._render = cache(partial(render_sql, sqlite=self._sqlite))
        self._transactions = Transactions(self.engine, self._render, limits_each=pgbouncer)
        self._checked = False
        self._file = file_of(self.engine.url)
        self.is_in_memory: bool = self._sqlite and self._file is None
        self._turn = self._new_turn()
        self._joint = threading.local()
        self._known_callers: WeakSet[Engine] = WeakSet()  # engines that lead to the same tables
        self._parents_pools: list[Any] = []
        survive_forks(self)
        # Nothing is disposed of at the end of the process, which would have to wait for it.
        finalize(self, self.engine.dispose).atexit = False

    # --- its tables ------------------------------------------------------------------------------

    def migrate(self, to: str = "head", *, new_tables: bool = False) -> None:
        """Bring the tables to the revision this code needs, or to another one."""
        notice_fork()
        with self._mapped_errors(), self._turn:
            schema.migrate(without_timeouts(self.engine), to, new_tables=new_tables)

    def check_schema(self) -> None:
        """Refuse tables that do not fit this code, and a SQLite file that another machine uses.

        Make the tables in a new SQLite file.
        """
        notice_fork()
        if self._checked:
            return
        with self._mapped_errors(), self._turn:
            self._check()

    def _check(self) -> None:
        """Check the schema once. This thread has its turn already."""
        if not self._checked:
            self._check_tables()
            self._lock_for_machine(time.time())
            self._checked = True

    def _check_tables(self) -> None:
        with self.engine.connect().execution_options(reads_only=True) as connection:
            found = schema.look(connection)
        if found.revision is None and self.is_in_memory:
            memory.make_tables(self.engine)
        elif found.revision is None and self._sqlite:
            schema.migrate(self.engine)
        else:
            schema.check(found)

    def renew_machine_lock(self, now: float) -> None:
        """Mark a SQLite file as still in use on this machine.

        Raise `InUseElsewhere`, now and in each later call, if another machine has taken it over.
        """
        if self._file is None:
            return
        with self._look() as transaction:
            if machine_lock.is_marked(transaction, machine_lock.this_machine(), now):
                return
        self._checked = False
        with self._mapped_errors(), self._turn:
            self._lock_for_machine(now)
        self._checked = True

    def _lock_for_machine(self, now: float) -> None:
        if self._file is not None:
            with self._transactions.write() as transaction:
                machine_lock.mark(transaction, machine_lock.this_machine(), now)

    # --- transactions ----------------------------------------------------------------------------

    @contextmanager
    def together(self) -> Iterator[None]:
        """Make one transaction, with one fsync, of all that this thread writes in the block."""
        with self._write() as transaction:
            outer, self._joint.transaction = self._joint_transaction, transaction
            try:
                yield
            finally:
                self._joint.transaction = outer

    def _transact(self, work: Callable[[Transaction], T]) -> T:
        """Run `work` in one transaction. Repeat it once after a deadlock or serialization failure.

        Inside `together()`, it is part of that transaction, which is undone as a whole: then
        `StoreUnavailable` leaves the block, and the caller may run the block again.
        """
        try:
            with self._write() as transaction:
                return work(transaction)
        except StoreUnavailable as error:
            if (
                self._joint_transaction is not None
                or sqlstate_of(error.__cause__) not in _UNDONE_FOR_OTHERS
            ):
                raise
        with self._write() as transaction:
            return work(transaction)

    def _changes(self, statement: str, values: Mapping[str, Any]) -> bool:
        """Execute a statement that returns the changed rows. Return whether there were any."""
        return self._transact(lambda transaction: transaction.execute(statement, values)) != []

    @property
    def _joint_transaction(self) -> Transaction | None:
        found: Transaction | None = getattr(self._joint, "transaction", None)
        return found

    @contextmanager
    def _write(self) -> Iterator[Transaction]:
        if (joint := self._joint_transaction) is not None:
            yield joint
            return
        with self._opened(self._transactions.write) as transaction:
            yield transaction
        if transaction.events:  # the commit is done, and the connection is back in its pool
            self._publish(transaction.events)

    def _publish(self, events: Sequence[AnyEvent]) -> None:
        """Do nothing: this class knows no outlet."""

    @contextmanager
    def _join(self, caller: Connection) -> Iterator[CallersTransaction]:
        notice_fork()
        with self._mapped_errors():
            if not self._checked or caller.engine not in self._known_callers:
                self._check_caller(caller)
            with callers.joined(caller, self._render) as transaction:
                yield transaction

    def _check_caller(self, caller: Connection) -> None:
        """Check the tables like `check_schema`, but write over the caller's connection.

        The caller may be SQLite's one writer already. So take no turn: the thread that has it may
        be waiting for that writer.
        """
        which = WHICH_SQLITE if self._sqlite else WHICH_POSTGRESQL
        self._refuse_to_wait(caller)
        with self._transactions.look() as transaction:
            place = transaction.execute(which, {})
        self._check_tables()
        callers.check_leads_to(caller, place, which, self.engine, self._render)
        if self._file is not None:
            with callers.joined(caller, self._render) as theirs:
                machine_lock.mark(theirs, machine_lock.this_machine(), time.time())
        self._checked = True
        self._known_callers.add(caller.engine)

    def _refuse_to_wait(self, caller: Connection) -> None:
        """Raise SchemaMismatch if SQLite's tables are missing, and the caller may be its writer.

        Making them would wait for the caller, who waits for this call.
        """
        if self._checked or self._file is None or caller.dialect.name != "sqlite":
            return
        if not callers.is_in_transaction(caller):
            return
        theirs = CallersTransaction(caller, self._render)
        places = [Path(file) for (file,) in theirs.execute(WHICH_SQLITE, {})]
        is_same = self._file.exists() and any(self._file.samefile(place) for place in places)
        if is_same and not theirs.execute(HAS_TABLES, {}):
            raise SchemaMismatch(
                "The database has no tables of Mailer yet, and SQLite can't make them while your"
                " transaction is open: run 'flask mail migrate' once, before the first call with"
                " connection=."
            )

    def _read(self) -> AbstractContextManager[Transaction]:
        return self._opened(self._transactions.read)

    def _look(self) -> AbstractContextManager[Transaction]:
        return self._opened(self._transactions.look)

    @contextmanager
    def _opened(
        self, open_: Callable[[], AbstractContextManager[Transaction]]
    ) -> Iterator[Transaction]:
        notice_fork()
        with self._mapped_errors(), self._turn:
            self._check()
            with open_() as transaction:
                yield transaction

    @contextmanager
    def _mapped_errors(self) -> Iterator[None]:
        driver = self.engine.dialect.loaded_dbapi
        try:
            with self._noticing_vanished_tables():
                yield
        except (*_mistakes(driver), *_mistakes(sqlalchemy_errors)) as error:
            if not self._lacks_pgbouncer(error):
                raise  # a mistake of this code, which a second try does not mend
            raise self._unavailable(error) from error
        except CommitUnanswered as unanswered:
            raise CommitLost(
                "The database of Mailer (MAILER_DATABASE_URL) went away during the commit: the"
                " mail may be queued, or the change be made, or not. Calls with an"
                " idempotency_key can be repeated, and queue one mail:"
                f" {_reason(unanswered.__cause__)}"
            ) from unanswered.__cause__
        except (
            driver.Error,
            sqlalchemy_errors.DBAPIError,
            sqlalchemy_errors.TimeoutError,
        ) as error:
            raise self._unavailable(error) from error

    def _unavailable(self, error: Exception) -> StoreUnavailable:
        reason = _reason(error)
        if self._lacks_pgbouncer(error):
            reason += ": there is a pooler before the database, so set MAILER_PGBOUNCER to true."
        if self._sqlite and "database is locked" in reason:
            reason += (
                ": another transaction has written to the file for ten seconds. If it is your own,"
                " give it to the call as connection=db.session, or commit it before."
            )
        return StoreUnavailable(
            "The database of Mailer (MAILER_DATABASE_URL) did not do it, and nothing was queued"
            f" or changed: {reason}"
        )

    def _lacks_pgbouncer(self, error: Exception) -> bool:
        if self._sqlite:
            return False
        from mailer.store import postgresql  # noqa: PLC0415 -- its driver is an extra

        return postgresql.is_behind_pooler(error)

    @contextmanager
    def _noticing_vanished_tables(self) -> Iterator[None]:
        """Raise `SchemaMismatch` if a table is gone that was there at the check of the schema."""
        try:
            yield
        except (self.engine.dialect.loaded_dbapi.Error, sqlalchemy_errors.DBAPIError) as error:
            if not _says_no_table(getattr(error, "orig", error)):
                raise
            self._checked = False
            raise SchemaMismatch(schema.GONE) from error

    def _new_turn(self) -> AbstractContextManager[None]:
        return Turn() if self._sqlite else nullcontext()

    # --- forks -----------------------------------------------------------------------------------

    def before_fork(self) -> None:
        """Close SQLite.

        An open connection in a child would believe that it has its parent's locks, and write to a
        log that other processes delete.
        """
        if isinstance(self._turn, Turn):
            self._turn.lock.acquire()
        if self._file is not None:
            self.engine.dispose()

    def after_fork_in_parent(self) -> None:
        if isinstance(self._turn, Turn):
            self._turn.lock.release()

    def after_fork_in_child(self) -> None:
        """Make new connections. Keep the parent's, so that no garbage collector closes them."""
        self._turn = self._new_turn()
        self._parents_pools.append(self.engine.pool)
        self.engine.dispose(close=False)
        if self.is_in_memory:
            self._checked = False  # the child begins with a new, empty database

    def after_hooked_fork(self) -> None:
        """Take over SQLite's locks if the application had a connection of its own to the file."""
        if self._file is not None and sqlite_locks.is_open(self._file):
            self.after_unhooked_fork()

    def after_unhooked_fork(self) -> None:
        """Take over SQLite's locks: the parent's connection was not closed before the fork."""
        if self._file is None:
            return
        try:
            sqlite_locks.take_over(self._file)
        except FileNotFoundError:
            return  # without a file, there is nothing to lock
        except OSError:
            log.exception(
                "The locks of %s could not be taken over in a forked process: others may delete"
                " its log.",
                self._file,
            )


def _reason(error: object) -> str:
    """Return the message of a database's error on one line."""
    return " ".join(str(getattr(error, "orig", None) or error).split())


def _says_no_table(error: object) -> bool:
    """Return whether a table of ours is missing."""
    is_missing = sqlstate_of(error) == "42P01" or "no such table" in str(error)
    return is_missing and "mailer_" in str(error)


def _mistakes(errors: Any) -> tuple[type[Exception], ...]:
    return errors.IntegrityError, errors.DataError, errors.ProgrammingError
