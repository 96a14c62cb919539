"""The memory that a process uses for the mails in its hands stays within a limit."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from mailer.clock import SystemClock
from mailer.delivery import Dispatcher
from mailer.delivery.budget import ByteBudget
from mailer.delivery.preparing import Preparer
from mailer.delivery.services import ThreadContext
from mailer.errors import StoreUnavailable
from mailer.message import Attachment
from mailer.store import Store
from tests.mails import a_message, claim, table
from tests.services.dispatchers import Clock, MakeDispatcher, queue, queue_each, states
from tests.services.sink import Sink

SIZE = 200_000


def queue_large(store: Store, count: int, size: int | None = SIZE) -> None:
    for number in range(count):
        data = number.to_bytes(4) * (SIZE // 4)
        message = a_message(attachments=(Attachment("a.bin", data),))
        queue(store, f"to{number}@example.com", message=message, size=size)


@contextmanager
def context_of(dispatcher: Dispatcher, budget: ByteBudget) -> Iterator[ThreadContext]:
    """Open a thread's context of the dispatcher, with another budget."""
    with dispatcher._thread_context() as context:
        yield replace(context, budget=budget)


@pytest.fixture
def most_held(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Collect the bytes that are held each time before a mail is composed."""
    held: list[int] = []
    make_room = Preparer.make_room

    def watched(self: Preparer, *given: Any) -> bool:
        had_room = make_room(self, *given)
        held.append(self._budget.held)
        return had_room

    monkeypatch.setattr(Preparer, "make_room", watched)
    return held


@pytest.mark.parametrize("size", [SIZE, None], ids=["with a size", "of an older version"])
def test_large_mails_are_composed_one_by_one(
    make_dispatcher: MakeDispatcher,
    store: Store,
    sink: Sink,
    most_held: list[int],
    size: int | None,
) -> None:
    """A window is small enough for the limit, whether the size was stored or is looked up."""
    queue_large(store, 6, size)
    dispatcher = make_dispatcher(MAILER_MAX_BYTES_IN_FLIGHT=10 * SIZE, MAILER_BATCH_SECONDS=60)

    dispatcher.deliver_batch()

    assert set(states(store).values()) == {"sent"}
    assert max(most_held) <= 10 * SIZE
    assert dispatcher._budget.held == 0


def test_a_mail_larger_than_the_bound_goes_alone(
    make_dispatcher: MakeDispatcher, store: Store, sink: Sink, most_held: list[int]
) -> None:
    """A mail larger than the limit is sent all the same, as are small mails beside it."""
    queue_large(store, 3)
    queue_each(store, "ada", "bob")
    dispatcher = make_dispatcher(MAILER_MAX_BYTES_IN_FLIGHT=SIZE, MAILER_BATCH_SECONDS=60)

    dispatcher.deliver_batch()

    assert set(states(store).values()) == {"sent"}
    assert max(most_held) < 2 * 4 * SIZE
    assert dispatcher._budget.held == 0


def test_threads_share_the_bound(
    make_dispatcher: MakeDispatcher, store: Store, sink: Sink, most_held: list[int], clock: Clock
) -> None:
    """A thread without room gives its mail back without an attempt, and does not wait."""
    queue_large(store, 12)
    dispatcher = make_dispatcher(MAILER_MAX_BYTES_IN_FLIGHT=5 * SIZE, MAILER_BATCH_SECONDS=60)

    while "queued" in states(store).values():
        with ThreadPoolExecutor(4) as threads:
            for _ in range(4):
                threads.submit(dispatcher.deliver_batch)
        clock.ahead += 1

    assert set(states(store).values()) == {"sent"}
    assert {row["attempts"] for row in table(store).values()} == {1}
    assert max(most_held) <= 5 * SIZE
    assert len(sink.messages) == 12


def test_room_that_is_waited_for_is_left_to_the_first() -> None:
    """Room is kept for the large mail that asked for it first; small mails still get theirs."""
    budget = ByteBudget(6400, SystemClock())
    assert budget.take(3000, "other")
    assert not budget.take(6000, "large")

    assert not budget.take(1000, "another")
    assert budget.take(10, "small")
    assert not budget.take(6000, "as large")
    budget.give_back(3000)
    assert budget.take(6000, "large")
    budget.give_back(6010)
    assert budget.take(5000, "another")


def test_a_stream_of_small_mails_leaves_room_for_the_first() -> None:
    """A stream of small mails does not keep a large mail waiting for ever."""
    budget = ByteBudget(6400, SystemClock())
    for number in range(64):
        assert budget.take(100, f"small{number}")
    assert not budget.take(3200, "large")

    while not budget.take(3200, "large"):
        budget.give_back(100)
        budget.take(100, "one more")  # so that the room is always full

    assert budget.held <= 6400


def test_recipients_share_what_was_composed(
    make_dispatcher: MakeDispatcher, store: Store, sink: Sink, most_held: list[int]
) -> None:
    """A mail to many recipients takes the room of one."""
    message = a_message(attachments=(Attachment("a.bin", bytes(SIZE)),))
    queue(store, *(f"to{number}@example.com" for number in range(30)), message=message, size=SIZE)
    dispatcher = make_dispatcher(MAILER_MAX_BYTES_IN_FLIGHT=10 * SIZE, MAILER_BATCH_SECONDS=60)

    dispatcher.deliver_batch()

    assert set(states(store).values()) == {"sent"}
    assert max(most_held) < 5 * SIZE
    assert dispatcher._budget.held == 0


def test_a_redirected_copy_has_its_room_for_itself(
    make_dispatcher: MakeDispatcher, store: Store
) -> None:
    """A redirected copy differs for each recipient, so its room is freed when it is done."""
    queue(store, "ada@example.com", "bob@example.com", size=SIZE)
    ada, bob = claim(store)
    dispatcher = make_dispatcher(MAILER_REDIRECT_TO="me@example.net")
    budget = ByteBudget(10 * SIZE, SystemClock())

    with context_of(dispatcher, budget) as context:
        preparer = Preparer(dispatcher._services, context, lambda *_given: None)
        assert preparer.make_room(ada)
        room_of_one = budget.held
        assert preparer.make_room(bob)
        mails = preparer.prepare([ada, bob], patient=True)
        preparer.drop(mails[0], following=bob)

    assert budget.held == room_of_one


def test_mails_that_have_to_be_prepared_again_are_counted_once(
    make_dispatcher: MakeDispatcher, store: Store
) -> None:
    """A mail that is prepared again after a database error frees all its room in the end."""
    queue(store, "ada@example.com", "bob@example.net")
    deliveries, away = claim(store), iter([StoreUnavailable("gone")])
    budget = ByteBudget(1 << 30, SystemClock())

    def set_aside(*_given: object) -> None:
        if error := next(away, None):
            raise error

    dispatcher = make_dispatcher(MAILER_ALLOWED_RECIPIENTS="example.com")
    with context_of(dispatcher, budget) as context:
        preparer = Preparer(dispatcher._services, context, set_aside)
        assert all(map(preparer.make_room, deliveries))
        with pytest.raises(StoreUnavailable):
            preparer.prepare(deliveries, patient=True)
        [mail] = preparer.prepare(deliveries, patient=True)
        preparer.drop(mail, following=None)

    assert budget.held == 0
