"""Signals tell the application what became of its mail, after the commit."""

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from blinker import NamedSignal
from flask import Flask, current_app
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from mailer import Mailer, Receipt, Status, send_email, signals
from mailer.signals import Event, EventKind, SignalOutlet
from mailer.smtpd.faults import ACCEPT_AND_DROP, Fault
from tests.services.dispatchers import chores_of
from tests.services.sink import Sink
from tests.services.waiting import wait_until
from tests.shop import OpenShop, store_of

ALL = [getattr(signals, name) for name in signals.__all__ if name.startswith("mail_")]


@pytest.fixture
def heard() -> Iterator[list[Event]]:
    """Yield the events of all signals, in the order in which receivers heard them."""
    events: list[Event] = []

    def hear(app: Flask, event: Event) -> None:
        assert current_app == app
        events.append(event)

    for one in ALL:
        one.connect(hear)
    yield events
    for one in ALL:
        one.disconnect(hear)


def send(**options: object) -> Receipt:
    given = {"tags": ["welcome"], "metadata": {"order": "42"}, **options}
    return send_email("ada@example.com", "Hello", "only_text", context={"name": "Ada"}, **given)  # type: ignore[arg-type]


def kinds(heard: list[Event], app: Flask) -> list[EventKind]:
    outlet: SignalOutlet = store_of(app)._outlet  # type: ignore[assignment]
    assert outlet.drain(10)
    return [event.kind for event in heard]


def deliver(app: Flask) -> None:
    app.extensions["mailer"].outbound.dispatcher.deliver(at_most=60)


# --- each change --------------------------------------------------------------------------------


def test_a_mail_that_is_sent(shop: Flask, sink: Sink, heard: list[Event]) -> None:
    """A mail that is queued and sent emits an event for each, with all documented fields."""
    receipt = send()
    deliver(shop)

    assert kinds(heard, shop) == [EventKind.QUEUED, EventKind.SENT]
    queued, sent = heard
    assert {event.mail_id for event in heard} == {receipt.id}
    assert {event.message_id for event in heard} == {receipt.message_id}
    assert {event.recipient for event in heard} == {"ada@example.com"}
    assert {event.tags for event in heard} == {("welcome",)}
    assert {event.metadata for event in heard} == {(("order", "42"),)}
    assert (queued.status, queued.relay) == (Status.QUEUED, None)
    assert (sent.status, sent.relay, sent.attempts) == (Status.SENT, f"{sink.host}:{sink.port}", 1)
    assert sent.reply is not None
    assert sent.reply.startswith("250")


@pytest.mark.parametrize(
    ("fault", "expected", "status"),
    [
        (Fault("rcpt", "550 5.1.1 no such user"), EventKind.FAILED, Status.FAILED),
        (Fault("rcpt", "451 4.2.0 not now"), EventKind.DEFERRED, Status.QUEUED),
        (Fault("dot", ACCEPT_AND_DROP), EventKind.DOUBTFUL, Status.DOUBTFUL),
    ],
)
def test_a_mail_that_is_not_sent(
    shop: Flask, sink: Sink, heard: list[Event], fault: Fault, expected: EventKind, status: Status
) -> None:
    """The event of a mail that was not sent has its new state and the relay's reply."""
    sink.faults.add(fault)
    send()
    deliver(shop)

    assert kinds(heard, shop) == [EventKind.QUEUED, expected]
    assert heard[-1].status is status
    assert heard[-1].reply


def test_a_relay_that_is_down_defers_no_mail(shop: Flask, sink: Sink, heard: list[Event]) -> None:
    """A relay that cannot be reached emits no `mail_deferred`, since no mail was tried."""
    sink.stop()
    send()
    deliver(shop)

    assert kinds(heard, shop) == [EventKind.QUEUED]


def test_a_mail_that_is_cancelled_or_expires(shop: Flask, heard: list[Event]) -> None:
    """Cancelling and expiring a mail emit events as well."""
    cancelled = send()
    Mailer().cancel(cancelled)
    store = store_of(shop)
    expired = send()
    with store._write() as transaction:
        transaction.execute("UPDATE mailer_delivery SET expires_at = 1 WHERE status = 'queued'", {})
    chores_of(shop.extensions["mailer"].outbound.dispatcher).sweep()

    assert kinds(heard, shop) == [
        EventKind.QUEUED,
        EventKind.CANCELLED,
        EventKind.QUEUED,
        EventKind.EXPIRED,
    ]
    assert [event.mail_id for event in heard] == [cancelled.id] * 2 + [expired.id] * 2


