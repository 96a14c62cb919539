"""Outages of the database: one exception, which gives the reason and the setting's name."""

import resource
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from sqlalchemy import create_engine, make_url

from mailer.errors import CommitLost, ConfigurationError, StoreUnavailable
from mailer.message import Envelope
from mailer.store import Store, engines, postgresql
from tests.mails import NOW, a_message, insert, postgresql_only, table
from tests.services.databases import Databases, sqlite_only
from tests.services.mounts import immutable
from tests.services.users import as_another_user
from tests.services.waiting import wait_until


@contextmanager
def unavailable(reason: str) -> Iterator[None]:
    with pytest.raises(
        StoreUnavailable, match=rf"MAILER_DATABASE_URL.*nothing was queued.*{reason}"
    ) as caught:
        yield
    assert "secret" not in str(caught.value)


# --- PostgreSQL ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("postgresql://mailer:secret@127.0.0.1:1/mailer", "Connection refused"),
        ("postgresql://mailer:secret@/mailer?host=/nowhere", "No such file or directory"),
    ],
)
def test_nobody_listens(url: str, reason: str) -> None:
    """A server that does not listen raises StoreUnavailable with the reason."""
    store = Store(url)

    with unavailable(reason):
        insert(store)


@postgresql_only
def test_there_is_no_such_database(database_url: str) -> None:
    """A missing database raises StoreUnavailable with the reason."""
    store = Store(
        make_url(database_url).set(database="forgotten").render_as_string(hide_password=False)
    )

    with unavailable('"forgotten" does not exist'):
        store.is_due(NOW)


@pytest.fixture
def administer(postgres_databases: Databases) -> Iterator[Callable[[str], None]]:
    """Yield a function that executes a statement as the server's administrator."""
    with postgres_databases.empty() as url:
        engine = create_engine(url, isolation_level="AUTOCOMMIT")

        def execute(statement: str) -> None:
            with engine.connect() as connection:
                connection.exec_driver_sql(statement)

        yield execute
        engine.dispose()


def hang_up(name: str | None) -> str:
    """Return the statement that closes all connections to a database."""
    return f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"  # noqa: S608 -- a name of ours


