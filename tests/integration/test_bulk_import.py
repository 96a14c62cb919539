"""The import of a bulk send through kills, freezes, outages and errors: each address once."""

import os
import signal
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from flask import Flask

from mailer import Mailer
from mailer.clock import AppClock
from mailer.errors import KeyInUse, StoreUnavailable
from mailer.store.bulk import DOUBTFUL
from mailer.store.transactions import Transaction
from tests.bulk_calls import (
    COUNT,
    EXPECTED,
    Boom,
    Row,
    check_complete,
    do_before,
    import_rows,
    recipients,
    row,
    some_rows,
    states,
)
from tests.services.databases import PostgresDatabases, sqlite_only
from tests.services.postgres import DEBIAN_FOLDERS, SETTINGS, PostgresServer, running_postgres
from tests.services.processes import at_once, forked
from tests.services.requirement import find_program, require
from tests.services.waiting import wait_until
from tests.shop import OpenShop, close, create_shop, store_of

mailer = Mailer()


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mailer.intake.bulk._CHUNK_ROWS", 10)
    monkeypatch.setattr("mailer.intake.bulk._LOOK_SECONDS", 0.01)


def kill_myself() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def stop_myself() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def was_killed(pid: int) -> bool:
    status = os.waitpid(pid, 0)[1]
    assert os.WIFSIGNALED(status) or os.waitstatus_to_exitcode(status) == 0
    return os.WIFSIGNALED(status)


def outlast_the_lease(shop: Flask) -> None:
    """Put the clock forward until the lease of an importer is over that was alive until now."""
    clock: AppClock = shop.extensions["mailer"].clock
    clock.ahead += 61


def feed(shop: Flask) -> None:
    """Release or cancel mail of bulk sends, as a sweep does."""
    shop.extensions["mailer"].outbound.maintenance._feeder.advance(time.time())


# --- kill -9 --------------------------------------------------------------------------------------


