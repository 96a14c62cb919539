"""Mail that is delivered in the calling thread: the mail of the call, and no other."""

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import flask_mail
import pytest
from flask import Flask
from sqlalchemy import Engine, create_engine
from sqlalchemy.orm import Session

from mailer import Mailer, Receipt, Status
from mailer.mime import WireMessage
from mailer.signals import mail_queued, mail_sent
from tests.shop import OpenShop

mailer = Mailer()


@pytest.fixture
def waiting(open_shop: OpenShop) -> tuple[Flask, Receipt]:
    """Queue a mail in the database, as production did, and return its application."""
    production = open_shop()
    with production.app_context():
        return production, send("production")


@pytest.fixture
def tested(waiting: object, open_shop: OpenShop) -> Iterator[Flask]:
    """Enter the context of an application under test, with the same database."""
    app = open_shop(TESTING=True)
    with app.app_context():
        yield app


@pytest.fixture
def engine(config: dict[str, str]) -> Iterator[Engine]:
    """Yield the application's own engine."""
    engine = create_engine(
        config["MAILER_DATABASE_URL"].replace("postgresql:", "postgresql+psycopg:")
    )
    yield engine
    engine.dispose()


@pytest.fixture
def dispatched() -> Iterator[Counter[str]]:
    """Yield how often each mail was handed to Flask-Mail's recorders, by subject."""
    count: Counter[str] = Counter()

    def note(app: Flask, message: WireMessage) -> None:
        count[message.subject] += 1

    with flask_mail.email_dispatched.connected_to(note):
        yield count


def send(subject: str, **options: Any) -> Receipt:
    return mailer.enqueue(flask_mail.Message(subject, ["ada@example.com"], "Hello"), **options)


def state(receipt: Receipt) -> Status:
    [delivery] = mailer.status(receipt)
    return delivery.status


def test_a_test_leaves_other_mail_alone(tested: Flask, waiting: tuple[Flask, Receipt]) -> None:
    """An application under test settles its own mail, and none that waits in its database."""
    receipt = send("test")

    assert state(receipt) == Status.SENT
    assert state(waiting[1]) == Status.QUEUED


def test_recipients_of_one_mail(tested: Flask, waiting: tuple[Flask, Receipt]) -> None:
    """All recipients of a mail are settled, in batches if they are many."""
    message = flask_mail.Message("News", body="Hello")
    for number in range(500):
        message.add_recipient(f"reader{number}@example.com")
    receipt = mailer.enqueue(message)

    assert Counter(one.status for one in mailer.status(receipt)) == {Status.SENT: 500}
    assert state(waiting[1]) == Status.QUEUED


def test_mail_that_is_due_later_stays(
    tested: Flask, waiting: tuple[Flask, Receipt], dispatched: Counter[str]
) -> None:
    """A scheduled mail stays queued, also when another mail is sent."""
    scheduled = send("later", send_at=timedelta(hours=1))
    send("now")

    assert state(scheduled) == Status.QUEUED
    assert dispatched == {"now": 1}


def test_mail_of_a_paused_lane_stays(tested: Flask) -> None:
    """A pause by hand holds mail back that would be delivered in the calling thread."""
    mailer.pause("bulk")
    held, free = send("held", lane="bulk"), send("free")

    assert (state(held), state(free)) == (Status.QUEUED, Status.SENT)


def test_a_repeated_call_delivers_nothing(tested: Flask, dispatched: Counter[str]) -> None:
    """A call with the idempotency key of an earlier one delivers nothing."""
    send("once", idempotency_key="order-1")
    again = send("once", idempotency_key="order-1")

    assert not again.is_new
    assert dispatched == {"once": 1}


def test_a_commit_delivers_its_mails(
    tested: Flask, waiting: tuple[Flask, Receipt], engine: Engine, dispatched: Counter[str]
) -> None:
    """Mail in the caller's transaction is delivered after the commit; rolled back, never."""
    with Session(engine) as session:
        send("rolled back", connection=session)
        session.rollback()
        first, second = (send(subject, connection=session) for subject in ("first", "second"))
        assert not dispatched
        session.commit()

    assert [state(first), state(second)] == [Status.SENT, Status.SENT]
    assert dispatched == {"first": 1, "second": 1}
    assert state(waiting[1]) == Status.QUEUED


def test_threads_deliver_their_own(tested: Flask, dispatched: Counter[str]) -> None:
    """Several threads at once deliver each mail once, and return when theirs is delivered."""

    def work(number: int) -> Status:
        with tested.app_context():
            return state(send(f"mail {number}"))

    with ThreadPoolExecutor(8) as threads:
        states = set(threads.map(work, range(40)))

    assert states == {Status.SENT}
    assert dispatched == {f"mail {number}": 1 for number in range(40)}


def test_a_receiver_that_queues_mail(
    tested: Flask, waiting: tuple[Flask, Receipt], dispatched: Counter[str]
) -> None:
    """Mail that receivers of signals queue is delivered by the same call, after its own mail."""
    receipts: list[Receipt] = []

    def reply(app: Flask, message: WireMessage) -> None:
        if message.subject == "first":
            receipts.append(send("out of email_dispatched"))
            assert state(receipts[0]) == Status.QUEUED

    def confirm(app: Flask, event: Any) -> None:
        if event.mail_id == first_id[0]:
            receipts.append(send("out of mail_sent"))

    def announce(app: Flask, event: Any) -> None:
        if not first_id:
            first_id.append(event.mail_id)
            receipts.append(send("out of mail_queued"))

    first_id: list[str] = []
    with (
        flask_mail.email_dispatched.connected_to(reply),
        mail_sent.connected_to(confirm),
        mail_queued.connected_to(announce),
    ):
        receipts.append(send("first"))

    assert {state(receipt) for receipt in receipts} == {Status.SENT}
    assert len(receipts) == 4
    assert set(dispatched.values()) == {1}
    assert state(waiting[1]) == Status.QUEUED


def test_the_sweep_of_a_worker_delivers_all(
    tested: Flask, waiting: tuple[Flask, Receipt], dispatched: Counter[str]
) -> None:
    """A worker with MAIL_SUPPRESS_SEND, as on a staging system, settles all mail."""
    tested.extensions["mailer"].outbound.maintenance.sweep()

    assert state(waiting[1]) == Status.SENT
    assert dispatched == {"production": 1}
