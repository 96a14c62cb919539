"""The test kit, as an application's tests use it: the outbox, its assertions, and `drain()`."""

import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import flask_mail
import pytest
from flask import Flask
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from mailer import (
    Attachment,
    ConfigurationError,
    Lane,
    Mail,
    Mailer,
    Receipt,
    Status,
    TemplateError,
)
from mailer.signals import mail_sent
from mailer.testing import Criteria, Outbox
from tests.shop import OpenShop, close, create_shop

HOUR = timedelta(hours=1)

mailer = Mailer()


@pytest.fixture
def app(tmp_path: Path) -> Iterator[Flask]:
    """Enter the context of an application under test."""
    app = create_shop({"TESTING": True, "MAIL_DEFAULT_SENDER": "Shop <shop@example.com>"})
    app.instance_path = str(tmp_path / "instance")
    with app.app_context():
        yield app
    assert not Path(app.instance_path).exists()
    close(app)


@pytest.fixture
def outbox(app: Flask) -> Iterator[Outbox]:
    with Outbox(app) as outbox:
        yield outbox


def welcome(to: Any = "ada@example.com", subject: str = "Welcome", **options: Any) -> Receipt:
    return mailer.send_email(to, subject, "welcome", **{"name": "Ada", **options})


def failure_of(outbox: Outbox, **criteria: Any) -> str:
    """Return the text of the failure of an assertion."""
    with pytest.raises(AssertionError) as failed:
        outbox.assert_sent(**criteria)
    return str(failed.value)


# --- what is recorded ---------------------------------------------------------------------------


def test_all_that_a_call_said(outbox: Outbox) -> None:
    """A recorded mail has all arguments of the call, and what was made of them."""
    receipt = welcome(
        ["Ada <ada@example.com>", "bob@example.com"],
        cc="cy@example.com",
        bcc=["di@example.com", "ada@example.com"],
        reply_to="shop@example.com",
        sender="Eve <eve@example.com>",
        attachments=[Attachment("terms.pdf", b"%PDF")],
        headers={"X-Campaign": "november"},
        lane="bulk",
        tags=["eu"],
        metadata={"order": "42"},
        expires_at=HOUR,
        sensitive=True,
        context={"subject": "of the template"},
    )

    [mail] = outbox
    assert (mail.id, mail.message_id) == (receipt.id, receipt.message_id)
    assert mail.to == ['"Ada" <ada@example.com>', "bob@example.com"]
    assert (mail.cc, mail.bcc) == (["cy@example.com"], ["di@example.com"])
    assert mail.recipients == [*receipt.recipients]
    assert (mail.sender, mail.reply_to) == ('"Eve" <eve@example.com>', ["shop@example.com"])
    assert (mail.subject, mail.text) == ("Welcome", "Welcome, Ada!")
    assert mail.html is not None
    assert "Welcome, Ada!" in mail.html
    assert [(one.filename, one.data) for one in mail.attachments] == [("terms.pdf", b"%PDF")]
    assert (mail.headers, mail.lane) == ({"X-Campaign": "november"}, Lane.BULK)
    assert (mail.tags, mail.metadata, mail.sensitive) == (("eu",), {"order": "42"}, True)
    assert mail.template == "welcome"
    assert mail.context == {"name": "Ada", "subject": "of the template"}
    assert mail.expires_at is not None
    assert timedelta(0) < mail.expires_at - mail.send_at <= HOUR
    assert mail.is_sent
    assert {delivery.status for delivery in mail.status} == {Status.SENT}


def test_messages_of_flask_mail(app: Flask, outbox: Outbox) -> None:
    """Messages of Flask-Mail, also with `when="now"`, and texts are recorded without a template."""
    Mail(app).send(flask_mail.Message("first", ["ada@example.com"], "Hello"))
    Mail(app, when="now").send(flask_mail.Message("second", ["ada@example.com"], "Hello"))

    mailer.send_email("ada@example.com", "third", text="Hello", html="<p>Hello</p>")

    assert [(mail.subject, mail.template, mail.context) for mail in outbox] == [
        ("first", None, {}),
        ("second", None, {}),
        ("third", None, {}),
    ]


def test_recorders_of_flask_mail_see_the_same(app: Flask, outbox: Outbox) -> None:
    """`record_messages()` of Flask-Mail goes on working beside the outbox."""
    with Mail(app).record_messages() as recorded:
        welcome()

    assert [message.subject for message in recorded] == [mail.subject for mail in outbox]


def test_refused_and_repeated_calls_are_not_recorded(outbox: Outbox) -> None:
    """A call that raises is not recorded, nor one with an idempotency key that is taken."""
    with pytest.raises(TemplateError):
        mailer.send_email("ada@example.com", "Broken", "broken")
    for _ in range(2):
        welcome(idempotency_key="order-42")

    assert len(outbox) == 1


