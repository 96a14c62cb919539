"""The lock of a machine on a SQLite file.

SQLite's locks do not reach over a network: on a file system that two machines share, both would
write at the same time, and break the file. So a machine leaves its mark in the file, and no other
machine uses the file while the mark is fresh.
"""

import platform
from dataclasses import dataclass

from mailer.errors import InUseElsewhere
from mailer.machine import boot_id
from mailer.store.callers import CallersTransaction
from mailer.store.transactions import Transaction

HOME = "SELECT name, seen_at FROM mailer_home"
HOME_IS_OURS = (
    "SELECT 1 FROM mailer_home WHERE machine = :machine AND seen_at > :since AND seen_at <= :now"
)
MARK_HOME = """
INSERT INTO mailer_home (id, machine, name, seen_at) VALUES (1, :machine, :name, :now)
ON CONFLICT (id) DO UPDATE SET machine = :machine, name = :name, seen_at = :now
WHERE mailer_home.machine = :machine
    OR mailer_home.seen_at <= :since OR mailer_home.seen_at > :until
RETURNING id
"""

# In seconds.
_IS_FRESH, _RENEWED_AFTER = 30.0, 10.0


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine. Its containers are the same machine: they share its kernel, and so the locks."""

    id: str
    name: str


def this_machine() -> Machine:
    name = platform.node()
    return Machine(boot_id() or name, name)


def is_marked(transaction: Transaction, machine: Machine, now: float) -> bool:
    """Return whether the mark is ours, and need not be renewed yet."""
    values = {"machine": machine.id, "now": now, "since": now - _RENEWED_AFTER}
    return transaction.execute(HOME_IS_OURS, values) != []


def mark(transaction: Transaction | CallersTransaction, machine: Machine, now: float) -> None:
    """Leave the mark, or raise `InUseElsewhere` if another machine's is fresh."""
    values = {
        "machine": machine.id,
        "name": machine.name,
        "now": now,
        "since": now - _IS_FRESH,
        "until": now + _IS_FRESH,
    }
    if not transaction.execute(MARK_HOME, values):
        [(name, seen_at)] = transaction.execute(HOME, {})
        raise InUseElsewhere(
            f"MAILER_DATABASE_URL: the SQLite file is in use on another machine, {name!r}"
            f" ({max(0.0, now - seen_at):.0f} s ago)."
            " Two machines would break it: use PostgreSQL for more than one. If it was moved here,"
            f" or this machine was restarted just now, try again in {_IS_FRESH:.0f} s."
        )
