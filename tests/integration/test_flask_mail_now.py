"""`Mail(app, when="now")`: a message is stored, and then delivered in the calling thread."""

import os
import signal
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import flask_mail
import pytest
from celery.exceptions import SoftTimeLimitExceeded
from flask import Flask

from mailer import ConfigurationError, Mail, Mailer, Message, Receipt, Status
from mailer.smtpd.faults import DROP, HANG, Fault
from tests.services.databases import sqlite_only
from tests.services.relay import LONG, TIMEOUTS
from tests.services.sink import Sink
from tests.services.waiting import wait_until
from tests.shop import OpenShop, create_shop, store_of

NO_BROKER = "redis://127.0.0.1:1/0"

mailer = Mailer()


@pytest.fixture
def shop(open_shop: OpenShop) -> Iterator[Flask]:
    """Enter the context of an application without broker and worker."""
    app = open_shop(MAILER_REDIS_URL=NO_BROKER, **dict.fromkeys(TIMEOUTS, LONG))
    with app.app_context():
        yield app
        app.extensions["mailer"].outbound.dispatcher.hang_up()


@pytest.fixture
def mail(shop: Flask) -> Mail:
    return Mail(shop, when="now")


def message(*recipients: str) -> Message:
    return Message("Hello", [*(recipients or ("ada@example.com",))], "Hello Ada!")


def states(receipt: Receipt) -> list[Status]:
    return [delivery.status for delivery in mailer.status(receipt)]


def test_a_message_is_delivered_before_the_call_returns(mail: Mail, sink: Sink) -> None:
    """The relay has the message when `send()` returns, and its status is `sent`."""
    receipt = mail.send(message())

    [received] = sink.messages
    assert received.message_id == receipt.message_id
    assert states(receipt) == [Status.SENT]


def test_other_mail_waits_for_the_workers(mail: Mail, sink: Sink) -> None:
    """Mail that others have queued is left to the workers."""
    waiting = mailer.enqueue(message("bob@example.com"))

    mail.send(message())

    assert [received.recipients for received in sink.messages] == [("ada@example.com",)]
    assert states(waiting) == [Status.QUEUED]


@pytest.mark.parametrize("attribute", ["send_message", "connect", "extensions"])
def test_each_way_of_flask_mail(shop: Flask, mail: Mail, sink: Sink, attribute: str) -> None:
    """`send_message()`, `connect()` and the object of other extensions deliver at once, too."""
    match attribute:
        case "send_message":
            mail.send_message("Hello", ["ada@example.com"], "Hello Ada!")
        case "connect":
            with mail.connect() as connection:
                connection.send(message())
        case _:
            shop.extensions["mail"].send(message())

    assert len(sink.messages) == 1


@sqlite_only
def test_the_factory_pattern(config: dict[str, str], sink: Sink) -> None:
    """`Mail(when="now")` and `init_app()` deliver at once, also beside a `Mail` that queues."""
    app = create_shop({**config, "MAILER_REDIS_URL": NO_BROKER})
    queues, delivers = Mail(), Mail(when="now")
    queues.init_app(app)
    delivers.init_app(app)

    with app.app_context():
        assert states(queues.send(message())) == [Status.QUEUED]
        assert states(delivers.send(message())) == [Status.SENT]
        assert states(app.extensions["mail"].send(message())) == [Status.SENT]
        flask_mail.Mail(app)
    with app.app_context():
        assert states(app.extensions["mail"].send(message())) == [Status.SENT]
    app.extensions["mailer"].outbound.dispatcher.hang_up()
    store_of(app).engine.dispose()


@pytest.mark.parametrize("value", ["soon", None, True, "NOW"])
def test_another_time(value: Any) -> None:
    """Another value of `when` is refused, and the error names the two that there are."""
    with pytest.raises(ConfigurationError, match=r"Mail\(when=.*'queued'.*'now'"):
        Mail(when=value)


# --- relays that do not take it -----------------------------------------------------------------


def test_a_refusal_is_no_error(mail: Mail, sink: Sink) -> None:
    """A refusal raises nothing: the message was accepted. The status has the relay's words."""
    sink.faults.add(Fault("rcpt", "550 5.1.1 no such user"))

    receipt = mail.send(message())

    [delivery] = mailer.status(receipt)
    assert (delivery.status, delivery.reply) == (Status.FAILED, "550 5.1.1 no such user")


def test_a_deferred_message_waits_for_the_workers(mail: Mail, sink: Sink) -> None:
    """After a temporary failure the message stays queued, and is tried again later."""
    sink.faults.add(Fault("rcpt", "451 4.7.1 try again later"))

    receipt = mail.send(message())

    [delivery] = mailer.status(receipt)
    assert (delivery.status, delivery.reply) == (Status.QUEUED, "451 4.7.1 try again later")
    assert delivery.due_at is not None
    assert delivery.due_at > datetime.now(UTC)