def test_a_transaction(app: Flask, outbox: Outbox, tmp_path: Path) -> None:
    """Mail in the application's transaction is recorded after its commit, and not before."""
    engine = create_engine(f"sqlite:///{tmp_path}/shop.sqlite3")
    with Session(engine) as session:
        welcome(subject="rolled back", connection=session)
        session.rollback()
        welcome(connection=session)
        assert outbox == []
        session.commit()
    engine.dispose()

    assert [mail.subject for mail in outbox] == ["Welcome"]
    assert outbox[0].context["name"] == "Ada"


def test_only_in_the_block(app: Flask) -> None:
    """Mail before and after the `with` block is not recorded, and the app is as before."""
    intake = app.extensions["mailer"].intake
    before = intake.bell
    welcome(subject="before")
    with Outbox(app) as outer:
        welcome(subject="outer")
        with Outbox(app) as inner:
            welcome(subject="both")
    welcome(subject="after")

    assert [mail.subject for mail in inner] == ["both"]
    assert [mail.subject for mail in outer] == ["outer", "both"]
    assert (intake.recorder, intake.bell) == (None, before)


def test_a_second_block(app: Flask, outbox: Outbox) -> None:
    """An outbox serves one block at a time: the end of a second one would end the first."""
    with pytest.raises(RuntimeError, match="in use already"), outbox:
        pass
    again = Outbox(app)
    for _ in range(2):
        with again:
            pass
    welcome()

    assert len(outbox) == 1


def test_a_list(outbox: Outbox) -> None:
    """The outbox is like a list, and its errors say what is in it."""
    assert outbox == []
    assert not outbox
    for name in ("first", "second", "third"):
        welcome(subject=name)

    assert [mail.subject for mail in outbox] == ["first", "second", "third"]
    assert outbox[-1].subject == "third"
    assert [mail.subject for mail in outbox[:2]] == ["first", "second"]
    assert "ada@example.com: 'first'" in repr(outbox)
    with pytest.raises(IndexError, match="3 mails were sent"):
        outbox[3]


def test_an_app_without_mailer() -> None:
    """The error of an app without Mailer says how to set it up."""
    with pytest.raises(ConfigurationError, match="init_app"):
        Outbox(Flask("tests"))


def test_testing_that_was_set_too_late(open_shop: OpenShop) -> None:
    """An app that became one under test after Mailer was set up is refused, with the remedy."""
    app = open_shop()
    app.config["TESTING"] = True

    with pytest.raises(ConfigurationError, match=r"TESTING was set after Mailer\(app\).*before"):
        Outbox(app)
    app.config["MAIL_SUPPRESS_SEND"] = True
    with pytest.raises(ConfigurationError, match="MAIL_SUPPRESS_SEND was set after"):
        Outbox(app)
    app.config["MAIL_SUPPRESS_SEND"] = False
    Outbox(app)


def test_the_clock_is_set_back(app: Flask) -> None:
    """After the block, the clock of the app is as before: an app may serve many tests."""
    with Outbox(app) as outer:
        outer.drain(after=HOUR)
        with Outbox(app) as inner:
            welcome(send_at=HOUR)
            assert inner.drain() == []
            inner.drain(after=HOUR)
        welcome(send_at=HOUR)
        assert outer.drain() == []

    assert app.extensions["mailer"].clock.ahead == 0


# --- assertions ---------------------------------------------------------------------------------

MET: list[Criteria] = [
    {},
    {"to": "ada@example.com"},
    {"to": ["BOB@example.com", "Ada <ada@example.com>"]},
    {"cc": "cy@example.com", "bcc": ("", "di@example.com")},
    {"reply_to": "shop@example.com", "sender": "shop@example.com"},
    {"subject": "Welcome to the shop", "template": "welcome"},
    {"subject": re.compile("^welcome", re.IGNORECASE)},
    {"text": "Welcome, A", "html": re.compile("W.*e")},
    {"context": {"name": "Ada"}},
    {"headers": {"x-campaign": "november"}},
    {"headers": {"X-Campaign": re.compile("^nov")}},
    {"attachments": "terms.pdf"},
    {"attachments": ["terms.pdf", "logo.png"]},
    {"lane": "bulk", "tags": "eu"},
    {"lane": Lane.BULK, "tags": ["eu", "new"], "metadata": {"order": "42"}},
]
#: A criterion that is not met, and what the failure says about the nearest mail.
MISSED: list[tuple[Criteria, str]] = [
    ({"to": "eve@example.com"}, "to is ['ada@example.com', 'bob@example.com'], not 'eve@"),
    ({"to": ["ada@example.com", "eve@example.com"]}, "to is ["),
    ({"sender": "eve@example.com"}, "sender is '\"Shop\" <shop@example.com>', not 'eve@"),
    ({"subject": "Welcome"}, "subject is 'Welcome to the shop', not 'Welcome'"),
    ({"subject": re.compile("^shop")}, "subject is 'Welcome to the shop', not re.compile('^shop')"),
    ({"text": "Goodbye"}, "text does not contain 'Goodbye': 'Welcome, Ada!'"),
    ({"html": "Goodbye"}, "html does not contain 'Goodbye': "),
    ({"template": "order"}, "template is 'welcome', not 'order'"),
    ({"context": {"name": "Bob"}}, "context['name'] is 'Ada', not 'Bob'"),
    ({"context": {"Name": "Ada", "age": 36}}, "context has no 'Name', context has no 'age'"),
    ({"headers": {"X-Other": "november"}}, "headers has no 'x-other'"),
    ({"attachments": "invoice.pdf"}, "attachments is ['terms.pdf', 'logo.png'], not 'invoice.pdf'"),
    ({"lane": "critical"}, "lane is 'bulk', not 'critical'"),
    ({"tags": ["eu", "us"]}, "tags is ['eu', 'new'], not ['eu', 'us']"),
    ({"metadata": {"order": "43"}}, "metadata['order'] is '42', not '43'"),
]


