"""The test suite itself: databases that tests share, and tests that run alone."""

import fcntl
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import pytest
from sqlalchemy import create_engine, text

from mailer.store import Store
from tests.mails import insert, table
from tests.services import machine
from tests.services.databases import Databases
from tests.services.machine import share_of_machine
from tests.services.waiting import wait_until


def test_a_database_is_emptied_and_used_again(postgres_databases: Databases) -> None:
    """A database that is reused has no rows, restarted sequences and no connections."""
    with postgres_databases.migrated() as url:
        store = Store(url)
        insert(store)
        [first] = table(store)
    with postgres_databases.migrated() as again:
        store.engine.dispose()
        fresh = Store(again)
        assert (again, table(fresh)) == (url, {})
        insert(fresh)
        assert [*table(fresh)] == [first]
        fresh.engine.dispose()


@pytest.mark.parametrize(
    "change",
    [
        "ALTER TABLE mailer_message ADD COLUMN note text",
        "CREATE TABLE orders (id integer)",
        "DROP INDEX mailer_message_kept",
        "CREATE SEQUENCE numbers",
        "UPDATE mailer_version SET readable_from = '0001'",
        "CREATE SCHEMA mail",
        "ALTER TABLE mailer_delivery SET (fillfactor = 50)",
        "ALTER DATABASE {name} SET default_transaction_read_only = on",
        "ALTER DATABASE {name} CONNECTION LIMIT 3",
    ],
)
def test_a_database_that_was_changed_is_dropped(postgres_databases: Databases, change: str) -> None:
    """A database whose structure or settings a test changed is not reused."""
    with postgres_databases.migrated() as url:
        engine = create_engine(url, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(text(change.format(name=engine.url.database)))
        engine.dispose()
    with postgres_databases.migrated() as other:
        assert other != url


@pytest.fixture
def _own_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the locks of the test run by new ones."""
    for name in ("_GATE", "_MACHINE"):
        file = tmp_path / name
        file.touch()
        monkeypatch.setattr(machine, name, file)


def gate_is_closed() -> bool:
    with machine._GATE.open() as gate:
        try:
            fcntl.flock(gate, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


@pytest.mark.usefixtures("_own_locks")
def test_a_test_that_measures_is_alone() -> None:
    """A test marked `alone` waits for running tests, and others wait for it."""
    events: list[str] = []
    measure = Event()

    def run(name: str, *, alone: bool) -> None:
        events.append(f"{name} waits")
        with share_of_machine(alone=alone):
            events.append(f"{name} begins")
            if alone:
                measure.wait(30)
            events.append(f"{name} ends")

    with ThreadPoolExecutor() as threads, share_of_machine(alone=False):
        threads.submit(run, "other", alone=False).result()
        threads.submit(run, "alone", alone=True)
        wait_until(gate_is_closed)
        threads.submit(run, "late", alone=False)
        wait_until(lambda: "late waits" in events)
        events.append("first ends")
        measure.set()

    assert events == [
        *("other waits", "other begins", "other ends", "alone waits", "late waits", "first ends"),
        *("alone begins", "alone ends", "late begins", "late ends"),
    ]
