"""Pauses of relays that all workers share, and writes in one transaction."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pytest

from mailer.message import Status
from mailer.store import Store
from tests.mails import (
    LATER,
    LEASE,
    NOW,
    TOKEN,
    bring,
    insert,
    mark,
    postgresql_only,
    record,
    row,
    table,
)

RELAY = "relay.example.com:25"
REST = 10.0


def pause(
    store: Store,
    *,
    failures: int = 0,
    until: float = NOW + REST,
    reason: str = "421 closed",
    name: str = RELAY,
) -> bool:
    return store.pause_relay(name, failures=failures, now=NOW, until=until, reason=reason)


def many_times(work: Callable[[], object], count: int = 12) -> list[object]:
    """Call this function from as many threads at the same moment."""
    with ThreadPoolExecutor(count) as threads:
        return [one.result() for one in [threads.submit(work) for _ in range(count)]]


# --- pauses -------------------------------------------------------------------------------------


def test_what_is_known_of_a_pause(store: Store) -> None:
    """A pause stores its start, end, failures and reason for each relay."""
    assert store.relay_pauses() == {}
    assert pause(store)
    assert pause(store, name="other", reason="a stranger's \x00 words")

    pauses = store.relay_pauses()
    assert pauses.keys() == {RELAY, "other"}
    one = pauses[RELAY]
    assert (one.until, one.since, one.failures, one.reason) == (
        NOW + REST,
        datetime.fromtimestamp(NOW, UTC),
        1,
        "421 closed",
    )


def test_it_fails_again(store: Store) -> None:
    """A relay that fails again is paused for longer, and keeps the date of the first failure."""
    pause(store)
    assert store.pause_relay(
        RELAY, failures=1, now=NOW + 60, until=NOW + 80, reason="535 wrong password"
    )

    one = store.relay_pauses()[RELAY]
    assert (one.until, one.since.timestamp(), one.failures, one.reason) == (
        NOW + 80,
        NOW,
        2,
        "535 wrong password",
    )


def test_a_failure_of_old_changes_nothing(store: Store) -> None:
    """A failure that is based on an outdated number of failures changes nothing."""
    pause(store)
    store.pause_relay(RELAY, failures=1, now=NOW, until=NOW + 20, reason="again")
    before = store.relay_pauses()

    assert not pause(store, failures=0, until=LATER, reason="late")
    assert not pause(store, failures=1, until=LATER, reason="late")
    assert store.relay_pauses() == before


def test_workers_that_fail_at_the_same_time(store: Store) -> None:
    """Workers that fail at the same relay at the same moment count as one failure."""
    for failures in range(3):
        outcomes = many_times(lambda failures=failures: pause(store, failures=failures))  # type: ignore[misc]

        assert sorted(map(bool, outcomes)) == [False] * 11 + [True]
        assert store.relay_pauses()[RELAY].failures == failures + 1


# --- probes -------------------------------------------------------------------------------------


def test_one_worker_of_all_tries(store: Store) -> None:
    """After a pause one worker probes the relay, and another one only after the probe's lease."""
    pause(store)

    def take(now: float) -> list[object]:
        return many_times(lambda: store.take_probe(RELAY, now=now, until=now + 80))

    assert sum(map(bool, take(NOW))) == 0
    assert sum(map(bool, take(NOW + REST - 0.001))) == 0
    assert sum(map(bool, take(NOW + REST))) == 1
    assert sum(map(bool, take(NOW + REST + 79))) == 0
    assert sum(map(bool, take(NOW + REST + 80))) == 1
    assert store.relay_pauses()[RELAY].failures == 1


def test_a_relay_that_is_not_paused_has_no_probe(store: Store) -> None:
    """There is no probe for a relay that is not paused."""
    assert not store.take_probe(RELAY, now=NOW, until=LATER)
    assert store.relay_pauses() == {}


