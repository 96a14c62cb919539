"""When a relay is slow, expired mail is not sent and urgent mail goes first."""

import threading
import time
from collections.abc import Collection, Iterator

import pytest

from mailer.message import Address, Lane, Status
from mailer.smtpd.faults import ACCEPT_AND_DROP, Fault
from mailer.store import Store
from tests.mails import a_message, table
from tests.services.dispatchers import (
    Clock,
    MakeDispatcher,
    OpenDispatcher,
    chores_of,
    copy_of,
    queue,
    states,
)
from tests.services.script import HOLD, ScriptedRelay
from tests.services.sink import Sink
from tests.services.waiting import wait_until


@pytest.fixture
def slow() -> Iterator[ScriptedRelay]:
    with ScriptedRelay("PIPELINING") as server:
        yield server


def at(relay: ScriptedRelay) -> dict[str, object]:
    """Return the entry of the relay for MAILER_RELAYS."""
    return {"name": "slow", "MAIL_SERVER": relay.host, "MAIL_PORT": relay.port}


def queue_from(store: Store, sender: str, **options: object) -> str:
    """Queue a mail with a sender of its own, which tells it from others at the relay."""
    return queue(
        store,
        f"to-{sender}@example.com",
        message=a_message(sender=Address(f"{sender}@example.com")),
        **options,
    )


@pytest.mark.parametrize("point", ["dot", "rcpt"])
def test_a_mail_that_expires_while_the_relay_is_slow(
    open_dispatcher: OpenDispatcher, store: Store, slow: ScriptedRelay, clock: Clock, point: str
) -> None:
    """A mail that expires in its window is not sent, not even after its envelope."""
    first = queue_from(store, "first")
    code = queue_from(store, "code", expires_at=time.time() + 60)
    later = queue_from(store, "later", expires_at=time.time() + 60)
    sender = "first@example.com" if point == "dot" else "code@example.com"
    slow.faults[sender, point].append(HOLD)  # type: ignore[index]
    dispatcher = open_dispatcher(at(slow))
    working = threading.Thread(target=dispatcher.deliver_batch)
    working.start()
    wait_until(lambda: slow.held == 1)

    clock.ahead = 100
    slow.go_on()
    working.join()
    chores_of(dispatcher).sweep()

    assert slow.acknowledged == ["first@example.com"]
    assert copy_of(store, first).status == Status.SENT
    for mail_id in (code, later):
        assert (copy_of(store, mail_id).status, copy_of(store, mail_id).attempts) == (
            Status.EXPIRED,
            0,
        )


def test_a_worker_that_is_frozen_between_two_windows(
    open_dispatcher: OpenDispatcher,
    store: Store,
    slow: ScriptedRelay,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The mark of the next window does not renew the lease of a mail in flight."""
    first, second = queue_from(store, "first"), queue_from(store, "second")
    dispatcher = open_dispatcher(at(slow))
    its_store = dispatcher._services.store
    load_messages, freezes = its_store.load_messages, iter([0, 100_000])

    def freeze(mail_ids: Collection[str]) -> object:
        clock.ahead += next(freezes)
        return load_messages(mail_ids)

    monkeypatch.setattr(its_store, "load_messages", freeze)
    # So that each window has one mail.
    dispatcher._router.states["slow"].pace.seconds_per_mail = 1.0

    dispatcher.deliver_batch()

    assert slow.acknowledged == []
    assert [copy_of(store, mail_id).status for mail_id in (first, second)] == [
        Status.QUEUED,
        Status.QUEUED,
    ]


def test_a_batch_that_takes_too_long(
    open_dispatcher: OpenDispatcher, store: Store, slow: ScriptedRelay, clock: Clock
) -> None:
    """A batch that takes too long gives back the rest, and the next one begins with urgent mail."""
    for number in range(4):
        queue_from(store, f"mail{number}")
    slow.faults["mail0@example.com", "dot"].append(HOLD)
    dispatcher = open_dispatcher(at(slow), MAILER_BATCH_SECONDS=0.05)
    working = threading.Thread(target=dispatcher.deliver_batch)
    working.start()
    wait_until(lambda: slow.held == 1)
    began = time.monotonic()
    wait_until(lambda: time.monotonic() > began + 0.2)
    queue_from(store, "urgent", lane=Lane.CRITICAL)
    slow.go_on()
    working.join()

    assert slow.acknowledged == ["mail0@example.com"]
    assert set(states(store).values()) == {"sent", "queued"}
    assert sorted(row["attempts"] for row in table(store).values()) == [0, 0, 0, 0, 1]
    dispatcher.deliver_batch()
    assert slow.acknowledged[1] == "urgent@example.com"


def test_a_mail_in_doubt_that_has_expired(
    make_dispatcher: MakeDispatcher, store: Store, sink: Sink, clock: Clock
) -> None:
    """A mail in doubt that has expired is not resent."""
    mail_id = queue(store, "ada@example.com", expires_at=time.time() + 60)
    sink.faults.add(Fault("dot", ACCEPT_AND_DROP))
    dispatcher = make_dispatcher(MAILER_DOUBT_RESEND_AFTER=900)
    dispatcher.deliver_batch()
    assert copy_of(store, mail_id).status == Status.DOUBTFUL

    clock.ahead = 901
    chores_of(dispatcher).sweep()
    dispatcher.deliver_batch()

    assert copy_of(store, mail_id).status == Status.EXPIRED
    assert len(sink.messages) == 1