def send_one(**options: Any) -> Receipt:
    return welcome(
        ["ada@example.com", "bob@example.com"],
        "Welcome to the shop",
        cc="cy@example.com",
        bcc="di@example.com",
        reply_to="shop@example.com",
        attachments=[Attachment("terms.pdf", b"%PDF"), Attachment("logo.png", b"PNG")],
        headers={"X-Campaign": "november"},
        lane="bulk",
        tags=["eu", "new"],
        metadata={"order": "42"},
        **options,
    )


@pytest.mark.parametrize("criteria", MET, ids=str)
def test_criteria_that_are_met(outbox: Outbox, criteria: Criteria) -> None:
    """A mail that meets all criteria is returned, and `assert_not_sent()` fails and shows it."""
    send_one()

    assert outbox.assert_sent(times=1, **criteria) is outbox[0]
    with pytest.raises(AssertionError, match=r"1 mail was sent.*:\n  to ada@example.com, bob@"):
        outbox.assert_not_sent(**criteria)


@pytest.mark.parametrize(("criteria", "difference"), MISSED, ids=str)
def test_criteria_that_are_not_met(outbox: Outbox, criteria: Criteria, difference: str) -> None:
    """A failure lists what was sent, and says how the nearest mail differs."""
    send_one()

    said = failure_of(outbox, **criteria)

    outbox.assert_not_sent(**criteria)
    assert said.startswith("No mail was sent with ")
    assert "1 mail was sent:\n  outbox[0] to ada@example.com, bob@example.com cc cy@" in said
    assert f"The nearest is <RecordedMail to ada@example.com, bob@{''}" in said
    assert f": {difference}" in said


def test_the_nearest_of_several(outbox: Outbox) -> None:
    """Of several mails, the failure explains the one that meets the most criteria."""
    welcome("bob@example.com", "Welcome", name="Bob")
    welcome("ada@example.com", "Welcome", name="Bob")
    welcome("eve@example.com", "Goodbye")

    said = failure_of(
        outbox, to="ada@example.com", subject="Welcome", context={"name": "Ada"}, template="welcome"
    )

    assert said.endswith(
        "The nearest is <RecordedMail to ada@example.com: 'Welcome'>: context['name'] is 'Bob', not"
        " 'Ada'."
    )


def test_a_mail_that_waits_is_not_sent(outbox: Outbox) -> None:
    """A mail that is queued for later does not count as sent, and the failure says so."""
    welcome(send_at=HOUR)

    said = failure_of(outbox, to="ada@example.com")

    assert "No mail was sent.\nNot sent: to ada@example.com 'Welcome'" in said
    assert "(queued, due in 1:00:00)" in said or "(queued, due in 0:59:5" in said
    assert said.endswith("it was not sent.")
    outbox.assert_nothing_sent()


def test_the_number_of_mails(outbox: Outbox) -> None:
    """`times` is the exact number; without it, one or more will do."""
    outbox.assert_nothing_sent()
    assert failure_of(outbox) == "No mail was sent."
    welcome()
    welcome()

    outbox.assert_sent(to="ada@example.com", times=2)
    outbox.assert_sent(to="ada@example.com")
    assert failure_of(outbox, to="ada@example.com", times=1).startswith(
        "2 mails were sent with to='ada@example.com', not 1."
    )
    with pytest.raises(AssertionError, match="2 mails were sent"):
        outbox.assert_nothing_sent()
    with pytest.raises(ValueError, match="assert_not_sent"):
        outbox.assert_sent(to="bob@example.com", times=0)


