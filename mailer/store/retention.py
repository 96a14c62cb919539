"""What leaves the database: records that are old, what sensitive mails said, and bytes that no mail carries.

Messages are locked before their deliveries, here as everywhere. If two purges deleted copies of the same mail at once,
each would still see the other's, and neither would delete the mail: so the second steps over it.
"""

import math
from collections.abc import Collection, Iterable

from mailer.store import statements as sql
from mailer.store.spelling import packed
from mailer.store.transactions import Transaction

#: The purge spares bytes for so many seconds after their last use: they may be those of a mail on its way in.
BLOB_IS_SPARED = 3600.0


def purge_finished(transaction: Transaction, before: float, *, most: int) -> int:
    """Delete deliveries that finished before then, and mails with their last; return the number of deliveries."""
    old = transaction.execute(sql.SOME_OLD, {"before": before, "most": most})
    if not old:
        return 0
    mails = packed({mail_id for _number, mail_id in old})
    values = {"ids": packed(number for number, _mail_id in old), "before": before}
    purged = transaction.execute(sql.PURGE, values)
    if purged:
        transaction.execute(sql.PURGE_MAILS, {"mails": mails})
    return len(purged)


def orphans(transaction: Transaction, *, after: str, most: int) -> tuple[list[str], str | None]:
    """Return those of the next mails that have no delivery any more, and the last id that was looked at."""
    looked_at = transaction.execute(sql.SOME_MAILS, {"after": after, "most": most})
    return [mail_id for mail_id, is_orphan in looked_at if is_orphan], looked_at[-1][0] if looked_at else None


def purge_blobs(transaction: Transaction, hashes: Collection[str], *, unused_since: float = math.inf) -> None:
    """Delete those of these bytes that no mail carries; what a mail on its way in has locked is stepped over."""
    values = {"hashes": packed(hashes), "unused_since": unused_since}
    if found := [sha256 for (sha256,) in transaction.execute(sql.LOCK_UNUSED_BLOBS, values)]:
        # A second statement, which sees the mails that were committed before the lock.
        transaction.execute(sql.PURGE_BLOBS, {"hashes": packed(found)})


def erase(transaction: Transaction, mails: Iterable[str], *, now: float, finished_before: float = math.inf) -> list[str]:
    """Erase what those of the mails said that are finished; return the hashes of what they carried."""
    values = {"mails": packed(mails), "now": now, "finished_before": finished_before}
    erased = [mail_id for (mail_id,) in transaction.execute(sql.ERASE, values)]
    return [sha256 for (sha256,) in transaction.execute(sql.DETACH, {"mails": packed(erased)})] if erased else []


def erase_sensitive(transaction: Transaction, locked: Collection[str], *, now: float) -> None:
    """End what is said in sensitive mails that have come to their end; their rows are locked."""
    if locked and (hashes := erase(transaction, locked, now=now)):
        purge_blobs(transaction, hashes)


def lock_sensitive(transaction: Transaction, mails: Collection[str], *, waits: bool = True) -> set[str]:
    """Lock those of the mails that are sensitive and not erased, before their deliveries; return their ids.

    Without `waits`, those that somebody else has locked are left out.
    """
    if not mails:
        return set()
    lock = sql.LOCK_PRIVATE if waits else sql.LOCK_FREE_PRIVATE
    return {mail_id for (mail_id,) in transaction.execute(lock, {"mails": packed(mails)})}
