"""Low-water marks: claims start behind the rows that a long transaction keeps."""

from collections.abc import Callable
from typing import Any

import pytest

from mailer.store import Store
from mailer.store.marks import Marks
from tests.mails import LEASE, NOW, a_message, claim, emptied, insert
from tests.plans import work_of
from tests.services.waiting import wait_until

DELIVERED, MORE = 5_000, 1_000


@pytest.fixture
def store(shared_store: Store, monkeypatch: pytest.MonkeyPatch) -> Store:
    """Return a store that uses marks however few rows are dead."""
    monkeypatch.setattr("mailer.store.marks._MANY", -1)
    shared_store._marks = Marks()
    return emptied(shared_store)


def deliver(store: Store, number: int, tenant: str) -> None:
    """Queue mail over an hour, and claim most of it, as if it were delivered."""
    for minute in range(60):
        now = NOW - 3600 + 60 * minute
        to = [f"reader{one}@example.com" for one in range((number + MORE) // 60)]
        insert(store, *to, message=a_message(created_at=now), due_at=now, tenant=tenant)
    while number > 0:
        number -= len(claim(store, 500))


@pytest.mark.parametrize("shared_store", ["postgresql"], indirect=True)
@pytest.mark.parametrize("tenant", ["", "shop"])
@pytest.mark.parametrize(
    "ask",
    [
        pytest.param(lambda store: claim(store, 1), id="claim"),
        pytest.param(lambda store: store.is_due(NOW + 60), id="is anything due"),
        pytest.param(lambda store: store.requeue_lapsed_claims(LEASE + 60), id="lapsed claims"),
    ],
)
def test_rows_that_a_transaction_keeps_are_not_read(
    store: Store, ask: Callable[[Store], Any], tenant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a transaction is open, claims and sweeps do not read what was delivered since."""
    monkeypatch.setattr("mailer.store.marks._SHARE", 1e-6)  # start at the beginning once
    with store.engine.connect() as old, old.begin():
        old.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        old.exec_driver_sql("SELECT count(*) FROM mailer_message")
        deliver(store, DELIVERED, tenant)
        ask(store)  # from the beginning
        ask(store)
        with_marks = work_of(store, ask)
        store._marks = Marks()
        without = work_of(store, ask)

    assert with_marks < without / 2, (with_marks, without)


@pytest.mark.parametrize("shared_store", ["postgresql"], indirect=True)
@pytest.mark.parametrize("tenant", ["", "shop"])
def test_mail_that_is_committed_late_is_found(store: Store, tenant: str) -> None:
    """A mail whose transaction was open for an hour, or that was given back, is claimed soon."""
    deliver(store, 120, tenant)
    claim(store, now=NOW + 60)
    late = a_message(created_at=NOW - 3600)
    insert(store, "late@example.com", message=late, due_at=NOW - 3600, tenant=tenant)
    found = list[str]()

    def is_found() -> bool:
        found.extend(one.recipient for one in claim(store, now=NOW + 60))
        return "late@example.com" in found

    wait_until(is_found, timeout=30)