def test_an_expiry_by_hand(shop: Flask, heard: list[Event]) -> None:
    """A mail that is moved to `expired` by hand has the event of an expired mail."""
    receipt = send()
    store_of(shop).settle_if_resting(receipt.id, Status.EXPIRED, now=time.time())

    assert kinds(heard, shop) == [EventKind.QUEUED, EventKind.EXPIRED]


# --- only what is committed ---------------------------------------------------------------------


@pytest.mark.parametrize("commits", [True, False])
def test_a_mail_in_the_callers_transaction(
    shop: Flask, heard: list[Event], database_url: str, *, commits: bool
) -> None:
    """`mail_queued` is emitted after the caller's commit, and never after a rollback."""
    engine = create_engine(database_url.replace("postgresql://", "postgresql+psycopg://"))
    with Session(engine) as session:
        send(connection=session)
        assert kinds(heard, shop) == []
        (session.commit if commits else session.rollback)()
    engine.dispose()

    assert kinds(heard, shop) == [EventKind.QUEUED] * commits


def test_a_mail_with_a_key_that_is_taken(shop: Flask, heard: list[Event]) -> None:
    """A call whose idempotency key is already taken emits no event."""
    send(idempotency_key="order-42")
    send(idempotency_key="order-42")

    assert kinds(heard, shop) == [EventKind.QUEUED]


# --- receivers ----------------------------------------------------------------------------------


@contextmanager
def connected(signal: NamedSignal, receiver: Callable[..., None]) -> Iterator[None]:
    signal.connect(receiver)
    yield
    signal.disconnect(receiver)


def test_a_receiver_that_raises(
    shop: Flask, heard: list[Event], caplog: pytest.LogCaptureFixture
) -> None:
    """An exception in a receiver is logged, and the other receivers hear the event."""

    def fail(_app: Flask, event: Event) -> None:
        raise ValueError(event.mail_id)

    with connected(signals.mail_queued, fail):
        receipt = send()
        assert kinds(heard, shop) == [EventKind.QUEUED]

    assert f"Receiver of a signal failed: signal=mail_queued mail_id={receipt.id}" in caplog.text


def test_a_receiver_that_is_slow(shop: Flask, sink: Sink) -> None:
    """Neither queueing nor delivering waits for a slow receiver."""
    goes_on = threading.Event()

    def wait(_app: Flask, event: Event) -> None:
        goes_on.wait(30)

    with connected(signals.mail_queued, wait):
        send()
        deliver(shop)
        assert len(sink.wait_for(1)) == 1
        goes_on.set()
        assert store_of(shop)._outlet.drain(10)  # type: ignore[attr-defined]


def test_a_receiver_that_queues_a_mail(shop: Flask, heard: list[Event]) -> None:
    """A receiver may queue mail, since the database connection is free again by then."""

    def answer(_app: Flask, event: Event) -> None:
        if event.tags == ("welcome",):
            send(tags=["answer"])

    with connected(signals.mail_queued, answer):
        send()
        wait_until(lambda: len(heard) == 2)

    assert [event.tags for event in heard] == [("welcome",), ("answer",)]


def test_a_receiver_of_another_app(shop: Flask, open_shop: OpenShop, heard: list[Event]) -> None:
    """A receiver connected with `sender=app` hears events of that app only."""
    other, events = open_shop(), list[Event]()

    def hear(_app: Flask, event: Event) -> None:
        events.append(event)

    signals.mail_queued.connect(hear, sender=other)
    send()
    with other.app_context():
        theirs = send()
        assert kinds(heard, other)
    assert kinds(heard, shop)
    signals.mail_queued.disconnect(hear, sender=other)

    assert [event.mail_id for event in events] == [theirs.id]


