"""Erasing the content of mails, and the bytes that no mail carries any more."""

import math
from collections.abc import Collection, Iterable

from mailer.message import is_bulk_id
from mailer.store.sql import packed
from mailer.store.transactions import Transaction

# The last two deliveries of a mail may finish at the same moment. With this lock, the second
# transaction sees the first one's work, and erases the mail.
LOCK_PRIVATE = """
SELECT id FROM mailer_message {indexed}
WHERE id {mails} AND sensitive AND erased_at IS NULL
ORDER BY id {wait}
"""
LOCK_FREE_PRIVATE = """
SELECT id FROM mailer_message {indexed}
WHERE id {mails} AND sensitive AND erased_at IS NULL {skip}
"""
LOCK_MAILS = "SELECT id FROM mailer_message WHERE id {mails} ORDER BY id {wait}"
# A fingerprint without a key gives a code in a sensitive mail away to anybody who tries all codes.
ERASE = """
UPDATE mailer_message
SET text = NULL, html = NULL, alternatives = '[]', erased_at = :now,
    subject = CASE WHEN sensitive THEN '' ELSE subject END,
    headers = CASE WHEN sensitive THEN '[]' ELSE headers END,
    fingerprint = CASE WHEN sensitive AND fingerprint_key IS NULL THEN NULL ELSE fingerprint END
WHERE id {mails} AND erased_at IS NULL AND NOT EXISTS (
    SELECT 1 FROM mailer_delivery
    WHERE mail_id = mailer_message.id AND (finished_at IS NULL OR finished_at > :finished_before))
    AND NOT EXISTS (
        SELECT 1 FROM mailer_bulk
        WHERE id = mailer_message.id AND (finished_at IS NULL OR EXISTS (
            SELECT 1 FROM mailer_bulk_recipient WHERE bulk_id = mailer_bulk.id AND own <> '')))
RETURNING id
"""
# The own parts of a bulk send are erased before, in steps.
ERASE_SNAPSHOTS = "UPDATE mailer_bulk SET snapshot = '' WHERE id {mails} RETURNING id"
DETACH = "DELETE FROM mailer_attachment WHERE mail_id {mails} RETURNING sha256"
LOCK_UNUSED_BLOBS = """
SELECT sha256 FROM mailer_blob
WHERE sha256 {hashes} AND used_at <= :unused_since AND NOT EXISTS (
    SELECT 1 FROM mailer_attachment WHERE mailer_attachment.sha256 = mailer_blob.sha256)
{lock}
"""
PURGE_BLOBS = """
DELETE FROM mailer_blob
WHERE sha256 {hashes} AND NOT EXISTS (
    SELECT 1 FROM mailer_attachment WHERE mailer_attachment.sha256 = mailer_blob.sha256)
"""


def lock_sensitive(
    transaction: Transaction, mails: Collection[str], *, waits: bool = True
) -> set[str]:
    """Lock the sensitive ones of these mails that are not erased. Return their ids.

    Call it before their deliveries are locked. Without `waits`, leave out mails that another
    transaction has locked.
    """
    if not mails:
        return set()
    lock = LOCK_PRIVATE if waits else LOCK_FREE_PRIVATE
    return {mail_id for (mail_id,) in transaction.execute(lock, {"mails": packed(mails)})}


def erase_sensitive(transaction: Transaction, locked: Collection[str], *, now: float) -> None:
    """Erase those of these sensitive mails, whose rows are locked, that are finished."""
    if locked and (hashes := erase(transaction, locked, now=now)):
        delete_unused_blobs(transaction, hashes)


def erase(
    transaction: Transaction,
    mails: Iterable[str],
    *,
    now: float,
    finished_before: float = math.inf,
) -> list[str]:
    """Erase the content of the finished ones of these mails. Return the hashes of attachments."""
    values = {"mails": packed(mails), "now": now, "finished_before": finished_before}
    erased = [mail_id for (mail_id,) in transaction.execute(ERASE, values)]
    if not erased:
        return []
    if bulks := [mail_id for mail_id in erased if is_bulk_id(mail_id)]:
        transaction.execute(ERASE_SNAPSHOTS, {"mails": packed(bulks)})
    return [sha256 for (sha256,) in transaction.execute(DETACH, {"mails": packed(erased)})]


def delete_unused_blobs(
    transaction: Transaction, hashes: Collection[str], *, unused_since: float = math.inf
) -> None:
    """Delete the bytes that no mail carries, unless a mail that is being queued has locked them."""
    values = {"hashes": packed(hashes), "unused_since": unused_since}
    if found := [sha256 for (sha256,) in transaction.execute(LOCK_UNUSED_BLOBS, values)]:
        # A second statement, since only that sees the mails that were committed before the lock.
        transaction.execute(PURGE_BLOBS, {"hashes": packed(found)})
