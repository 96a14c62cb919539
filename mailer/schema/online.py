"""Migrations of busy tables: no transaction waits long behind a change that waits for its lock."""

import time
from collections.abc import Callable
from logging import Logger

from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import OperationalError

from mailer.errors import StoreUnavailable
from mailer.logs import get_logger

# In seconds. Others wait behind a change that waits for its lock: it gives up after a second, and
# lets them pass.
_LOCK, _PAUSE, _LIMIT = 1.0, 2.0, 300.0
_LOCK_NOT_AVAILABLE, _DEADLOCK = "55P03", "40P01"
# A role that is no superuser sees only the names of the sessions of others.
_SESSIONS = """
SELECT activity.pid, COALESCE(NULLIF(application_name, ''), backend_type, 'unknown'),
    COALESCE(usename, 'the system'), state,
    EXTRACT(EPOCH FROM clock_timestamp() - COALESCE(xact_start, query_start, backend_start))
FROM pg_stat_activity AS activity
WHERE pid <> pg_backend_pid() AND pid IN (
    SELECT pid FROM pg_locks JOIN pg_class ON pg_class.oid = relation
    WHERE granted AND relname LIKE 'mailer\\_%' AND pg_table_is_visible(pg_class.oid)
        AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))
ORDER BY xact_start LIMIT 3
"""

log: Logger = get_logger(__name__)


def change_online(engine: Engine, change: Callable[[Connection], None]) -> None:
    """Make a change in one transaction, and repeat it until it gets its locks.

    Raise StoreUnavailable, with the sessions that hold the locks, after five minutes.
    """
    deadline = time.monotonic() + _LIMIT
    is_first = True
    while not _tried(engine, change):
        sessions = _sessions(engine)
        if time.monotonic() > deadline:
            raise StoreUnavailable(
                f"The tables of Mailer are in use and could not be changed within {_LIMIT:.0f} s."
                f" Nothing was changed. {_advice(sessions)}"
            )
        if is_first:
            holders = ", ".join(sessions) or "nobody any more"
            log.warning("Migration waits, since the tables of Mailer are locked: by=%s", holders)
        is_first = False
        time.sleep(_PAUSE)


def _tried(engine: Engine, change: Callable[[Connection], None]) -> bool:
    """Return whether the change got its locks."""
    try:
        with engine.begin() as connection:
            if connection.dialect.name == "postgresql":
                # One migration at a time on all machines, and without a time-out.
                connection.exec_driver_sql("SET LOCAL statement_timeout = 0")
                connection.exec_driver_sql(
                    "SELECT pg_advisory_xact_lock(hashtext('mailer_migration'))"
                )
                connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{_LOCK:g}s'")
            change(connection)
    except OperationalError as error:
        if getattr(error.orig, "sqlstate", None) not in {_LOCK_NOT_AVAILABLE, _DEADLOCK}:
            raise
        return False
    return True


def _sessions(engine: Engine) -> list[str]:
    """Return the sessions with locks on our tables."""
    with engine.connect() as connection:
        return [_shown(*row) for row in connection.execute(text(_SESSIONS))]


def _shown(pid: int, name: str, user: str, state: str | None, age: float | None) -> str:
    """Describe a session to an operator."""
    seen = "" if state is None else f", {state}"
    return f"pid {pid} ({name} of {user}{seen}{'' if age is None else f' for {age:.0f} s'})"


def _advice(sessions: list[str]) -> str:
    """Return advice on these sessions."""
    if not sessions:
        return "Nobody has a lock on them any more: run 'flask mail migrate' again."
    return (
        f"They are locked by {', '.join(sessions)}. Wait until that has ended, or end it with"
        " pg_terminate_backend(pid), and run 'flask mail migrate' again."
    )
