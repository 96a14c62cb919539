"""When a worker or the database fails in a batch, each mail that was begun has one outcome."""

from collections.abc import Callable, Collection, Iterator
from typing import Any

import pytest
from flask import Flask
from flask_mail import email_dispatched

from mailer.errors import StoreUnavailable
from mailer.message import Outcome
from mailer.mime import WireMessage
from mailer.smtp import RelayConnection
from mailer.store import Result, Store
from tests.mails import claim, table
from tests.services.dispatchers import Clock, MakeDispatcher, chores_of, queue_each, states
from tests.services.sink import Sink

# --- interrupted workers ------------------------------------------------------------------------


def test_a_worker_that_lost_its_claim_sends_nothing(
    make_dispatcher: MakeDispatcher,
    store: Store,
    sink: Sink,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A worker that was frozen sends no mail that another one has claimed meanwhile."""
    queue_each(store, "ada", "bob")
    load_messages = store.load_messages

    def too_late(mail_ids: Collection[str]) -> Any:
        much_later = clock.time() + 3600
        store.requeue_lapsed_claims(much_later)
        claim(store, 1, now=much_later, token="another's", lease_until=much_later + 300)
        return load_messages(mail_ids)

    monkeypatch.setattr(store, "load_messages", too_late)

    make_dispatcher().deliver_batch()

    assert states(store) == {"ada": "claimed", "bob": "queued"}
    assert {row["token"] for row in table(store).values()} == {"another's", None}
    assert sink.messages == []


def test_a_worker_that_was_frozen_after_the_mark_sends_nothing(
    make_dispatcher: MakeDispatcher,
    store: Store,
    sink: Sink,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A marked mail is given back unsent if its lease would end before the relay's reply."""
    queue_each(store, "ada")
    mark = store.mark_if_claimed

    def freeze(ids: Collection[int], **values: Any) -> set[int]:
        marked = mark(ids, **values)
        clock.ahead += 120
        return marked

    monkeypatch.setattr(store, "mark_if_claimed", freeze)

    make_dispatcher().deliver_batch()

    assert states(store) == {"ada": "queued"}
    assert sink.messages == []


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
def test_a_worker_that_is_interrupted(
    make_dispatcher: MakeDispatcher,
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
    failure: type[BaseException],
) -> None:
    """An interruption leaves the mail on the wire in doubt; others are recorded or given back."""
    queue_each(store, "ada", "bob", "eve", "joe")
    exchange = RelayConnection.exchange

    def interrupted(
        self: RelayConnection,
        next_mail: Callable[[], WireMessage | None],
        may_begin: Callable[[], bool],
    ) -> Iterator[Outcome]:
        outcomes = exchange(self, next_mail, may_begin)
        yield next(outcomes)
        next(outcomes)
        raise failure

    monkeypatch.setattr(RelayConnection, "exchange", interrupted)

    with pytest.raises(failure):
        make_dispatcher(windows_of=3).deliver_batch()

    assert states(store) == {"ada": "sent", "bob": "transmitting", "eve": "queued", "joe": "queued"}


def test_a_receiver_that_is_interrupted(make_dispatcher: MakeDispatcher, store: Store) -> None:
    """An accepted mail is recorded even if a receiver of its signal is interrupted."""
    queue_each(store, "ada", "bob")

    def interrupted(_app: Flask, **_values: Any) -> None:
        raise KeyboardInterrupt

    with email_dispatched.connected_to(interrupted), pytest.raises(KeyboardInterrupt):
        make_dispatcher().deliver_batch()

    assert states(store) == {"ada": "sent", "bob": "queued"}


# --- a database that is away --------------------------------------------------------------------


def test_an_outcome_waits_for_the_database(
    make_dispatcher: MakeDispatcher,
    store: Store,
    sink: Sink,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An outcome waits for the database to be back, so that a sent mail is not sent again."""
    queue_each(store, "ada", "bob")
    failures = iter(range(3))
    record = store.record_if_transmitting

    def away(results: Collection[Result], **values: Any) -> set[int]:
        if next(failures, None) is not None:
            raise StoreUnavailable("restarting")
        return record(results, **values)

    monkeypatch.setattr(store, "record_if_transmitting", away)
    dispatcher = make_dispatcher()

    assert dispatcher.deliver_batch().claimed == 2
    assert states(store) == {"ada": "sent", "bob": "sent"}
    assert len(clock.slept) == 3
    assert len(sink.messages) == 2


def test_a_database_that_does_not_come_back(
    make_dispatcher: MakeDispatcher, store: Store, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker waits for the database a limited time; then the mail it sent is in doubt."""
    queue_each(store, "ada")

    def away(results: Collection[Result], **values: Any) -> set[int]:
        raise StoreUnavailable("gone")

    monkeypatch.setattr(store, "record_if_transmitting", away)
    dispatcher = make_dispatcher()

    with pytest.raises(StoreUnavailable):
        dispatcher.deliver_batch()

    assert 30 < sum(clock.slept) < 120
    assert states(store) == {"ada": "transmitting"}
    clock.ahead = 3600
    chores_of(dispatcher).sweep()
    assert states(store) == {"ada": "doubtful"}


def test_a_commit_without_an_answer(
    make_dispatcher: MakeDispatcher, store: Store, sink: Sink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mail whose mark was committed without an answer is given back and sent, not in doubt."""
    queue_each(store, "ada", "bob")
    mark, lost = store.mark_if_claimed, iter([True])

    def lose_the_answer(ids: Collection[int], **values: Any) -> set[int]:
        moved = mark(ids, **values)
        return set() if next(lost, False) else moved

    monkeypatch.setattr(store, "mark_if_claimed", lose_the_answer)
    dispatcher = make_dispatcher()
    dispatcher.deliver_batch()
    assert states(store) == {"ada": "queued", "bob": "queued"}
    dispatcher.deliver_batch()

    assert states(store) == {"ada": "sent", "bob": "sent"}
    assert len(sink.messages) == 2
