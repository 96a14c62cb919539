"""More urgent mail that comes while a batch is delivered."""

import math
from collections.abc import Callable

import pytest

from mailer.delivery import overtaking
from mailer.message import Lane
from mailer.store import Store
from tests.mails import table
from tests.services.dispatchers import (
    Clock,
    MakeDispatcher,
    OpenDispatcher,
    entry,
    queue,
    queue_many,
    received,
    states,
)
from tests.services.sink import Sink

CODE = "code@example.com"


@pytest.fixture(autouse=True)
def _look_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overtaking, "_LOOK_SECONDS", 0.0)


def on_arrival(sink: Sink, call: Callable[[int], object]) -> None:
    """Make a call with the number of mails that have arrived, before the relay answers."""
    take = sink.accept

    def take_and_call(sender: str, recipients: list[str], raw: bytes) -> str:
        reply = take(sender, recipients, raw)
        call(len(sink.messages))
        return reply

    sink.accept = take_and_call


def queue_code_at(sink: Sink, store: Store, number: int, **options: object) -> None:
    on_arrival(sink, lambda count: count == number and queue(store, CODE, **options))


def test_urgent_mail_goes_in_the_middle_of_a_batch(
    make_dispatcher: MakeDispatcher, store: Store, sink: Sink
) -> None:
    """Critical mail goes after what is prepared, and the batch goes on to its end."""
    queue_many(store, 12, lane=Lane.BULK)
    queue_code_at(sink, store, 2, lane=Lane.CRITICAL)

    make_dispatcher(windows_of=1).deliver_batch()

    assert received(sink).index(CODE) <= 5
    assert len(sink.messages) == 13
    assert set(states(store).values()) == {"sent"}


def test_it_is_in_the_next_batch_at_the_latest(
    make_dispatcher: MakeDispatcher, store: Store, sink: Sink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a look in the batch, urgent mail is first in the next one, before all bulk mail."""
    monkeypatch.setattr(overtaking, "_LOOK_SECONDS", math.inf)
    queue_many(store, 40, lane=Lane.BULK)
    queue_code_at(sink, store, 1, lane=Lane.CRITICAL)
    dispatcher = make_dispatcher(windows_of=1)
    dispatcher.deliver_batch()
    before = len(sink.messages)
    assert CODE not in received(sink)

    dispatcher.deliver_batch()

    assert received(sink)[before] == CODE


@pytest.mark.parametrize("lane", [Lane.NORMAL, Lane.BULK])
def test_only_more_urgent_mail_overtakes(
    make_dispatcher: MakeDispatcher, store: Store, sink: Sink, lane: Lane
) -> None:
    """Mail of the same lane, and of a less urgent one, waits for the next batch."""
    queue_many(store, 12, lane=Lane.NORMAL)
    queue_code_at(sink, store, 2, lane=lane)

    make_dispatcher(windows_of=1).deliver_batch()

    assert CODE not in received(sink)


def test_a_flood_of_urgent_mail_does_not_end_a_batch(
    make_dispatcher: MakeDispatcher,
    store: Store,
    sink: Sink,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Urgent mail takes no time from the batch, so that the share of other lanes is delivered."""
    # Each mail takes as long as the pace says, so that the batch is just done at its end.
    monkeypatch.setattr(clock, "monotonic", lambda: 0.05 * len(sink.messages))
    queue_many(store, 20, lane=Lane.BULK)
    on_arrival(sink, lambda _count: queue(store, CODE, lane=Lane.CRITICAL))

    make_dispatcher(windows_of=1).deliver_batch()

    assert sum(recipient != CODE for recipient in received(sink)) == 20
    assert received(sink).count(CODE) >= 10


def test_mail_of_another_relay_waits_for_the_next_batch(
    open_dispatcher: OpenDispatcher, store: Store, sink: Sink, backup: Sink
) -> None:
    """Urgent mail that another relay carries does not interrupt a share, and loses no attempt."""
    dispatcher = open_dispatcher(entry(sink, "bulk"), entry(backup, "codes", lanes=["critical"]))
    dispatcher._router.states["bulk"].pace.seconds_per_mail = 0.05
    queue_many(store, 12, lane=Lane.BULK)
    queue_code_at(sink, store, 2, lane=Lane.CRITICAL)

    dispatcher.deliver_batch()

    assert (len(sink.messages), len(backup.messages)) == (12, 0)
    [code] = [row for row in table(store).values() if row["recipient"] == CODE]
    assert (code["status"], code["attempts"]) == ("queued", 0)
    dispatcher.deliver_batch()
    assert received(backup) == [CODE]


def test_an_error_leaves_the_urgent_mail_queued(
    make_dispatcher: MakeDispatcher, store: Store, sink: Sink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If something fails when urgent mail is claimed, all mail that was not sent is released."""
    queue_many(store, 12, lane=Lane.BULK)
    queue_code_at(sink, store, 2, lane=Lane.CRITICAL)
    dispatcher = make_dispatcher(windows_of=1)
    assign = dispatcher._router.assign

    def fail_for_urgent(plan: object, claimed: list[object], available: object) -> None:
        if len(claimed) == 1:
            raise RuntimeError("no route")
        assign(plan, claimed, available)  # type: ignore[arg-type]

    monkeypatch.setattr(dispatcher._router, "assign", fail_for_urgent)

    with pytest.raises(RuntimeError, match="no route"):
        dispatcher.deliver_batch()

    assert states(store)["code"] == "queued"
    assert set(states(store).values()) == {"sent", "queued"}


def test_a_delivery_of_certain_mails_takes_no_other(
    make_dispatcher: MakeDispatcher, store: Store, sink: Sink
) -> None:
    """Who delivers certain mails, in the calling thread, leaves urgent ones to the workers."""
    mails = queue_many(store, 12, lane=Lane.BULK)
    queue_code_at(sink, store, 2, lane=Lane.CRITICAL)

    make_dispatcher(windows_of=1).deliver(at_most=60, mails=mails)

    assert len(sink.messages) == 12
    assert states(store)["code"] == "queued"