@postgresql_only
def test_the_database_goes_away_and_comes_back(
    store: Store, administer: Callable[[str], None]
) -> None:
    """After an outage the store works again without a restart, and keeps what was accepted."""
    name = store.engine.url.database
    insert(store, "before@example.com")
    administer(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false')
    administer(hang_up(name))

    with unavailable("not currently accepting connections"):
        insert(store, "meanwhile@example.com")
    administer(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true')
    insert(store, "after@example.com")

    assert [row["recipient"] for row in table(store).values()] == [
        "before@example.com",
        "after@example.com",
    ]


@postgresql_only
def test_a_connection_that_was_lost_unnoticed(
    store: Store, administer: Callable[[str], None]
) -> None:
    """An idle connection that the server has closed is replaced unnoticed."""
    insert(store)
    administer(hang_up(store.engine.url.database))

    assert store.is_due(NOW)


@postgresql_only
def test_a_server_that_only_reads(store: Store, administer: Callable[[str], None]) -> None:
    """A read-only server, such as a former primary, raises StoreUnavailable."""
    administer(
        f'ALTER DATABASE "{store.engine.url.database}" SET default_transaction_read_only = on'
    )

    with unavailable("read-only transaction"):
        insert(store)


@postgresql_only
def test_a_server_that_falls_silent(
    store: Store, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that does not answer raises an error in time, and the connection is not reused."""
    insert(store, "before@example.com")
    monkeypatch.setattr(postgresql, "_SILENT_SECONDS", 0.3)
    with create_engine(database_url).connect() as other:
        other.exec_driver_sql("LOCK TABLE mailer_message")
        with unavailable("no answer within"):
            insert(store, "meanwhile@example.com")
        other.detach()
    insert(store, "after@example.com")

    assert [row["recipient"] for row in table(store).values()] == [
        "before@example.com",
        "after@example.com",
    ]


@postgresql_only
def test_a_worker_that_is_frozen_in_a_transaction(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A transaction that the server ended for being idle is reported as not done."""
    monkeypatch.setitem(
        postgresql._OF_THE_SERVER, "options", "-c idle_in_transaction_session_timeout=100ms"
    )
    store, other = Store(database_url), create_engine(database_url)

    def is_over() -> bool:
        with other.connect() as connection:
            idle = connection.exec_driver_sql("""
                SELECT 1 FROM pg_stat_activity
                WHERE datname = current_database() AND state = 'idle in transaction'
            """)
            return idle.first() is None

    with unavailable("idle-in-transaction timeout"), store.together():
        store.pause(now=NOW, reason="by its first statement")
        wait_until(is_over)
        store.resume()

    assert store.list_pauses() == {}
    other.dispose()
    store.engine.dispose()


# --- a commit without an answer -----------------------------------------------------------------


@postgresql_only
def test_the_connection_ends_before_the_commit(store: Store) -> None:
    """A mail whose connection ended before the commit is queued again, once."""
    hang_up_at_commit(store, times=1)
    insert(store, "ada@example.com")

    assert [row["recipient"] for row in table(store).values()] == ["ada@example.com"]


@postgresql_only
def test_the_connection_ends_at_each_commit(store: Store) -> None:
    """If each commit loses its connection, CommitLost advises an idempotency key."""
    hang_up_at_commit(store, times=2)

    with pytest.raises(
        CommitLost,
        match=r"MAILER_DATABASE_URL.*may be queued.*idempotency_key.*terminating connection",
    ):
        insert(store)
    insert(store)


def hang_up_at_commit(store: Store, *, times: int) -> None:
    """Close the connection at the next commits that insert a mail."""
    with store.engine.begin() as connection:
        connection.exec_driver_sql(f"""
            CREATE SEQUENCE hang_ups;
            CREATE FUNCTION hang_up() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                IF nextval('hang_ups') <= {times} THEN
                    PERFORM pg_terminate_backend(pg_backend_pid());
                END IF;
                RETURN NULL;
            END $$;
            CREATE CONSTRAINT TRIGGER hang_up AFTER INSERT ON mailer_message
                DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION hang_up();
        """)


@postgresql_only
def test_the_connection_ends_after_the_commit(
    store: Store, administer: Callable[[str], None]
) -> None:
    """A mail whose commit succeeded before the connection ended is reported as queued.

    So it may be in a fail-over, while the server waits for its standby.
    """
    administer(f'ALTER DATABASE "{store.engine.url.database}" SET synchronous_commit = on')
    administer("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
    administer("SELECT pg_reload_conf()")
    try:
        with ThreadPoolExecutor(1) as threads:
            queued = threads.submit(insert, store, "ada@example.com")
            administer(HANG_UP_ON_WHO_WAITS)
            queued.result()
    finally:
        administer("ALTER SYSTEM RESET synchronous_standby_names")
        administer("SELECT pg_reload_conf()")

    assert [row["recipient"] for row in table(store).values()] == ["ada@example.com"]


#: Close the connection of the first session that waits for the standby.
HANG_UP_ON_WHO_WAITS = """
DO $$ BEGIN
    LOOP
        PERFORM pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep';
        EXIT WHEN FOUND;
        PERFORM pg_sleep(0.01);
        PERFORM pg_stat_clear_snapshot();
    END LOOP;
END $$
"""


@postgresql_only
def test_two_that_wait_for_each_other(store: Store) -> None:
    """A mail whose transaction PostgreSQL ended because of a deadlock is queued all the same."""
    with store.engine.begin() as connection:
        connection.exec_driver_sql("""
            CREATE SEQUENCE tries;
            CREATE FUNCTION deadlock() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                IF nextval('tries') = 1 THEN
                    RAISE EXCEPTION 'deadlock detected' USING ERRCODE = 'deadlock_detected';
                END IF;
                RETURN NEW;
            END $$;
            CREATE TRIGGER deadlock BEFORE INSERT ON mailer_delivery
                FOR EACH ROW EXECUTE FUNCTION deadlock();
        """)
    insert(store, "ada@example.com")

    assert [row["recipient"] for row in table(store).values()] == ["ada@example.com"]


# --- SQLite -------------------------------------------------------------------------------------


def test_the_folder_can_not_be_made(tmp_path: Path) -> None:
    """A folder that cannot be created is a configuration error at start-up."""
    (tmp_path / "file").touch()

    with pytest.raises(
        ConfigurationError, match=r"MAILER_DATABASE_URL.*file/folder.*can't be made"
    ):
        Store(f"sqlite:///{tmp_path}/file/folder/mailer.sqlite3")


def test_the_database_is_a_folder(tmp_path: Path) -> None:
    """A database file that is a folder raises StoreUnavailable with SQLite's reason."""
    with unavailable("unable to open database file"):
        insert(Store(f"sqlite:///{tmp_path}"))


def test_the_folder_can_not_be_written_to() -> None:
    """A folder that cannot be written to raises StoreUnavailable with the file and the reason."""
    with TemporaryDirectory(prefix="mailer-instance-") as folder:
        Path(folder).chmod(0o755)

        def queue() -> None:
            with unavailable(
                rf"unable to open database file: .*Permission denied: '{folder}/mailer.sqlite3'"
            ):
                insert(Store(f"sqlite:///{folder}/mailer.sqlite3"))

        as_another_user(queue)


@sqlite_only
def test_no_file_can_be_opened_any_more(database_url: str) -> None:
    """A process out of file descriptors raises StoreUnavailable until it can open files again."""
    store = Store(database_url)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        with unavailable("unable to open database file: .*Too many open files"):
            insert(store)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    insert(store)
    store.engine.dispose()


def test_the_file_is_something_else(tmp_path: Path) -> None:
    """A file that is no database raises StoreUnavailable and stays unchanged."""
    file = tmp_path / "letter.txt"
    file.write_text("Dear Ada, " * 1000)

    with unavailable("file is not a database"):
        insert(Store(f"sqlite:///{file}"))
    assert file.read_text() == "Dear Ada, " * 1000


@sqlite_only
def test_somebody_else_writes_for_too_long(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Waiting for another process's transaction ends in time, and later mails are queued."""
    monkeypatch.setattr(engines, "_BUSY_SECONDS", 0.05)
    store = Store(database_url)
    with closing(sqlite3.connect(str(store.engine.url.database), isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with unavailable("database is locked"):
            insert(store)
        other.execute("COMMIT")

    insert(store)
    assert len(table(store)) == 1
    store.engine.dispose()


@sqlite_only
def test_a_thread_waits_for_its_turn_for_too_long(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Waiting for another thread of the process has the same limit."""
    store.check_schema()
    monkeypatch.setattr(engines, "_BUSY_SECONDS", 0.05)
    with store._turn, unavailable("database is locked"):
        insert(store)

    insert(store)


@sqlite_only
def test_the_first_mail_of_the_one_writer(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mail in the caller's open transaction does not wait for threads that wait for it."""
    store.check_schema()
    store._checked = False  # as in a process that has just started
    monkeypatch.setattr(engines, "_BUSY_SECONDS", 0.05)
    engine = create_engine(store.engine.url)
    with engine.connect() as host, store._turn:
        host.exec_driver_sql("BEGIN IMMEDIATE")
        store.insert_mail(a_message(), Envelope(recipients=("ada@example.com",), due_at=NOW), host)
        host.commit()
    engine.dispose()

    assert len(table(store)) == 1


class SlowTurn:
    """A clock, and a lock that takes nine seconds of its time."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, _seconds: float) -> None:
        self.now += 1

    def acquire(self, *, timeout: float) -> bool:
        self.now += 9
        return timeout > 9

    def release(self) -> None:
        """Do nothing: no other thread wants the lock."""


@sqlite_only
def test_one_deadline_for_all_waits(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting for threads and then for processes has one common limit."""
    turn = SlowTurn()
    monkeypatch.setattr(engines, "time", turn)
    monkeypatch.setattr(store._turn, "lock", turn)
    insert(store)
    assert turn.now == 9  # also for the first mail, before which the tables are looked at

    with closing(sqlite3.connect(str(store.engine.url.database), isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with unavailable("database is locked"):
            insert(store)
    assert 9 + 12 <= turn.now <= 9 + 13


@sqlite_only
def test_the_disk_is_full(store: Store) -> None:
    """A mail that does not fit on the disk is not queued, and the next one that fits is."""
    store.check_schema()

    def allow(pages: int) -> None:
        with store.engine.connect() as connection:
            connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")

    allow(1)  # no more than it has
    with unavailable("database or disk is full"):
        insert(store, *(f"reader{number}@example.com" for number in range(1000)))
    assert table(store) == {}
    allow(1_000_000)
    insert(store)

    assert len(table(store)) == 1


def test_the_log_could_only_be_read_for_a_while(tmp_path: Path) -> None:
    """A connection opened while SQLite's log was read-only is replaced after its first failure."""
    # On a disk, since not every tmpfs supports immutable files.
    store = Store(f"sqlite:///{tmp_path}/mailer.sqlite3")
    insert(store, "before@example.com")
    file = str(store.engine.url.database)
    with closing(sqlite3.connect(file)) as other, immutable(Path(f"{file}-wal")):
        # Keep the log while the store has no connection.
        other.execute("SELECT 1 FROM mailer_message")
        store.engine.dispose()
        with unavailable("readonly"):
            insert(store, "meanwhile@example.com")
        assert store.is_due(NOW)

    with unavailable("readonly"):
        insert(store, "refused@example.com")
    insert(store, "after@example.com")

    assert [row["recipient"] for row in table(store).values()] == [
        "before@example.com",
        "after@example.com",
    ]
    store.engine.dispose()
