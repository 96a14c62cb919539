"""The machine lock of a SQLite file, which only one machine may use at a time."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from mailer import machine
from mailer.errors import InUseElsewhere
from mailer.store import Store
from tests.mails import insert, postgresql_only
from tests.services.databases import sqlite_only

OnMachine = Callable[[str], Store]


@pytest.fixture
def on_machine(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[OnMachine]:
    """Yield `on_machine("a")`, which opens the database as a process on this machine."""
    with ExitStack() as stack:

        def on_machine(name: str) -> Store:
            boot_id = tmp_path / name
            boot_id.write_text(name)
            monkeypatch.setattr(machine, "_BOOT_ID", boot_id)
            store = Store(database_url)
            stack.callback(store.engine.dispose)
            return store

        yield on_machine


def pass_time(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    now = time.time()
    monkeypatch.setattr("mailer.store.database.time.time", lambda: now + seconds)


@sqlite_only
def test_a_second_machine(on_machine: OnMachine) -> None:
    """A second machine is refused with advice, while the first one goes on."""
    first = on_machine("a")
    insert(first)
    second = on_machine("b")

    with pytest.raises(
        InUseElsewhere, match=r"MAILER_DATABASE_URL.*in use on another machine.*use PostgreSQL"
    ):
        second.check_schema()
    with pytest.raises(InUseElsewhere):
        insert(second)
    on_machine("a").check_schema()
    insert(first)


@sqlite_only
@pytest.mark.parametrize("seconds", [40, -40])
def test_a_machine_that_is_gone(
    on_machine: OnMachine, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    """A lock that is half a minute old, or from the future, is taken over by another machine."""
    on_machine("a").check_schema()
    pass_time(monkeypatch, seconds)

    insert(on_machine("b"))
    with pytest.raises(InUseElsewhere):
        on_machine("a").check_schema()


@sqlite_only
def test_the_sweep_renews_the_mark(on_machine: OnMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker renews the lock of its machine as long as it lives."""
    store = on_machine("a")
    store.check_schema()
    store.renew_machine_lock(time.time() + 40)
    pass_time(monkeypatch, 50)

    with pytest.raises(InUseElsewhere):
        on_machine("b").check_schema()


@sqlite_only
def test_a_machine_that_was_asleep(on_machine: OnMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that lost the lock while it was suspended can no longer write."""
    asleep = on_machine("a")
    asleep.check_schema()
    pass_time(monkeypatch, 40)
    on_machine("b").check_schema()
    on_machine("a")

    with pytest.raises(InUseElsewhere):
        asleep.renew_machine_lock(time.time())
    with pytest.raises(InUseElsewhere):
        insert(asleep)


@postgresql_only
def test_postgresql_is_for_many_machines(on_machine: OnMachine) -> None:
    """PostgreSQL may be used from many machines."""
    for name in "ab":
        store = on_machine(name)
        insert(store)
        store.renew_machine_lock(time.time())
