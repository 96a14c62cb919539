"""The fake relay of the test kit: scripted answers, and what Mailer makes of them."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import flask_mail
import pytest
from flask import Flask

from mailer import DeliveryStatus, Mail, Mailer, Receipt, Status
from mailer.signals import mail_failed
from mailer.testing import FakeRelay, Outbox
from tests.services.relay import LONG
from tests.shop import close, create_shop

HOUR = timedelta(hours=1)

mailer = Mailer()


@pytest.fixture
def app() -> Iterator[Flask]:
    """Enter the context of an application under test."""
    app = create_shop({"TESTING": True, "MAIL_DEFAULT_SENDER": "shop@example.com"})
    with app.app_context():
        yield app
    close(app)


@pytest.fixture
def outbox(app: Flask) -> Iterator[Outbox]:
    with Outbox(app) as outbox:
        yield outbox


@pytest.fixture
def relay(app: Flask) -> Iterator[FakeRelay]:
    with FakeRelay(app, timeout=LONG) as relay:
        yield relay


def send(*to: str, **options: Any) -> Receipt:
    return mailer.send_email(to or ["ada@example.com"], "Hello", "only_text", name="Ada", **options)


def only(drained: list[DeliveryStatus]) -> tuple[Status, str | None]:
    """Return the status and the reply of the only delivery."""
    [delivery] = drained
    return delivery.status, delivery.reply


def test_mail_goes_through_the_relay(outbox: Outbox, relay: FakeRelay) -> None:
    """Mail waits for `drain()`, and the relay receives it as Mailer sends it."""
    receipt = send()
    assert (len(outbox), relay.mails) == (0, [])

    assert only(outbox.drain()) == (Status.SENT, "250 2.0.0 Ok: queued as 1")

    [received] = relay.mails
    assert (received.recipients, received.subject) == (("ada@example.com",), "Hello")
    assert received.message_id == receipt.message_id
    assert len(outbox) == 1


def test_a_refusal(outbox: Outbox, relay: FakeRelay) -> None:
    """A recipient is refused for good, in the words of the script; the others get their mail."""
    relay.refuse("eve@example.com", 554, "no such user")
    heard: list[str] = []

    def hear(app: Flask, event: Any) -> None:
        heard.append(event.reply)

    receipt = send("ada@example.com", "eve@example.com")
    with mail_failed.connected_to(hear):
        outbox.drain()

    states = {one.recipient: (one.status, one.reply) for one in mailer.status(receipt)}
    assert states["ada@example.com"][0] == Status.SENT
    assert states["eve@example.com"] == (Status.FAILED, "554 no such user")
    assert heard == ["554 no such user"]
    assert [mail.recipients for mail in relay.mails] == [("ada@example.com",)]


def test_a_deferral_and_the_retry(outbox: Outbox, relay: FakeRelay) -> None:
    """A mail that is refused for now is tried again when its time has come."""
    relay.defer(times=2)
    send()

    assert only(outbox.drain()) == (Status.QUEUED, "451 4.7.1 try again later")
    assert outbox.drain() == []
    assert only(outbox.drain(after=HOUR)) == (Status.QUEUED, "451 4.7.1 try again later")
    status, _reply = only(outbox.drain(after=HOUR))

    assert status == Status.SENT
    assert len(outbox[0].status.deliveries[0].history) == 2


def test_a_mail_that_is_given_up(outbox: Outbox, relay: FakeRelay) -> None:
    """A mail that is deferred again and again fails in the end."""
    relay.defer(times=None)
    send()

    seen = {only(outbox.drain())[0]}
    while seen == {Status.QUEUED}:
        seen = {one.status for one in outbox.drain(after=12 * HOUR)} or seen

    assert seen == {Status.FAILED}


@pytest.mark.parametrize("stage", ["connect", "ehlo", "mail", "rcpt", "data", "dot"])
def test_a_connection_that_breaks(outbox: Outbox, relay: FakeRelay, stage: Any) -> None:
    """If the relay drops the connection at any stage, the mail waits, and is sent later."""
    relay.drop(
        at=stage, times=1 if stage == "dot" else 2
    )  # before the dot it is tried again at once
    send()

    outbox.drain()
    assert len(outbox) == 0
    for _ in range(3):
        outbox.drain(after=HOUR)

    assert len(outbox) == 1


@pytest.mark.parametrize("stage", ["connect", "mail", "rcpt"])
def test_a_relay_that_hangs(app: Flask, outbox: Outbox, stage: Any) -> None:
    """A relay that says nothing costs its time-out, and the mail is sent later."""
    with FakeRelay(app, timeout=0.2) as hanging:
        hanging.hang(at=stage)
        send()
        outbox.drain()
        assert len(outbox) == 0
    with FakeRelay(app, timeout=LONG):
        outbox.drain(after=HOUR)

    assert len(outbox) == 1


def test_a_reply_that_is_lost(outbox: Outbox, relay: FakeRelay) -> None:
    """A mail whose reply is lost is in doubt, and is sent once more, unless it is on hold."""
    relay.lose_reply(times=2)
    again, held = send("ada@example.com"), send("bob@example.com", on_doubt="hold")

    assert {one.status for one in outbox.drain()} == {Status.DOUBTFUL}
    for _ in range(3):
        outbox.drain(after=HOUR)

    assert [one.status for one in mailer.status(again)] == [Status.SENT]
    assert [one.status for one in mailer.status(held)] == [Status.DOUBTFUL]
    recipients = [received.recipients[0] for received in relay.mails]
    assert sorted(recipients) == ["ada@example.com", "ada@example.com", "bob@example.com"]


def test_the_script_ends(outbox: Outbox, relay: FakeRelay) -> None:
    """After `behave()`, each mail is accepted."""
    relay.refuse()
    relay.behave()
    send()

    assert only(outbox.drain())[0] == Status.SENT


def test_delivery_in_the_request(app: Flask, outbox: Outbox, relay: FakeRelay) -> None:
    """`Mail(app, when="now")` sends over the fake relay before the call returns."""
    relay.refuse("eve@example.com")
    mail = Mail(app, when="now")
    receipts = [
        mail.send(flask_mail.Message("Hello", [f"{name}@example.com"], "Hello"))
        for name in ("ada", "eve")
    ]

    assert [one.status for receipt in receipts for one in mailer.status(receipt)] == [
        Status.SENT,
        Status.FAILED,
    ]
    assert len(relay.mails) == len(outbox) == 1


def test_after_the_block(app: Flask, outbox: Outbox) -> None:
    """After the block, mail goes to nobody again, and the relay is gone."""
    with FakeRelay() as relay:  # of the current app
        send()
        outbox.drain()
    send()

    assert (len(relay.mails), len(outbox)) == (1, 2)


def test_a_relay_alone() -> None:
    """Without an app, the relay is a server whose address an app can be given."""
    with FakeRelay() as relay:
        app = create_shop(
            {
                "MAIL_SERVER": relay.host,
                "MAIL_PORT": relay.port,
                "MAIL_DEFAULT_SENDER": "shop@example.com",
                "MAILER_DATABASE_URL": "sqlite://",
            }
        )
        with app.app_context(), Outbox(app) as outbox:
            send()
            assert only(outbox.drain())[0] == Status.SENT
        app.extensions["mailer"].outbound.dispatcher.hang_up()
        close(app)

    assert (len(relay.mails), relay.connections) == (1, 1)


def test_scripts_that_make_no_sense() -> None:
    """A code of the other kind, and a recipient at a stage without one, are refused."""
    relay = FakeRelay()

    with pytest.raises(ValueError, match="from 500 to 599"):
        relay.refuse(code=450)
    with pytest.raises(ValueError, match="from 400 to 499"):
        relay.defer(code=550)
    with pytest.raises(ValueError, match="rcpt, data, dot"):
        relay.drop("ada@example.com", at="connect")
