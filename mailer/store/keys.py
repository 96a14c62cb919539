"""Idempotency keys: the first mail with a key has it.

A second mail with the key waits until the transaction of the first one has ended. On PostgreSQL,
that may be a caller's transaction, which may stay open for long: so the wait has a limit.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from mailer.errors import KeyInUse
from mailer.message import Key, Keyed
from mailer.store import rows
from mailer.store.callers import CallersTransaction
from mailer.store.sql import insert_into
from mailer.store.transactions import Transaction, sqlstate_of

_KEYED_COLUMNS = (*rows.MESSAGE_COLUMNS, "idempotency_key", "fingerprint", "fingerprint_key")
INSERT_KEYED_MESSAGE = f"""
{insert_into("mailer_message", _KEYED_COLUMNS)}
ON CONFLICT (idempotency_key) WHERE idempotency_key IS NOT NULL DO NOTHING
RETURNING id
"""
HAS_KEY = """
SELECT id, message_id, fingerprint, fingerprint_key FROM mailer_message
WHERE idempotency_key = :idempotency_key
"""
#: Limits the waits for locks in this transaction, unless they are shorter already, and returns the
#: limit before.
LIMIT_WAITS = """
SELECT current_setting('lock_timeout'), set_config('lock_timeout', CASE
    WHEN CAST(current_setting('lock_timeout') AS interval) > INTERVAL '0'
        AND CAST(current_setting('lock_timeout') AS interval)
            < CAST(CAST(:limit AS text) AS interval)
    THEN current_setting('lock_timeout') ELSE CAST(:limit AS text) END, true)
"""
RESTORE_WAITS = "SELECT set_config('lock_timeout', :limit, true)"

# Shorter than the wait for a connection: a wait for a lock keeps its connection from others.
_LONGEST_WAIT = "2s"
# A sqlstate.
_LOCK_NOT_AVAILABLE = "55P03"


def insert_keyed(
    transaction: Transaction | CallersTransaction,
    row: Mapping[str, Any],
    key: Key,
    *,
    limit_waits: bool,
) -> Keyed | None:
    """Insert this row of a message, or return the mail that has its key already."""
    made = key.fingerprint
    keyed = {
        **row,
        "idempotency_key": key.name,
        "fingerprint": made.digest,
        "fingerprint_key": made.key_id,
    }
    if not limit_waits:
        return _insert(transaction, keyed)
    with _short_waits(transaction, key.name):
        return _insert(transaction, keyed)


def _insert(transaction: Transaction | CallersTransaction, row: Mapping[str, Any]) -> Keyed | None:
    while not transaction.execute(INSERT_KEYED_MESSAGE, row):
        # The mail with the key is committed by now. If none is found, it has just been purged.
        if found := find(transaction, row["idempotency_key"]):
            return found
    return None


def find(transaction: Transaction | CallersTransaction, name: str) -> Keyed | None:
    """Return the mail that has this key, if there is one."""
    found = transaction.execute(HAS_KEY, {"idempotency_key": name})
    return rows.keyed(found[0]) if found else None


@contextmanager
def _short_waits(transaction: Transaction | CallersTransaction, key: str) -> Iterator[None]:
    """Limit how long each statement in the block waits for a lock.

    After an error, the rollback of the savepoint or of the transaction removes the limit.
    """
    [(before, _now)] = transaction.execute(LIMIT_WAITS, {"limit": _LONGEST_WAIT})
    try:
        yield
    except Exception as error:
        if sqlstate_of(error) != _LOCK_NOT_AVAILABLE:
            raise
        raise KeyInUse(
            f"idempotency_key: {key!r} is held by another transaction that has not ended, and"
            " nothing was queued. Call again after it has been committed or rolled back, and"
            " commit soon after a mail has been queued with a key."
        ) from error
    if isinstance(transaction, CallersTransaction):  # the statements after it are the caller's
        transaction.execute(RESTORE_WAITS, {"limit": before})
