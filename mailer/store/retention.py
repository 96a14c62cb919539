"""Retention: old records, texts and bytes are deleted.

Messages are locked before their deliveries. If two purges deleted deliveries of the same mail at
once, each would still see the other's, and neither would delete the mail: so the second one skips
the mail.
"""

from mailer.message import id_at
from mailer.store.bulk_imports import GOES_ON
from mailer.store.collation import id_by_byte
from mailer.store.database import Database
from mailer.store.erasing import LOCK_MAILS, delete_unused_blobs, erase
from mailer.store.sql import packed
from mailer.store.transactions import Transaction

# The import of a bulk send knows a duplicate by the delivery of its first row.
SOME_OLD = f"""
SELECT mailer_delivery.id, mail_id FROM mailer_delivery {{unless_locked}}
WHERE finished_at <= :before
    AND mail_id NOT IN (SELECT id FROM mailer_bulk WHERE {GOES_ON})
ORDER BY finished_at LIMIT :most
"""
PURGE = """
WITH old AS MATERIALIZED (
    SELECT id FROM mailer_delivery
    WHERE id {ids} AND COALESCE(finished_at, :before + 1) <= :before {lock})
DELETE FROM mailer_delivery
WHERE id IN (SELECT id FROM old)
RETURNING id
"""
PURGE_MAILS = """
WITH empty AS MATERIALIZED (
    SELECT id FROM mailer_message
    WHERE id {mails} AND NOT EXISTS (
        SELECT 1 FROM mailer_delivery WHERE mail_id = mailer_message.id) AND NOT EXISTS (
        SELECT 1 FROM mailer_bulk
        WHERE id = mailer_message.id AND COALESCE(finished_at, :before + 1) > :before) {lock})
DELETE FROM mailer_message
WHERE id IN (SELECT id FROM empty)
RETURNING id
"""
# Not NOT EXISTS: for that, PostgreSQL may read all deliveries into a hash table in each step.
SOME_MAILS = """
SELECT id, (SELECT 1 FROM mailer_delivery WHERE mail_id = mailer_message.id LIMIT 1) IS NULL
FROM mailer_message
WHERE id > :after
ORDER BY id LIMIT :most
"""
SOME_KEPT = """
SELECT id FROM mailer_message
WHERE erased_at IS NULL AND id > :after AND {id_by_byte} < :created_before
ORDER BY id LIMIT :most
"""
UNERASED_BULKS = """
SELECT id FROM mailer_bulk WHERE {id_by_byte} < :created_before AND snapshot <> '' ORDER BY id
"""
SOME_RECIPIENTS = """
SELECT delivery_id FROM mailer_bulk_recipient
WHERE bulk_id = :id AND delivery_id > :after
ORDER BY delivery_id LIMIT :most
"""
ERASE_OWN_PARTS = """
UPDATE mailer_bulk_recipient SET own = '', time_zone = NULL
WHERE delivery_id {ids} AND own <> '' AND EXISTS (
    SELECT 1 FROM mailer_delivery
    WHERE id = delivery_id AND COALESCE(finished_at, :before + 1) <= :before)
RETURNING delivery_id
"""
SOME_BLOBS = "SELECT sha256 FROM mailer_blob WHERE sha256 > :after ORDER BY sha256 LIMIT :most"

# In seconds: a mail that is being queued may rely on bytes that were used since.
_BLOB_IS_SPARED = 3600.0


class Retention(Database):
    """The steps of a purge. Each takes `most` rows, and the next one goes on where it ended."""

    def purge_finished(self, before: float, *, most: int) -> int:
        """Delete deliveries that finished before a time, and each mail with its last delivery.

        Return the number of deliveries.
        """

        def purge(transaction: Transaction) -> int:
            old = transaction.execute(SOME_OLD, {"before": before, "most": most})
            if not old:
                return 0
            mails = packed({mail_id for _number, mail_id in old})
            values = {"ids": packed(number for number, _mail_id in old), "before": before}
            purged = transaction.execute(PURGE, values)
            if purged:
                transaction.execute(PURGE_MAILS, {"mails": mails, "before": before})
            return len(purged)

        return self._transact(purge)

    def purge_orphans(self, before: float, *, after: str, most: int) -> str | None:
        """Delete mails without deliveries, but no bulk send that has not finished before a time.

        Return the last id looked at, or None at the end.
        """
        with self._look() as transaction:
            looked_at = transaction.execute(SOME_MAILS, {"after": after, "most": most})
        if orphans := [mail_id for mail_id, is_orphan in looked_at if is_orphan]:
            self._changes(PURGE_MAILS, {"mails": packed(orphans), "before": before})
        return looked_at[-1][0] if looked_at else None

    def erase_finished(self, before: float, *, now: float, after: str, most: int) -> str | None:
        """Erase the content of mails that finished before a time.

        Return the last id looked at, or None at the end.
        """
        values = {"after": after, "created_before": id_at(before), "most": most}

        def erase_some(transaction: Transaction) -> str | None:
            some_kept = SOME_KEPT.replace("{id_by_byte}", id_by_byte(transaction))
            mails: list[str] = [mail_id for (mail_id,) in transaction.execute(some_kept, values)]
            if mails:
                transaction.execute(LOCK_MAILS, {"mails": packed(mails)})
                erase(transaction, mails, now=now, finished_before=before)
            return mails[-1] if mails else None

        return self._transact(erase_some)

    def load_unerased_bulks(self, before: float) -> list[str]:
        """Return the bulk sends that may have own parts to erase: those begun before a time."""
        with self._look() as transaction:
            statement = UNERASED_BULKS.replace("{id_by_byte}", id_by_byte(transaction))
            found = transaction.execute(statement, {"created_before": id_at(before)})
            return [bulk_id for (bulk_id,) in found]

    def erase_own_parts(self, bulk_id: str, before: float, *, after: int, most: int) -> int | None:
        """Erase the own parts of deliveries of a bulk send that finished before a time.

        Return the last delivery looked at, or None at the end.
        """
        values = {"id": bulk_id, "after": after, "most": most}
        with self._look() as transaction:
            ids: list[int] = [number for (number,) in transaction.execute(SOME_RECIPIENTS, values)]
        if not ids:
            return None

        def erase_some(transaction: Transaction) -> None:
            # Locked, so that none is queued again meanwhile.
            transaction.execute(LOCK_MAILS, {"mails": packed([bulk_id])})
            transaction.execute(ERASE_OWN_PARTS, {"ids": packed(ids), "before": before})

        self._transact(erase_some)
        return ids[-1]

    def purge_blobs(self, now: float, *, after: str, most: int) -> str | None:
        """Delete bytes that no mail carries. Return the last hash looked at, or None at the end."""
        with self._look() as transaction:
            found = transaction.execute(SOME_BLOBS, {"after": after, "most": most})
        if not found:
            return None
        hashes: list[str] = [sha256 for (sha256,) in found]
        since = now - _BLOB_IS_SPARED
        self._transact(
            lambda transaction: delete_unused_blobs(transaction, hashes, unused_since=since)
        )
        return hashes[-1]
