"""The bytes of attachments, stored once however many mails carry them.

On PostgreSQL, a mail locks the bytes that it relies on with FOR KEY SHARE, as its foreign key does:
any number of transactions can, and the purge skips such rows. If the mail is queued in a caller's
transaction, new bytes are written in a short transaction of our own: in the caller's, their row
would stay locked until the caller commits, and mails with the same file would wait for it. A caller
that can't see rows of later transactions (REPEATABLE READ, SERIALIZABLE) gets a copy of its own.
On SQLite, the one writer is the caller's transaction, so the bytes are written in it.

A sensitive mail always has a copy of its own, which is deleted with it.
"""

from collections.abc import Callable, Mapping
from logging import Logger

from mailer.errors import StoreUnavailable
from mailer.logs import get_logger
from mailer.message import Message
from mailer.store import rows
from mailer.store.callers import CallersTransaction
from mailer.store.sql import insert_into, packed
from mailer.store.transactions import Transaction

INSERT_ATTACHMENT = insert_into(
    "mailer_attachment",
    (
        "mail_id",
        "position",
        "sha256",
        "filename",
        "content_type",
        "content_id",
        "disposition",
        "headers",
    ),
)
KEEP_BLOBS = "SELECT sha256, used_at FROM mailer_blob WHERE sha256 {hashes} ORDER BY sha256 {keep}"
INSERT_BLOB = """
INSERT INTO mailer_blob (sha256, used_at, data)
VALUES (:sha256, :used_at, :data)
ON CONFLICT (sha256) DO NOTHING
"""
# A row that is locked is skipped: its transaction renews it to about the same time.
RENEW_BLOBS = """
WITH mine AS MATERIALIZED (
    SELECT sha256 FROM mailer_blob
    WHERE sha256 {hashes} AND used_at < :used_at {skip})
UPDATE mailer_blob SET used_at = :used_at
WHERE sha256 IN (SELECT sha256 FROM mine)
"""

# The time of the last use is renewed if it is older, in seconds. The purge spares twice as much.
_IS_FRESH = 1800.0

#: A function that does some work in a short transaction of our own.
InOwnTransaction = Callable[[Callable[[Transaction], None]], None]

log: Logger = get_logger(__name__)


def insert_attachments(
    transaction: Transaction | CallersTransaction,
    message: Message,
    in_own_transaction: InOwnTransaction | None = None,
) -> None:
    """Store the attachments of a mail.

    `in_own_transaction` is given if this transaction is the caller's on PostgreSQL.
    """
    data = {rows.blob_hash(one.data, message): one.data for one in message.attachments}
    since = message.created_at - _IS_FRESH
    used_at = message.created_at
    names = {sha256: sha256 for sha256 in data}  # the hash that each is stored under
    stale, missing = _lock_known(transaction, data, since)

    def write(own: Transaction | CallersTransaction) -> None:
        _write(own, {sha256: data[sha256] for sha256 in missing}, stale, used_at)

    if in_own_transaction is None or message.sensitive:
        write(transaction)
    elif stale or missing:
        try:
            in_own_transaction(write)
        except StoreUnavailable as error:
            if missing:
                log.warning(
                    "The files of mail %s could not be stored beside the caller's transaction,"
                    " so the new ones are stored in it: %s",
                    message.id,
                    error,
                )
        if missing:
            _stale, unseen = _lock_known(
                transaction, {sha256: data[sha256] for sha256 in missing}, since
            )
            names |= {sha256: rows.own_blob_hash(data[sha256], message) for sha256 in unseen}
            _write(transaction, {names[sha256]: data[sha256] for sha256 in unseen}, [], used_at)
    attached = enumerate(
        (names[rows.blob_hash(one.data, message)], one) for one in message.attachments
    )
    transaction.execute_many(
        INSERT_ATTACHMENT,
        [rows.attachment_row(message.id, position, *one) for position, one in attached],
    )


def _lock_known(
    transaction: Transaction | CallersTransaction, data: Mapping[str, bytes], since: float
) -> tuple[list[str], list[str]]:
    """Lock the stored ones of these bytes. Return those used too long ago, and the missing ones."""
    used: dict[str, float] = dict(transaction.execute(KEEP_BLOBS, {"hashes": packed(data)}))
    return [one for one in used if used[one] <= since], [one for one in data if one not in used]


def _write(
    transaction: Transaction | CallersTransaction,
    new: Mapping[str, bytes],
    stale: list[str],
    used_at: float,
) -> None:
    """Write new bytes in the order of their hashes, so that two mails can't deadlock."""
    for sha256 in sorted(new):
        transaction.execute(
            INSERT_BLOB, {"sha256": sha256, "used_at": used_at, "data": new[sha256]}
        )
    if stale:
        transaction.execute(RENEW_BLOBS, {"hashes": packed(stale), "used_at": used_at})