def test_without_receivers_nothing_is_read(shop: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without receivers, a state change reads nothing more from the database."""
    monkeypatch.setattr("mailer.store.rows.event", None)
    send()
    deliver(shop)

    assert not store_of(shop)._outlet._waiting  # type: ignore[attr-defined]


def test_suppressed_mail_is_told_at_once(open_shop: OpenShop, heard: list[Event]) -> None:
    """With MAIL_SUPPRESS_SEND, events are emitted in the calling thread, so tests need not wait."""
    app = open_shop(MAIL_SUPPRESS_SEND=True)
    with app.app_context():
        send()

    assert [event.kind for event in heard] == [EventKind.QUEUED, EventKind.SENT]


def test_too_many_events(
    shop: Flask, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Events that slow receivers leave waiting beyond the limit are dropped, and that is logged."""
    monkeypatch.setattr(signals, "_MAX_WAITING", 1)
    goes_on, began = threading.Event(), threading.Event()

    def wait(_app: Flask, event: Event) -> None:
        began.set()
        goes_on.wait(30)

    with connected(signals.mail_queued, wait):
        send()
        began.wait(10)
        send()
        send()
        goes_on.set()
        assert store_of(shop)._outlet.drain(10)  # type: ignore[attr-defined]

    assert "Events were lost, since receivers of signals are too slow: events=1." in caplog.text


def test_a_receiver_that_would_end_its_thread(
    shop: Flask, heard: list[Event], caplog: pytest.LogCaptureFixture
) -> None:
    """A SystemExit in a receiver is logged, and later events are still heard."""

    def leave(_app: Flask, event: Event) -> None:
        raise SystemExit

    with connected(signals.mail_queued, leave):
        send()
        kinds(heard, shop)
    heard.clear()
    send()

    assert kinds(heard, shop) == [EventKind.QUEUED]
    assert "Receiver of a signal failed: signal=mail_queued" in caplog.text


def test_no_thread_can_start(
    shop: Flask, heard: list[Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    """If no thread can start, queueing still succeeds and the event waits for the next one."""
    with monkeypatch.context() as patch:
        patch.setattr(signals, "start_daemon", lambda *_given: None)
        receipt = send()
    assert heard == []

    send()

    assert kinds(heard, shop) == [EventKind.QUEUED] * 2
    assert heard[0].mail_id == receipt.id


def test_the_thread_takes_no_signals(shop: Flask) -> None:
    """The thread of the receivers blocks the signals that end a worker."""
    masks = []

    def look(_app: Flask, event: Event) -> None:
        masks.append(signal.pthread_sigmask(signal.SIG_BLOCK, []))

    with connected(signals.mail_queued, look):
        send()
        wait_until(lambda: bool(masks))

    assert {signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP} <= masks[0]


@pytest.mark.parametrize("column", ["tags", "metadata"])
def test_damaged_words_of_one_mail(
    shop: Flask, sink: Sink, heard: list[Event], column: str
) -> None:
    """A mail whose tags or metadata are damaged is told without them, and stops no other mail."""
    receipts = [send(), send()]
    with store_of(shop)._write() as transaction:
        transaction.execute(
            f"UPDATE mailer_message SET {column} = '[5]' WHERE id = :id",  # noqa: S608 -- ours
            {"id": receipts[0].id},
        )
    deliver(shop)

    assert kinds(heard, shop).count(EventKind.SENT if column == "tags" else EventKind.FAILED) >= 1
    assert [event.kind for event in heard if event.mail_id == receipts[1].id] == [
        EventKind.QUEUED,
        EventKind.SENT,
    ]
    assert Mailer().status(receipts[0]).id == receipts[0].id


def test_a_handler_of_the_log_that_queues_mail(
    shop: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The warning of lost events may be handled by code that waits for a thread which queues."""
    monkeypatch.setattr(signals, "_MAX_WAITING", 1)
    goes_on, began = threading.Event(), threading.Event()
    ended: list[bool] = []

    def wait(_app: Flask, event: Event) -> None:
        began.set()
        goes_on.wait(30)

    class MailHandler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "Events were lost" in record.msg:
                thread = threading.Thread(target=self._queue)
                thread.start()
                thread.join(10)
                ended.append(not thread.is_alive())

        def _queue(self) -> None:
            with shop.app_context():
                send()

    handler = MailHandler()
    logging.getLogger("mailer.signals").addHandler(handler)
    try:
        with connected(signals.mail_queued, wait):
            send()
            began.wait(10)
            send()
            send()
            goes_on.set()
            assert store_of(shop)._outlet.drain(20)  # type: ignore[attr-defined]
    finally:
        logging.getLogger("mailer.signals").removeHandler(handler)

    assert ended == [True]
