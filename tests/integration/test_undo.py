"""The undo window: mail that can surely be cancelled for some seconds."""

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta

import pytest
from flask import Flask
from flask_mail import Message

from mailer import InvalidMail, Mail, Mailer, Receipt
from mailer.logging import QueuedMailHandler
from mailer.testing import Outbox
from tests.bulk_calls import Row, some_rows
from tests.mails import claim
from tests.shop import OpenShop, close, create_shop, store_of

mailer = Mailer()


def send(**options: object) -> Receipt:
    return mailer.send_email("ada@example.com", "Hi", text="Hello", **options)  # type: ignore[arg-type]


def wait_of(receipt: Receipt) -> float:
    """Return the seconds between the call and the time at which the mail is due."""
    mail = mailer.status(receipt)
    [delivery] = mail
    assert delivery.due_at == receipt.due_at
    assert delivery.due_at is not None
    return round((delivery.due_at - mail.created_at).total_seconds(), 3)


@pytest.fixture
def shop(open_shop: OpenShop) -> Flask:
    return open_shop(MAILER_UNDO_SECONDS="30")


def test_mail_can_be_cancelled_in_the_window(shop: Flask) -> None:
    """No worker claims a mail in its window, and `cancel()` succeeds."""
    with shop.app_context():
        receipt = send()
        due_at = receipt.due_at
        assert due_at is not None
        seconds = due_at.timestamp()

        assert claim(store_of(shop), now=seconds - 0.001) == []
        assert mailer.cancel(receipt)
        assert claim(store_of(shop), now=seconds) == []


@pytest.mark.parametrize(
    ("options", "seconds"),
    [
        ({}, 30),
        ({"undo": 5}, 5),
        ({"undo": timedelta(minutes=1)}, 60),
        ({"undo": 0}, 0),
        ({"lane": "critical"}, 0),
        ({"lane": "critical", "undo": 5}, 5),
        ({"send_at": timedelta(seconds=20)}, 20),
        ({"send_at": timedelta(0)}, 0),
        ({"send_at": timedelta(seconds=20), "undo": 25}, 25),
        ({"send_at": timedelta(seconds=20), "undo": 5}, 20),
    ],
)
def test_how_long_it_lasts(shop: Flask, options: Mapping[str, object], seconds: float) -> None:
    """The call wins over the setting, which spares critical mail and mail with `send_at`."""
    with shop.app_context():
        assert wait_of(send(**options)) == seconds


def test_messages_of_flask_mail(shop: Flask) -> None:
    """`enqueue()` takes the argument, and `send()` goes by the setting."""
    with shop.app_context():
        message = Message("Hi", ["ada@example.com"], "Hello")
        mail = Mail(shop)

        assert wait_of(mailer.enqueue(message, undo=7)) == 7
        assert wait_of(mail.send(message)) == 30


def test_mail_that_is_delivered_by_the_call(shop: Flask) -> None:
    """With `when="now"`, nothing is left to undo when the call returns."""
    with shop.app_context():
        receipt = Mail(shop, when="now").send(Message("Hi", ["ada@example.com"], "Hello"))

        assert [str(one.status) for one in mailer.status(receipt)] == ["sent"]


def test_error_mails_do_not_wait(shop: Flask) -> None:
    """Nobody takes a log record back."""
    handler = QueuedMailHandler("admin@example.com", "Errors", app=shop)

    assert handler._options.undo == 0


@pytest.mark.parametrize("given", [-1, float("nan"), float("inf"), True, "5", timedelta(days=-1)])
def test_what_is_no_window(shop: Flask, given: object) -> None:
    """A window is seconds or a timedelta, and never negative."""
    with shop.app_context(), pytest.raises(InvalidMail, match=r"undo: .*: give seconds"):
        send(undo=given)


def test_mail_expires_after_its_window(shop: Flask) -> None:
    """A mail that would expire in its window is refused."""
    with shop.app_context(), pytest.raises(InvalidMail, match="would expire before it is due"):
        send(expires_at=timedelta(seconds=29))


def test_an_application_under_test() -> None:
    """With MAIL_SUPPRESS_SEND, the setting has no effect; after the argument, time is drained."""
    app = create_shop(
        {
            "TESTING": True,
            "MAILER_DATABASE_URL": "sqlite://",
            "MAIL_DEFAULT_SENDER": "shop@example.com",
            "MAILER_UNDO_SECONDS": 30,
        }
    )
    with app.app_context(), Outbox(app) as outbox:
        send()
        assert len(outbox) == 1
        send(undo=10)
        assert outbox.drain(after=timedelta(seconds=9)) == []
        outbox.drain(after=timedelta(seconds=1))
        assert len(outbox) == 2
        bulk = mailer.send_bulk("Hi", "only_text", some_rows(2))
        assert bulk.progress().sent == 2
    close(app)


# --- bulk sends ---------------------------------------------------------------------------------


def late_rows(shop: Flask) -> Iterator[Row]:
    """Yield rows, of which the last one takes a thousand seconds."""
    yield from some_rows(2)
    shop.extensions["mailer"].clock.ahead = 1000


def test_a_bulk_send_begins_after_the_window(shop: Flask) -> None:
    """Nothing of a bulk send is released in its window, and `cancel()` takes back all of it."""
    with shop.app_context():
        bulk = mailer.send_bulk("Hi", "only_text", some_rows(3))
        progress = bulk.progress()

        assert (progress.held, progress.queued) == (3, 0)
        assert progress.reason == "it waits for its time"
        assert progress.resumes_at is not None
        assert progress.resumes_at > datetime.now(UTC)
        assert bulk.cancel()
        mailer.send_bulk("Hi", "only_text", some_rows(3), undo=0)
        assert len(claim(store_of(shop), now=datetime.now(UTC).timestamp())) == 3


@pytest.mark.parametrize(("start", "is_late"), [("complete", True), ("streaming", False)])
def test_when_the_window_of_a_bulk_send_begins(shop: Flask, start: str, is_late: bool) -> None:
    """It begins when all recipients are stored, or with the call if the mail streams."""
    with shop.app_context():
        began = datetime.now(UTC).timestamp()
        bulk = mailer.send_bulk("Hi", "only_text", late_rows(shop), undo=20, start=start)
        starts_at = store_of(shop).load_bulk(bulk.id).starts_at

        assert (starts_at >= began + 1020) is is_late