def kill_at_step(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Kill this process in this step of its transactions, counted from 1."""
    steps = iter(range(1, 1000))

    def counting(name: str) -> None:
        method = getattr(Transaction, name)

        def count(*arguments: Any, **options: Any) -> Any:
            if next(steps) == number:
                kill_myself()
            result = method(*arguments, **options)
            if name == "commit" and next(steps) == number:
                kill_myself()
            return result

        monkeypatch.setattr(Transaction, name, count)

    for name in ("execute", "insert_rows", "commit"):
        counting(name)


def test_killed_in_each_step(open_shop: OpenShop) -> None:
    """Killed before any statement, before or after any commit: the next call completes the send.

    Until then, nothing is released.
    """
    shop = open_shop()
    number, killed = 0, True
    with shop.app_context():
        while killed:
            number += 1

            def die(at: int = number) -> None:
                with pytest.MonkeyPatch.context() as monkeypatch:
                    kill_at_step(monkeypatch, at)
                    import_rows(some_rows(COUNT), idempotency_key=f"news-{at}")

            killed = was_killed(forked(die))
            is_over = "queued" in states(shop)
            outlast_the_lease(shop)
            bulk = import_rows(some_rows(COUNT), idempotency_key=f"news-{number}")
            assert bulk.progress().accepted == COUNT
            assert states(shop) == {"queued": COUNT}
            assert not is_over or number > 20  # the last steps release the mail
            assert recipients(shop) == EXPECTED
            with store_of(shop)._write() as transaction:
                transaction.execute("DELETE FROM mailer_message WHERE id = :id", {"id": bulk.id})
    assert number > 20


def test_killed_again_and_again(shop: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    """An import that is killed at any rows goes on each time where it was killed."""
    monkeypatch.setattr("mailer.intake.bulk._CHUNK_ROWS", 7)
    before = 0
    for at in (3, 8, 50, 51, 120, 199):

        def die(at: int = at) -> None:
            import_rows(do_before(at, kill_myself, 200), idempotency_key="news")

        assert was_killed(forked(die))
        outlast_the_lease(shop)
        stored = len(recipients(shop))
        assert before <= stored == (at - 1) // 7 * 7
        assert "queued" not in states(shop)
        before = stored

    check_complete(shop, import_rows(some_rows(200), idempotency_key="news"), 200)


def stored_at_least(shop: Flask, number: int) -> bool:
    return len(recipients(shop)) >= number


def test_killed_from_outside(shop: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    """An import that is killed at a random time, in the middle of its writing, can go on."""
    monkeypatch.setattr("mailer.intake.bulk._CHUNK_ROWS", 50)
    count, wanted = 5000, 0
    for _ in range(3):
        wanted += 400
        pid = forked(lambda: import_rows(some_rows(count), idempotency_key="news"))
        wait_until(partial(stored_at_least, shop, wanted))
        os.kill(pid, signal.SIGKILL)
        assert was_killed(pid)
        outlast_the_lease(shop)
        assert len(recipients(shop)) % 50 == 0
        assert set(states(shop)) == {"held"}

    bulk = import_rows(some_rows(count), idempotency_key="news")
    assert [one for one, _address in recipients(shop)] == [*range(1, count + 1)]
    assert bulk.progress().accepted == count


# --- several importers ----------------------------------------------------------------------------


def import_in_process(config: dict[str, str]) -> tuple[str, int]:
    shop = create_shop(config)
    with shop.app_context():
        bulk = import_rows(some_rows(3000), idempotency_key="news")
        accepted = bulk.progress().accepted
    close(shop)
    return bulk.id, accepted


def test_several_processes_at_once(shop: Flask, config: dict[str, str]) -> None:
    """Several processes with one key at the same time make one bulk send, and return it."""
    results = at_once(4, import_in_process, config)

    assert len(set(results)) == 1
    assert results[0][1] == 3000
    assert [one for one, _address in recipients(shop)] == [*range(1, 3001)]


# The last one has stored all rows, and only not ended the import.
PLACES = pytest.mark.parametrize(("at", "count"), [(5, 25), (15, 25), (26, 25), (21, 20)])


@PLACES
def test_frozen_for_longer_than_its_lease(shop: Flask, at: int, count: int) -> None:
    """An importer that was frozen while another took over stores nothing, and returns the same."""
    reading, writing = os.pipe()

    def freeze() -> None:
        bulk = import_rows(do_before(at, stop_myself, count), idempotency_key="news")
        os.write(writing, bulk.id.encode())

    pid = forked(freeze)
    os.waitpid(pid, os.WUNTRACED)
    outlast_the_lease(shop)
    bulk = import_rows(some_rows(count), idempotency_key="news")
    check_complete(shop, bulk, count)
    os.kill(pid, signal.SIGCONT)

    assert not was_killed(pid)
    assert os.read(reading, 99).decode() == bulk.id
    check_complete(shop, bulk, count)


@PLACES
def test_taken_over_by_one_that_fails(open_shop: OpenShop, at: int, count: int) -> None:
    """An importer learns that the one that took over has failed, and that a new call goes on."""
    shop, other = open_shop(), open_shop()

    def fail() -> None:
        raise Boom

    def take_over() -> None:
        outlast_the_lease(other)
        with other.app_context(), pytest.raises(Boom):
            import_rows(do_before(count + 1, fail, count), idempotency_key="news")

    with shop.app_context():
        with pytest.raises(KeyInUse, match="Call again with the same idempotency_key"):
            import_rows(do_before(at, take_over, count), idempotency_key="news")
        check_complete(shop, import_rows(some_rows(count), idempotency_key="news"), count)


def test_slow_rows_extend_the_lease(shop: Flask) -> None:
    """Rows that come slowly are stored every few seconds, so that no other importer takes over."""
    clock: AppClock = shop.extensions["mailer"].clock
    seen: list[int] = []

    def slow() -> Iterator[Row]:
        for number in range(1, 9):
            clock.ahead += 6
            seen.append(len(recipients(shop)))
            yield row(number)

    import_rows(slow())
    assert seen == [0, 0, 2, 2, 4, 4, 6, 6]


# --- outages --------------------------------------------------------------------------------------


@pytest.fixture
def own_server() -> Iterator[PostgresServer]:
    initdb = require("PostgreSQL", find_program("initdb", also_in=DEBIAN_FOLDERS))
    # A crash of the server must not lose what it has committed.
    with running_postgres(initdb, [*SETTINGS, "-c", "synchronous_commit=on"]) as server:
        yield server


@sqlite_only  # once: the database of `config` is replaced
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGQUIT])
def test_a_server_that_goes_away(
    own_server: PostgresServer,
    open_shop: OpenShop,
    caplog: pytest.LogCaptureFixture,
    signum: signal.Signals,
) -> None:
    """If the server goes away in the middle, the call says so, and the next one goes on."""
    with PostgresDatabases(own_server).migrated() as url:
        shop = open_shop(MAILER_DATABASE_URL=url)
        with shop.app_context():
            with pytest.raises(StoreUnavailable):
                import_rows(do_before(15, lambda: own_server.stop(signum)), idempotency_key="news")
            assert "could not be ended" in caplog.text
            own_server.start()
            assert recipients(shop) == EXPECTED[:10]
            outlast_the_lease(shop)

            check_complete(shop, import_rows(some_rows(COUNT), idempotency_key="news"))


@sqlite_only  # once: the database of `config` is replaced
def test_a_server_that_restarts(own_server: PostgresServer, open_shop: OpenShop) -> None:
    """A restart between two chunks does not even interrupt the import."""

    def restart() -> None:
        own_server.stop()
        own_server.start()

    with PostgresDatabases(own_server).migrated() as url:
        shop = open_shop(MAILER_DATABASE_URL=url)
        with shop.app_context():
            check_complete(shop, import_rows(do_before(15, restart)))


@sqlite_only
def test_a_file_that_is_locked(
    shop: Flask, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If others hold the lock of the SQLite file, the call says so, and the next one goes on."""
    monkeypatch.setattr("mailer.store.engines._BUSY_SECONDS", 0.2)
    file = Path(database_url.removeprefix("sqlite:///"))
    with closing(sqlite3.connect(file, isolation_level=None)) as other:
        with pytest.raises(StoreUnavailable, match="database is locked"):
            import_rows(
                do_before(15, lambda: other.execute("BEGIN IMMEDIATE")), idempotency_key="news"
            )
        other.execute("ROLLBACK")
    assert recipients(shop) == EXPECTED[:10]
    outlast_the_lease(shop)

    check_complete(shop, import_rows(some_rows(COUNT), idempotency_key="news"))


# --- errors of the application --------------------------------------------------------------------


@pytest.mark.parametrize("error", [Boom, KeyboardInterrupt, SystemExit, GeneratorExit])
def test_rows_that_raise(shop: Flask, error: type[BaseException]) -> None:
    """An error in the middle of the rows reaches the caller. With a key, the next call goes on."""

    def fail() -> None:
        raise error

    for at in (1, 11, 15, 25):
        with pytest.raises(error):
            import_rows(do_before(at, fail), idempotency_key="news")
        assert recipients(shop) == EXPECTED[: (at - 1) // 10 * 10]
        assert "queued" not in states(shop)
    check_complete(shop, import_rows(some_rows(COUNT), idempotency_key="news"))


@pytest.mark.parametrize("start", ["complete", "streaming"])
def test_rows_that_raise_without_a_key(shop: Flask, start: str) -> None:
    """Without a key, no call can go on: the send is cancelled, and over after the next sweep."""

    def fail() -> None:
        raise Boom

    with pytest.raises(Boom):
        import_rows(do_before(15, fail), start=start)
    [bulk] = mailer.bulks()

    assert (bulk.progress().state, bulk.progress().reason) == (
        "cancelled",
        "its import ended with Boom",
    )
    feed(shop)
    assert states(shop) == {"cancelled": 10}
    assert store_of(shop).load_unfinished_bulks() == []


def test_progress_that_raises(shop: Flask) -> None:
    """An error of the callback ends the call like one of the rows, after the chunk is stored."""
    seen: list[int] = []

    def progress(one: Any) -> None:
        seen.append(one.imported)
        if len(seen) == 2:
            raise Boom

    with pytest.raises(Boom):
        import_rows(some_rows(COUNT), progress=progress, idempotency_key="news")
    assert recipients(shop) == EXPECTED[:20]
    bulk = import_rows(some_rows(COUNT), progress=progress, idempotency_key="news")

    check_complete(shop, bulk)
    assert seen == [10, 20, 25]


# --- rows that use the same database --------------------------------------------------------------


def test_rows_that_queue_mail(shop: Flask) -> None:
    """The iterable may queue mail itself: no transaction is open while it is read."""

    def given() -> Iterator[Row]:
        for one in some_rows(COUNT):
            mailer.send_email("ada@example.com", "Hi", "only_text", name="Ada")
            yield one

    bulk = import_rows(given())
    assert bulk.progress().accepted == COUNT
    assert states(shop) == {"queued": 2 * COUNT}
    assert len({one.delivery_id for one in bulk.recipients()}) == COUNT


@sqlite_only
def test_rows_from_the_same_file(shop: Flask, database_url: str) -> None:
    """The iterable may be a cursor that reads the same SQLite file in an open transaction."""
    import_rows([])  # from now on the file has a log
    file = database_url.removeprefix("sqlite:///")
    with closing(sqlite3.connect(file, isolation_level=None)) as own:
        own.execute("CREATE TABLE reader (email, name)")
        own.executemany(
            "INSERT INTO reader VALUES (?, ?)",
            [(row(number)[0], "Ada") for number in range(1, COUNT + 1)],
        )
        own.row_factory = sqlite3.Row
        own.execute("BEGIN")
        bulk = import_rows(own.execute("SELECT * FROM reader"))
    check_complete(shop, bulk)


# --- streaming, and much --------------------------------------------------------------------------


def test_streaming(shop: Flask) -> None:
    """With start="streaming", the sweep releases mail before the import ends, each address once."""
    seen: list[dict[str, int]] = []

    def sweep() -> None:
        feed(shop)
        seen.append(states(shop))

    def given() -> Iterator[Row]:
        yield from do_before(15, sweep)
        sweep()
        yield from some_rows(COUNT)

    progress = import_rows(given(), start="streaming").progress()

    assert seen == [{"queued": 10}, {"queued": 20}]
    assert recipients(shop) == EXPECTED
    assert (progress.accepted, progress.duplicates) == (COUNT, COUNT)


@sqlite_only
def test_progress_reads_little(shop: Flask) -> None:
    """The progress, which is asked for after each chunk, does not read the stored deliveries."""
    with store_of(shop)._look() as transaction:
        plan = transaction.execute(f"EXPLAIN QUERY PLAN {DOUBTFUL}", {"id": "bulk"})

    assert "USING INDEX mailer_delivery_doubtful" in str(plan)


def resident() -> int:
    """Return the bytes of memory that this process uses."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


@sqlite_only
def test_flat_memory(shop: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    """The memory does not grow with the number of rows."""
    monkeypatch.setattr("mailer.intake.bulk._CHUNK_ROWS", 1000)
    count, used = 60_000, dict[int, int]()

    def given() -> Iterator[Row]:
        for number in range(1, count + 1):
            if number in (10_000, count):
                used[number] = resident()
            yield f"reader{number}@example.com", {"text": f"{number} {'x' * 500}"}

    import_rows(given())
    assert used[count] - used[10_000] < 10_000_000  # the rows themselves have 35 MB
