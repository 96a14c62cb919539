"""Pauses by a person: no mail, or none of a lane, goes out until it is resumed."""

from datetime import UTC, datetime
from itertools import chain
from typing import Any

import pytest

from mailer.message import Lane, Status
from mailer.store import Store
from tests.mails import LATER, NOW, bring, claim, insert, row, table
from tests.services.dispatchers import (
    Clock,
    CountingBell,
    MakeDispatcher,
    chores_of,
    copy_of,
    queue,
)


def test_everything_stands_still(store: Store) -> None:
    """During a pause nothing is claimed or due; afterwards all of it is."""
    insert(store)
    insert(store, due_at=NOW + 10)
    store.pause(now=NOW, reason="restored from a backup")

    assert claim(store) == []
    assert not store.is_due(NOW)
    assert store.next_due(NOW, before=LATER) is None

    assert store.resume()
    assert not store.resume()
    assert store.is_due(NOW)
    assert store.next_due(NOW, before=LATER) == NOW + 10
    assert len(claim(store)) == 1


def test_a_lane_stands_still(store: Store) -> None:
    """A pause of one lane does not affect the others."""
    for lane in Lane:
        insert(store, lane=lane)
    store.pause(Lane.BULK, now=NOW, reason="too early")

    assert [one.lane for one in claim(store)] == [Lane.CRITICAL, Lane.NORMAL]
    assert not store.is_due(NOW)
    store.resume(Lane.BULK)
    assert [one.lane for one in claim(store)] == [Lane.BULK]


@pytest.mark.parametrize("databases", ["sqlite"], indirect=True)  # its instructions can be counted
def test_a_long_queue_that_stands_still_costs_nothing(store: Store) -> None:
    """Looking for work during a pause does not read the whole queue."""
    insert(store, *(f"reader{number}@example.com" for number in range(2000)))
    store.pause(now=NOW, reason="by hand")
    hundreds: list[None] = []
    with store.engine.connect() as connection:
        driver: Any = connection.connection.driver_connection
        driver.set_progress_handler(lambda: hundreds.append(None), 100)
    claim(store)
    store.is_due(NOW)
    store.next_due(NOW, before=LATER)

    assert len(hundreds) < 20


def test_what_is_known_of_a_stop(store: Store) -> None:
    """A second pause changes the reason and keeps the start; relays have pauses of their own."""
    store.pause(now=NOW, reason="first")
    store.pause(now=LATER, reason="second")
    store.pause(Lane.BULK, now=LATER, reason="too early")
    store.pause_relay("relay", failures=0, now=NOW, until=LATER, reason="421")

    assert {lane: (one.since, one.reason) for lane, one in store.list_pauses().items()} == {
        None: (datetime.fromtimestamp(NOW, UTC), "second"),
        Lane.BULK: (datetime.fromtimestamp(LATER, UTC), "too early"),
    }
    assert store.relay_pauses().keys() == {"relay"}


def test_what_is_in_doubt_is_not_queued_again(store: Store) -> None:
    """During a pause, mail in doubt is not queued again."""
    delivery = bring(store, Status.DOUBTFUL)
    store.pause(now=NOW, reason="by hand")

    assert store.resend_doubtful(LATER) == set()
    store.resume()
    assert store.resend_doubtful(LATER) == {delivery.id}


def test_a_sweep_meanwhile(
    make_dispatcher: MakeDispatcher, store: Store, clock: Clock, bell: CountingBell
) -> None:
    """During a pause the sweep requeues and expires, but neither rings nor delivers."""
    claimed = queue(store, "ada@example.com")
    claim(store, now=clock.time(), lease_until=clock.time() + 30)
    overdue = queue(store, "bob@example.com", expires_at=clock.time() + 30)
    store.pause(now=clock.time(), reason="by hand")
    bell.works = False
    clock.ahead += 60
    chores_of(make_dispatcher()).sweep()

    assert [copy_of(store, one).status for one in (claimed, overdue)] == [
        Status.QUEUED,
        Status.EXPIRED,
    ]
    assert bell.rings == 0


# --- what would go out --------------------------------------------------------------------------


def test_the_outlook(store: Store) -> None:
    """The outlook counts queued mail by lane, age and domain, and lists what is claimed first."""
    for status in (Status.SENT, Status.FAILED, Status.CANCELLED):
        bring(store, status)
    old = insert(store, "old@example.org", due_at=NOW - 2 * 86400)
    young = insert(store, "young@example.com", lane=Lane.CRITICAL, due_at=NOW - 60)
    insert(store, "ada@example.com", "bob@example.com", due_at=LATER, lane=Lane.BULK)
    outlook = store.outlook(now=NOW, most=2)

    assert [(lane, status, count) for lane, status, count, *_ in outlook.lanes] == [
        (Lane.CRITICAL, Status.QUEUED, 1),
        (Lane.NORMAL, Status.QUEUED, 1),
        (Lane.BULK, Status.QUEUED, 2),
    ]
    assert outlook.ages == [(0, 2), (1, 1), (3, 1)]
    assert outlook.domains == [("example.com", 3), ("example.org", 1)]
    assert [
        (mail_id, recipient, subject) for mail_id, recipient, _, _, subject in outlook.first
    ] == [
        (young, "young@example.com", "Welcome"),
        (old, "old@example.org", "Welcome"),
    ]


def test_what_is_in_doubt_is_as_old_as_its_first_try(store: Store) -> None:
    """The age of mail in doubt counts from its first due time.

    Without a time to be sent again, it is not part of the outlook.
    """
    delivery = bring(store, Status.DOUBTFUL)
    assert row(store, delivery)["due_at"] == LATER
    assert store.outlook(now=NOW + 60, most=1).ages == [(1, 1)]

    assert store.hold_if_due_before(NOW) == set()
    assert store.hold_if_due_before(NOW + 1) == {delivery.id}
    assert store.outlook(now=NOW + 60, most=1).lanes == []
    assert row(store, delivery)["status"] == Status.DOUBTFUL


def test_what_was_due_before_is_cancelled(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mail that was due before a time is cancelled in small batches; later mail stays."""
    monkeypatch.setattr("mailer.store.decisions.MOVED_AT_ONCE", 2)
    insert(store, *(f"reader{number}@example.com" for number in range(5)), due_at=NOW - 60)
    insert(store, due_at=NOW - 60, lane=Lane.BULK)
    insert(store, due_at=NOW)

    assert [
        len(bite) for bite in store.cancel_if_due_before(NOW, now=NOW, lanes=[Lane.NORMAL])
    ] == [2, 2, 1]
    assert len(set(chain.from_iterable(store.cancel_if_due_before(NOW, now=NOW)))) == 1
    assert [one["due_at"] for one in table(store).values() if one["status"] == "queued"] == [NOW]
