"""The write-ahead log of a SQLite file."""

import sqlite3
from contextlib import closing
from pathlib import Path

from mailer.store import Store
from mailer.store.engines import WAL_BYTES
from tests.mails import a_message, insert
from tests.services.databases import sqlite_only


@sqlite_only
def test_the_log_shrinks_after_a_long_reader(store: Store) -> None:
    """A log that a long reader let grow is truncated by the next few mails."""
    insert(store)
    file = str(store.engine.url.database)
    log = Path(f"{file}-wal")
    with closing(sqlite3.connect(file, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT COUNT(*) FROM mailer_message").fetchall()
        while log.stat().st_size < 2 * WAL_BYTES:
            insert(store, message=a_message(text="x" * 1_000_000))
        reader.execute("COMMIT")
        for _ in range(3):  # one copies the log into the file, the next truncates it
            insert(store)

        assert log.stat().st_size <= WAL_BYTES
