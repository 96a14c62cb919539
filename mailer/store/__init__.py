"""The store: every query, in one file for each subject, named by its guard.

A move of a delivery is one statement, guarded by the state it leaves and by the token of the claim.
It returns the ids of the rows it moved: of two at the same time, the second moves nothing. See
`moves.py`.
"""

from mailer.store.bulk import BulkSends
from mailer.store.bulk_imports import Chunk, Importer, NewBulk, NewRecipient
from mailer.store.callers import AfterCommit, CallersConnection, connection_of
from mailer.store.decisions import Decisions
from mailer.store.moves import MOVED_AT_ONCE
from mailer.store.outlook import Outlook
from mailer.store.pauses import Pauses
from mailer.store.queue import Queue, Result
from mailer.store.quotas import Quotas
from mailer.store.retention import Retention
from mailer.store.search import Filter, Search
from mailer.store.workers import Workers

__all__ = [
    "MOVED_AT_ONCE",
    "AfterCommit",
    "CallersConnection",
    "Chunk",
    "Filter",
    "Importer",
    "NewBulk",
    "NewRecipient",
    "Outlook",
    "Result",
    "Store",
    "connection_of",
]


class Store(Queue, Quotas, Pauses, Decisions, Retention, Search, BulkSends, Workers):
    """The database of one app. It is safe to share between threads, and to use after a fork."""