def test_an_unreachable_relay(mail: Mail, sink: Sink) -> None:
    """If the relay drops the connection, the message waits; while it is paused, nobody asks it."""
    sink.faults.add(Fault("connect", DROP, times=None))

    receipts = [mail.send(message()) for _ in range(3)]

    assert [states(receipt) for receipt in receipts] == [[Status.QUEUED]] * 3
    assert sink.connections == 1


@sqlite_only
def test_a_relay_that_hangs(open_shop: OpenShop, config: dict[str, str], sink: Sink) -> None:
    """A silent relay keeps the caller no longer than its time-out; then the message waits."""
    app = open_shop(MAILER_REDIS_URL=NO_BROKER, MAILER_COMMAND_TIMEOUT=0.2)
    sink.faults.add(Fault("mail", HANG))

    with app.app_context():
        receipt = Mail(app, when="now").send(message())

        assert states(receipt) == [Status.QUEUED]


def test_a_limit(open_shop: OpenShop, sink: Sink) -> None:
    """A message over a limit of the relay is not sent now, and waits for the workers."""
    app = open_shop(MAILER_REDIS_URL=NO_BROKER, MAILER_RELAY_RATE="1/hour")

    with app.app_context():
        mail = Mail(app, when="now")
        first, second = mail.send(message()), mail.send(message())

        assert (states(first), states(second)) == ([Status.SENT], [Status.QUEUED])
    assert len(sink.messages) == 1


def test_a_pause_by_hand(mail: Mail, sink: Sink) -> None:
    """While everything is paused, the message waits."""
    mailer.pause()

    assert states(mail.send(message())) == [Status.QUEUED]
    assert sink.connections == 0


def test_many_recipients(mail: Mail, sink: Sink) -> None:
    """All recipients get the message before the call returns."""
    everybody = [f"reader{number}@example.com" for number in range(40)]

    receipt = mail.send(message(*everybody))

    assert states(receipt) == [Status.SENT] * 40
    assert sorted(sum((received.recipients for received in sink.messages), ())) == sorted(everybody)


def test_many_recipients_at_a_slow_relay(
    mail: Mail, sink: Sink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After some seconds no more copies are begun: the rest waits for the workers."""
    monkeypatch.setattr("mailer.outbound._LONGEST_INLINE_SECONDS", -1.0)
    everybody = [f"reader{number}@example.com" for number in range(500)]

    receipt = mail.send(message(*everybody))

    assert set(states(receipt)) == {Status.SENT, Status.QUEUED}
    assert 0 < len(sink.messages) < len(everybody)


def test_the_time_limit_of_a_task(mail: Mail, sink: Sink) -> None:
    """The soft time limit of the task that sends ends the task; the message stays queued."""

    def end_task(*_arguments: object) -> None:
        raise SoftTimeLimitExceeded

    def signal_while_it_hangs() -> None:
        wait_until(lambda: len(sink.faults) == 0)
        os.kill(os.getpid(), signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, end_task)
    sink.faults.add(Fault("mail", HANG))
    thread = threading.Thread(target=signal_while_it_hangs)
    thread.start()
    try:
        with pytest.raises(SoftTimeLimitExceeded):
            mail.send(message())
    finally:
        thread.join()
        signal.signal(signal.SIGUSR1, before)

    [found] = mailer.mails(to="ada@example.com")
    assert [delivery.status for delivery in found] == [Status.QUEUED]


def test_a_request_that_is_killed(shop: Flask, mail: Mail, sink: Sink) -> None:
    """The black box of a web process that is killed says that the relay took the message."""

    def kill(app: Flask, message: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    if not (child := os.fork()):
        try:
            with flask_mail.email_dispatched.connected_to(kill):
                mail.send(message())
        finally:
            os._exit(1)  # so that pytest goes on in the parent only
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)
    shop.extensions["mailer"].outbound.maintenance.settle()

    [found] = mailer.mails(to="ada@example.com")
    assert [delivery.status for delivery in found] == [Status.SENT]
    assert len(sink.messages) == 1


# --- Celery's eager mode ------------------------------------------------------------------------


def test_eager_mode_needs_no_broker(shop: Flask, sink: Sink, caplog: Any) -> None:
    """With `task_always_eager`, a call delivers its own mail, and no broker is asked."""
    waiting = mailer.enqueue(message("bob@example.com"))
    shop.extensions["celery"].conf.task_always_eager = True
    caplog.clear()

    receipt = mailer.enqueue(message())

    assert (states(receipt), states(waiting)) == ([Status.SENT], [Status.QUEUED])
    assert "broker" not in caplog.text


def test_an_eager_task_delivers_what_is_due(shop: Flask, sink: Sink) -> None:
    """A task that the application calls itself in eager mode delivers all due mail."""
    waiting = mailer.enqueue(message("bob@example.com"))
    shop.extensions["celery"].conf.task_always_eager = True

    shop.extensions["celery"].tasks["mailer.send_email"].delay()

    assert states(waiting) == [Status.SENT]
