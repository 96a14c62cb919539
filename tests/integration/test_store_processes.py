"""One database used by several processes, forked or started at the same moment."""

import ctypes
import os
import threading
from collections.abc import Callable
from itertools import count

import pytest
from sqlalchemy import create_engine, make_url, text

from mailer.store import Store, sqlite_locks
from tests.mails import NOW, a_message, insert, table
from tests.services.databases import Databases, sqlite_only
from tests.services.processes import at_once, forked
from tests.services.users import as_another_user

_numbers = count(1)


def queue(store: Store, recipient: str) -> None:
    """Queue a mail whose id contains the process id, so that forks never reuse one."""
    insert(store, recipient, message=a_message(id=f"{os.getpid()}-{next(_numbers)}"))


def recipients(store: Store) -> list[str]:
    return [row["recipient"] for row in table(store).values()]


def forked_unnoticed(work: Callable[[], object]) -> int:
    """Fork as C code does (uWSGI, for example), without running Python's hooks."""
    return forked(work, ctypes.PyDLL(None).fork)


FORKS = pytest.mark.parametrize("fork", [forked, forked_unnoticed])


def ended_well(pid: int) -> bool:
    return os.waitpid(pid, 0)[1] == 0


# --- forks --------------------------------------------------------------------------------------


def fork_while_a_thread_queues(url: str) -> list[bool]:
    store = Store(url)
    stop = threading.Event()

    def go_on() -> None:
        while not stop.is_set():
            queue(store, "thread@example.com")

    thread = threading.Thread(target=go_on)
    thread.start()
    well = [ended_well(forked(lambda: queue(store, "child@example.com"))) for _ in range(10)]
    stop.set()
    thread.join()
    queue(store, "parent@example.com")
    store.engine.dispose()
    return well


def test_a_fork_at_any_moment(store: Store, database_url: str) -> None:
    """A fork in the middle of a thread's transaction harms neither parent nor child."""
    [well] = at_once(1, fork_while_a_thread_queues, database_url)

    assert well == [True] * 10
    stored = recipients(store)
    assert stored.count("child@example.com") == 10
    assert stored.count("parent@example.com") == 1


@sqlite_only
def test_the_end_of_a_transaction(store: Store) -> None:
    """A transaction that is over has no file open, also while its thread still refers to it.

    A child that is forked then would write to a log that its parent deletes.
    """
    with store._write() as transaction:
        transaction.execute_many("UPDATE mailer_chore SET due_at = :due_at", [{"due_at": NOW}])
    assert store._file is not None
    store.engine.dispose()

    assert not sqlite_locks.is_open(store._file)


def fork_many(url: str) -> bool:
    store = Store(url)
    queue(store, "parent@example.com")

    def work() -> None:
        for number in range(100):
            queue(store, f"child{number}@example.com")

    children = [forked_unnoticed(work) for _ in range(4)]
    work()
    well = [ended_well(pid) for pid in children] == [True] * 4
    queue(store, "parent@example.com")
    store.engine.dispose()
    return well


def test_forks_that_python_does_not_see(store: Store, database_url: str) -> None:
    """Processes forked without Python's hooks use connections of their own."""
    assert at_once(1, fork_many, database_url) == [True]

    assert len(recipients(store)) == 2 + 5 * 100


def fork_and_close(
    url: str,
    fork: Callable[[Callable[[], object]], int],
    close: Callable[[], object] = lambda: None,
) -> bool:
    store = Store(url)
    queue(store, "parent@example.com")
    opened, closed = os.pipe(), os.pipe()

    def write_on() -> None:
        queue(store, "before@example.com")
        os.write(opened[1], b".")
        os.read(closed[0], 1)
        queue(store, "after@example.com")

    pid = fork(write_on)
    os.read(opened[0], 1)
    store.engine.dispose()
    close()
    os.write(closed[1], b".")
    return ended_well(pid)


@sqlite_only
@pytest.mark.parametrize(
    ("fork", "prefix"), [(forked, ""), (forked_unnoticed, ""), (forked_unnoticed, "file:")]
)
def test_a_child_outlives_its_parents_connections(
    databases: Databases, fork: Callable[[Callable[[], object]], int], prefix: str
) -> None:
    """SQLite's log is not deleted while a forked child uses it, however the file is named."""
    with databases.migrated() as url:
        own = make_url(url)
        named = own.set(
            database=f"{prefix}{own.database}", query={"uri": "true"}
        ).render_as_string()
        assert at_once(1, fork_and_close, named, fork) == [True]
        store = Store(url)

        assert recipients(store) == [
            "parent@example.com",
            "before@example.com",
            "after@example.com",
        ]
        store.engine.dispose()


def fork_beside_the_application(url: str) -> bool:
    """Fork while the application has a connection to the file, then close all of the parent's."""
    Store(url).check_schema()  # from here on the file has a log
    engine = create_engine(url)
    with engine.connect() as connection:
        connection.execute(text("SELECT COUNT(*) FROM mailer_message"))
    return fork_and_close(url, forked, engine.dispose)


@sqlite_only
def test_a_child_of_an_application_with_its_own_connection(databases: Databases) -> None:
    """A child whose application had a connection of its own writes to no deleted log."""
    with databases.migrated() as url:
        assert at_once(1, fork_beside_the_application, url) == [True]
        store = Store(url)

        assert recipients(store) == [
            "parent@example.com",
            "before@example.com",
            "after@example.com",
        ]
        store.engine.dispose()


@sqlite_only
def test_locks_that_a_child_can_not_have(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    """A child that cannot lock the database logs that its log is in danger."""
    insert(store)

    def take_over() -> None:
        store.after_unhooked_fork()
        assert "could not be taken over" in caplog.text

    as_another_user(take_over)


@FORKS
def test_a_database_in_memory(fork: Callable[[Callable[[], object]], int]) -> None:
    """A forked child has an empty in-memory database of its own."""
    store = Store("sqlite://")
    queue(store, "parent@example.com")

    def work() -> None:
        queue(store, "child@example.com")
        assert recipients(store) == ["child@example.com"]

    assert ended_well(fork(work))
    assert recipients(store) == ["parent@example.com"]
    store.engine.dispose()


# --- the first start ----------------------------------------------------------------------------


def take_the_first_chore(url: str) -> bool:
    store = Store(url)
    try:
        return store.take_chore("sweep", now=NOW, every=1)
    finally:
        store.engine.dispose()


@sqlite_only
def test_many_processes_find_no_database(empty_database_url: str) -> None:
    """Many processes that find no database create it once."""
    assert sorted(at_once(16, take_the_first_chore, empty_database_url)) == [False] * 15 + [True]
