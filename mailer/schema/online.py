"""Migrations while others work: nobody queues up behind a change that waits for its lock."""

import time
from collections.abc import Callable

from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import OperationalError

from mailer.errors import StoreUnavailable
from mailer.logs import get_logger

# In seconds. Everybody else waits behind a change that waits for its lock: so it waits for a second, and then lets them pass.
_LOCK, _PAUSE, _LIMIT = 1.0, 2.0, 300.0
_LOCK_NOT_AVAILABLE, _DEADLOCK = "55P03", "40P01"
_BLOCKERS = """
SELECT activity.pid, COALESCE(NULLIF(application_name, ''), backend_type), usename, COALESCE(state, 'active'),
    EXTRACT(EPOCH FROM clock_timestamp() - COALESCE(xact_start, query_start, backend_start))
FROM pg_stat_activity AS activity
WHERE pid <> pg_backend_pid() AND pid IN (
    SELECT pid FROM pg_locks JOIN pg_class ON pg_class.oid = relation
    WHERE granted AND relname LIKE 'mailer\\_%' AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))
ORDER BY xact_start LIMIT 3
"""

log = get_logger(__name__)


def change_online(engine: Engine, change: Callable[[Connection], None]) -> None:
    """Make a change in one transaction, again and again until it gets its locks.

    Raise `StoreUnavailable`, which names the sessions that hold the locks, if that takes more than five minutes.
    """
    deadline = time.monotonic() + _LIMIT
    tells = True
    while not _tried(engine, change):
        blockers = _blockers(engine)
        if time.monotonic() > deadline:
            raise StoreUnavailable(
                f"The tables of Mailer are in use and could not be changed within {_LIMIT:.0f} s. Nothing was changed. {blockers}"
                " Wait until that has ended, or end it with pg_terminate_backend(pid), and run 'flask mail migrate' again."
            )
        if tells:
            log.warning("The migration waits, and lets others pass: %s", blockers)
        tells = False
        time.sleep(_PAUSE)


def _tried(engine: Engine, change: Callable[[Connection], None]) -> bool:
    """Return whether it got its locks."""
    try:
        with engine.begin() as connection:
            if connection.dialect.name == "postgresql":
                # One migration at a time, however many machines are being deployed, and as long as it needs.
                connection.exec_driver_sql("SET LOCAL statement_timeout = 0")
                connection.exec_driver_sql("SELECT pg_advisory_xact_lock(hashtext('mailer_migration'))")
                connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{_LOCK:g}s'")
            change(connection)
    except OperationalError as error:
        if getattr(error.orig, "sqlstate", None) not in {_LOCK_NOT_AVAILABLE, _DEADLOCK}:
            raise
        return False
    return True


def _blockers(engine: Engine) -> str:
    """Return who has locks on our tables, in a sentence."""
    with engine.connect() as connection:
        found = connection.execute(text(_BLOCKERS)).all()
    sessions = [f"pid {pid} ({name} of {user}, {state} for {age:.0f} s)" for pid, name, user, state, age in found]
    return f"They are locked by {', '.join(sessions)}." if sessions else "Nobody has a lock on them any more."
