"""Idempotency keys: the mail that is first with a key has it.

Whoever comes second waits until the first transaction has ended. On PostgreSQL that may be a caller's, which stays open for
as long as the caller likes: so nobody waits for it longer than a moment.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from mailer.errors import KeyInUse
from mailer.message import Key, Keyed
from mailer.store import rows
from mailer.store import statements as sql
from mailer.store.hosts import HostTransaction
from mailer.store.transactions import Transaction, sqlstate_of

# Shorter than the wait for a connection: those who wait here keep connections from others.
_LONGEST_WAIT = "2s"
_LOCK_NOT_AVAILABLE = "55P03"


def insert_keyed(
    transaction: Transaction | HostTransaction, row: Mapping[str, Any], key: Key, *, limit_waits: bool
) -> Keyed | None:
    """Insert this row of a message, or return the mail that has its key already."""
    made = key.fingerprint
    keyed = {**row, "idempotency_key": key.name, "fingerprint": made.digest, "fingerprint_key": made.key_id}
    if not limit_waits:
        return _insert(transaction, keyed)
    with _short_waits(transaction, key.name):
        return _insert(transaction, keyed)


def _insert(transaction: Transaction | HostTransaction, row: Mapping[str, Any]) -> Keyed | None:
    while not transaction.execute(sql.INSERT_KEYED_MESSAGE, row):
        # Whoever has the key has committed by now. None at all: it has just been purged.
        if found := find(transaction, row["idempotency_key"]):
            return found
    return None


def find(transaction: Transaction | HostTransaction, name: str) -> Keyed | None:
    """Return the mail that has this key."""
    found = transaction.execute(sql.HAS_KEY, {"idempotency_key": name})
    return rows.keyed(found[0]) if found else None


@contextmanager
def _short_waits(transaction: Transaction | HostTransaction, key: str) -> Iterator[None]:
    """Limit how long each statement waits for a lock. A failure undoes the limit with the savepoint or the transaction."""
    [(before, _now)] = transaction.execute(sql.LIMIT_WAITS, {"limit": _LONGEST_WAIT})
    try:
        yield
    except Exception as error:
        if sqlstate_of(error) != _LOCK_NOT_AVAILABLE:
            raise
        raise KeyInUse(
            f"idempotency_key: {key!r} is held by another transaction that has not ended, and nothing was queued. Call again"
            " after it has been committed or rolled back, and commit soon after a mail has been queued with a key."
        ) from error
    if isinstance(transaction, HostTransaction):  # what comes after is the caller's
        transaction.execute(sql.RESTORE_WAITS, {"limit": before})