def test_a_criterion_that_can_be_read_once(outbox: Outbox) -> None:
    """An iterator is compared with each mail, not only with the first."""
    welcome("bob@example.com", tags=["trial"])
    welcome("ada@example.com", tags=["invoice"])
    tags = ["invoice", "trial", "none"]

    assert outbox.assert_sent(tags=(tag for tag in tags[:1])).to == ["ada@example.com"]
    assert outbox.assert_sent(to=(to for to in ["ada@example.com"])).tags == ("invoice",)
    outbox.assert_not_sent(tags=(tag for tag in tags))


@pytest.mark.parametrize(
    ("name", "empty"),
    [(name, []) for name in ("to", "bcc", "tags", "attachments", "headers")]
    + [("text", ""), ("html", "")],
)
def test_a_criterion_that_asks_for_nothing(outbox: Outbox, name: str, empty: object) -> None:
    """An empty criterion would be met by each mail or by none, so it is an error."""
    criteria: dict[str, Any] = {name: empty}
    for assertion in (outbox.assert_sent, outbox.assert_not_sent):
        with pytest.raises(ValueError, match=f"{name}=.* asks for nothing"):
            assertion(**criteria)


def test_a_criterion_that_does_not_exist(outbox: Outbox) -> None:
    """A misspelled criterion is an error, also if nothing was sent."""
    for assertion in (outbox.assert_sent, outbox.assert_not_sent):
        with pytest.raises(TypeError, match="subjet: there is no such criterion"):
            assertion(subjet="Welcome")  # type: ignore[call-arg]


# --- drain --------------------------------------------------------------------------------------


def test_scheduled_mail(outbox: Outbox) -> None:
    """A scheduled mail is delivered when the clock of the app has come to its time."""
    welcome(send_at=2 * HOUR)

    assert outbox.drain() == outbox.drain(after=HOUR) == []
    assert [mail.subject for mail in outbox.queued] == ["Welcome"]
    [delivery] = outbox.drain(after=HOUR)

    assert (delivery.recipient, delivery.status) == ("ada@example.com", Status.SENT)
    assert (len(outbox), outbox.queued) == (1, [])
    assert outbox.drain() == []


def test_mail_that_is_queued_after_the_clock_was_put_forward(outbox: Outbox) -> None:
    """The clock of the whole app is ahead: a later schedule counts from there."""
    outbox.drain(after=HOUR)
    welcome(send_at=HOUR)

    assert outbox.drain() == []
    assert len(outbox.drain(after=HOUR)) == 1


def test_mail_that_expires(outbox: Outbox) -> None:
    """Mail that can't be sent in time expires."""
    mailer.pause()
    welcome(expires_at=HOUR)

    [delivery] = outbox.drain(after=HOUR)

    assert delivery.status == Status.EXPIRED
    assert failure_of(outbox, to="ada@example.com").endswith("it was not sent.")


def test_a_receiver_that_queues_mail(outbox: Outbox) -> None:
    """Mail that a receiver of a signal queues meanwhile is delivered by the same call."""

    def confirm(app: Flask, event: Any) -> None:
        if event.recipient == "ada@example.com":
            welcome("log@example.com")

    welcome(send_at=HOUR)
    with mail_sent.connected_to(confirm):
        drained = outbox.drain(after=HOUR)

    assert [one.recipient for one in drained] == ["ada@example.com", "log@example.com"]


def test_time_does_not_run_backwards(outbox: Outbox) -> None:
    """A negative time is refused."""
    with pytest.raises(ValueError, match="give 0 or more"):
        outbox.drain(after=-HOUR)


def test_mail_of_others_in_the_same_database(open_shop: OpenShop) -> None:
    """On a database that keeps mail, `drain()` neither sends nor expires the mail of others."""
    production = open_shop()
    with production.app_context():
        others = [welcome(), welcome(expires_at=HOUR), welcome(send_at=HOUR)]
    app = open_shop(TESTING=True)

    with app.app_context(), Outbox(app) as outbox:
        welcome(send_at=2 * HOUR)
        assert len(outbox.drain(after=3 * HOUR)) == 1
        states = [delivery.status for other in others for delivery in mailer.status(other)]

    assert states == [Status.QUEUED] * 3
    assert len(outbox) == 1


def test_no_broker_is_asked(open_shop: OpenShop, caplog: pytest.LogCaptureFixture) -> None:
    """With MAIL_SUPPRESS_SEND=False, mail waits for `drain()`, and no broker is asked."""
    app = open_shop(MAILER_REDIS_URL="redis://127.0.0.1:1/0")

    with app.app_context(), Outbox(app) as outbox:
        welcome()
        assert (len(outbox), len(outbox.queued)) == (0, 1)
        [delivery] = outbox.drain()
        assert delivery.status == Status.SENT
        app.extensions["mailer"].outbound.dispatcher.hang_up()

    assert "broker" not in caplog.text