def test_a_probe_is_given_back_by_who_took_it(store: Store) -> None:
    """A probe can be given back only by the worker that took it."""
    pause(store)
    now = NOW + REST
    assert store.take_probe(RELAY, now=now, until=now + 80)

    assert not store.move_probe(RELAY, taken_until=now + 81, until=now)
    assert not store.move_probe("other", taken_until=now + 80, until=now)
    assert not store.take_probe(RELAY, now=now, until=LATER)
    assert store.move_probe(RELAY, taken_until=now + 80, until=now)
    # A number without an exact binary representation.
    assert store.take_probe(RELAY, now=now, until=now + 0.1 + 0.2)
    assert store.move_probe(RELAY, taken_until=now + 0.1 + 0.2, until=now)


def test_it_answers_again(store: Store) -> None:
    """Of many workers that resume a relay at the same moment, one is told that it did."""
    pause(store)
    pause(store, name="other")

    assert sum(map(bool, many_times(lambda: store.resume_relay(RELAY)))) == 1
    assert store.relay_pauses().keys() == {"other"}
    assert pause(store)
    assert store.relay_pauses()[RELAY].failures == 1


# --- together -----------------------------------------------------------------------------------


def test_together_is_all_or_nothing(store: Store) -> None:
    """An exception in `together()` rolls back all its writes."""
    tried, next_one = bring(store, Status.TRANSMITTING), bring(store, Status.CLAIMED)
    before = table(store)

    def write() -> None:
        with store.together():
            assert record(store, tried, to=Status.SENT) == {tried.id}
            assert mark(store, next_one) == {next_one.id}
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write()
    assert table(store) == before

    with store.together():
        record(store, tried, to=Status.SENT)
        mark(store, next_one)
    assert (row(store, tried)["status"], row(store, next_one)["status"]) == ("sent", "transmitting")


def test_what_a_statement_breaks_is_undone_together(store: Store) -> None:
    """A statement that fails in `together()` rolls back the ones before it."""
    tried = bring(store, Status.TRANSMITTING)
    before = table(store)

    def write() -> None:
        with store.together():
            record(store, tried, to=Status.SENT)
            insert(store, due_at=None)  # a delivery that is queued has a time

    with pytest.raises(Exception, match=r"(?i)null"):
        write()
    assert table(store) == before

    assert record(store, tried, to=Status.SENT) == {tried.id}


@postgresql_only
def test_other_threads_are_not_in_it(store: Store) -> None:
    """Writes of other threads do not join the transaction of `together()`."""
    mine, theirs = bring(store, Status.TRANSMITTING), bring(store, Status.TRANSMITTING)

    def write(threads: ThreadPoolExecutor) -> None:
        with store.together():
            record(store, mine, to=Status.SENT)
            threads.submit(record, store, theirs, to=Status.SENT).result()
            raise ZeroDivisionError

    with ThreadPoolExecutor(1) as threads, pytest.raises(ZeroDivisionError):
        write(threads)
    assert (row(store, mine)["status"], row(store, theirs)["status"]) == ("transmitting", "sent")


def test_many_threads_write_together(store: Store) -> None:
    """Many threads may use `together()` at the same time, also with SQLite's one writer."""
    deliveries = [bring(store, Status.CLAIMED) for _ in range(20)]

    def write(number: int) -> None:
        with store.together():
            mark(store, deliveries[number])
            record(store, deliveries[number], to=Status.SENT)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(write, range(20)))

    assert {row["status"] for row in table(store).values()} == {"sent"}


def test_a_thread_that_was_interrupted_writes_alone_again(store: Store) -> None:
    """After an interrupt in `together()`, the thread's next write has a transaction of its own."""
    one = bring(store, Status.CLAIMED)
    with pytest.raises(KeyboardInterrupt), store.together():
        raise KeyboardInterrupt

    assert store.mark_if_claimed([one.id], token=TOKEN, now=NOW, lease_until=LEASE) == {one.id}
    assert row(store, one)["status"] == "transmitting"
