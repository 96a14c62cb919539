"""An application that used Flask-Mail keeps its calls, its mails and its own tests."""

import logging
from collections.abc import Iterator
from email import message_from_bytes, policy
from email.message import EmailMessage
from email.utils import parseaddr
from typing import Any

import flask_mail
import pytest
from flask import Flask, current_app
from flask_mail import Attachment, Message

from mailer import InvalidMail, Mail, Mailer, Status
from mailer.mime import WireMessage
from tests.services.sink import Sink
from tests.shop import close, store_of


def create_app(**config: Any) -> Flask:
    """Return an application under test, for which no server is there."""
    app = Flask("app")
    app.config.update(
        TESTING=True, MAILER_DATABASE_URL="sqlite://", MAILER_REDIS_URL="redis://127.0.0.1:1/0"
    )
    app.config.update(MAIL_DEFAULT_SENDER="Ada <ada@example.com>", **config)
    return app


@pytest.fixture
def app() -> Iterator[Flask]:
    app = create_app()
    Mail(app)
    with app.app_context():
        yield app
    close(app)


@pytest.fixture
def mail(app: Flask) -> Mail:
    """Return a `Mail` that was made without the app, as in the factory pattern."""
    mail = Mail()
    mail.init_app(app)
    return mail


def queued(app: Flask) -> int:
    """Return the number of deliveries that were ever accepted."""
    return sum(count for _status, _lane, count, _due in store_of(app).counts())


# --- content ------------------------------------------------------------------------------------

REPORT = Attachment("report.pdf", "application/pdf", b"%PDF", headers={"X-Origin": "tests"})
# As bytes, since Flask-Mail encodes a str as Latin-1.
NOTES = Attachment("Größe.txt", "text/plain", "Größe: 漢字\n".encode())
LOGO = Attachment("logo.png", "image/png", b"PNG", "inline", {"Content-ID": "<logo>"})


@pytest.mark.parametrize(
    "said",
    [
        {"body": "Hello"},
        {"body": "Grüße, привет, 漢字 😀\n.\n\nEnd", "subject": "Grüße, привет, 漢字 😀"},
        {"html": "<p>Hello</p>"},
        {"alts": {"html": "<p>Hello</p>", "calendar": "BEGIN:VCALENDAR"}},
        {"alts": [("x-amp-html", "<html amp4email>")]},
        {"sender": "eve@example.com"},
        {"sender": ("Eve Müller", "eve@example.com")},
        {"sender": '"Müller, Eve" <eve@example.com>'},
        {
            "recipients": [
                "eve@example.com",
                "Eve <eve2@example.com>",
                ("Eve Müller", "eve3@example.com"),
            ]
        },
        {"cc": ["eve@example.com", ("Eve", "eve2@example.com")]},
        {"bcc": ["eve@example.com"]},
        {"reply_to": "Eve <eve@example.com>"},
        {
            "extra_headers": {
                "X-Campaign": "november",
                "List-Unsubscribe": "<https://example.com/u?a=b>",
            }
        },
        {"date": 1_000_000_000.0},
        {"charset": "iso-8859-1", "body": "Größe"},
        {"attachments": [REPORT]},
        {"attachments": [NOTES, REPORT], "html": "<p>Hello</p>"},
        {"attachments": [LOGO], "html": "<img src='cid:logo'>"},
    ],
    ids=",".join,
)
def test_a_mail_says_what_it_said_before(mail: Mail, said: dict[str, Any]) -> None:
    """Each feature of Flask-Mail gives the same content to the same recipients."""
    message = Message(
        **{
            "subject": "Hello",
            "recipients": ["bob@example.com"],
            "body": "Hello",
            "date": 1.0,
            **said,
        }
    )

    with mail.record_messages() as outbox:
        mail.send(message)

    assert {email for sent in outbox for email in emails(sent)} == emails(message)
    assert [what_is_read(sent) for sent in outbox] == [what_is_read(message)] * len(outbox)


def emails(message: Message) -> set[str]:
    """Return the envelope recipients as Flask-Mail works them out."""
    return {parseaddr(one)[1] for one in flask_mail.sanitize_addresses(message.send_to)}


def what_is_read(message: Message) -> dict[str, Any]:
    """Return the content of a mail, whatever its encoding."""
    mail = message_from_bytes(message.as_bytes(), policy=policy.default)
    people = {
        name: {str(one) for one in mail[name].addresses}
        for name in ("From", "To", "Cc", "Reply-To")
        if name in mail
    }
    spoken = {
        name: value
        for name, value in mail.items()
        if name not in people and not name.startswith(("MIME-", "Content-"))
    }
    spoken["Date"] = mail["Date"].datetime.timestamp()
    return {**people, **spoken, "parts": sorted(map(part_that_is_read, leaves(mail)))}


def leaves(mail: EmailMessage) -> list[EmailMessage]:
    return [part for part in mail.walk() if not part.is_multipart()]


def part_that_is_read(part: EmailMessage) -> tuple[str, ...]:
    content = part.get_payload(decode=True)
    assert isinstance(content, bytes)
    text = content.decode(part.get_content_charset("latin-1")).replace("\r\n", "\n").rstrip("\n")
    named = [str(part[name]) for name in ("Content-ID", "X-Origin")]
    return (
        part.get_content_type(),
        str(part.get_content_disposition()),
        str(part.get_filename()),
        text,
        *named,
    )


def test_what_is_for_the_relay_only(mail: Mail) -> None:
    """SMTP options and the sender of the envelope are kept."""
    message = Message(
        "Hello", ["bob@example.com"], mail_options=["RET=HDRS"], rcpt_options=["NOTIFY=NEVER"]
    )

    with mail.record_messages() as outbox, mail.connect() as connection:
        connection.send(message, envelope_from="bounces@example.com")

    [sent] = outbox
    assert isinstance(sent, WireMessage)
    assert (sent.mail_options, sent.rcpt_options) == (["RET=HDRS"], ["NOTIFY=NEVER"])
    assert sent.envelope_from == "bounces@example.com"


# --- ways of sending ----------------------------------------------------------------------------


def test_every_way_of_sending_queues(app: Flask, mail: Mail) -> None:
    """Every way of sending queues the mail."""
    message = Message("Hello", ["bob@example.com"])

    mail.send(message)
    mail.send_message("Hello", ["bob@example.com"])
    with mail.connect() as connection:
        connection.send(message)
        connection.send_message("Hello", ["bob@example.com"])
        message.send(connection)

    assert queued(app) == 5


@pytest.fixture
def waiting_app(redis_url: str, sink: Sink) -> Iterator[Flask]:
    """Yield an app in production, whose mail waits unless it goes past the queue to the sink."""
    app = create_app(
        MAIL_SUPPRESS_SEND=False,
        MAILER_REDIS_URL=redis_url,
        MAIL_PORT=sink.port,
        MAIL_ASCII_ATTACHMENTS=True,
    )
    Mailer(app)
    yield app
    close(app)


def test_what_other_extensions_send_is_queued(waiting_app: Flask, sink: Sink) -> None:
    """Mail sent through `app.extensions["mail"]`, as Flask-Security does, is queued."""
    with waiting_app.app_context():
        # As in flask_security/mail_util.py
        msg = Message("Welcome", sender=("Ada", "ada@example.com"), recipients=["bob@example.com"])
        msg.body, msg.html = "Hello", "<p>Hello</p>"
        mail: Any = current_app.extensions.get("mail")
        assert mail
        mail.send(msg)

        mail.send_message("Hello", ["bob@example.com"])
        with mail.connect() as connection:
            connection.send(msg)
            connection.send_message("Hello", ["bob@example.com"])
            msg.send(connection)
            assert connection.num_emails == 3

    assert queued(waiting_app) == 5
    assert sink.connections == 0


def test_the_state_in_the_extensions_is_flask_mails(waiting_app: Flask, sink: Sink) -> None:
    """`app.extensions["mail"]` has Flask-Mail's attributes with the values that Mailer checked."""
    state = waiting_app.extensions["mail"]

    assert isinstance(state, flask_mail._Mail)
    assert vars(state).keys() >= vars(flask_mail.Mail().init_mail({})).keys()
    assert (state.server, state.port, state.suppress, state.ascii_attachments) == (
        "127.0.0.1",
        sink.port,
        False,
        True,
    )
    assert state.default_sender == "Ada <ada@example.com>"
    assert Mail(waiting_app).state is state


def test_the_state_records_messages(app: Flask) -> None:
    """`app.extensions["mail"]` has `record_messages`, as a `Mail` does."""
    with app.extensions["mail"].record_messages() as outbox:
        app.extensions["mail"].send_message("Hello", ["bob@example.com"])

    assert [message.subject for message in outbox] == ["Hello"]


def test_a_plain_flask_mail_beside_it(
    waiting_app: Flask, sink: Sink, caplog: pytest.LogCaptureFixture
) -> None:
    """Flask-Mail set up after Mailer does not replace the queue, and a warning is logged."""
    flask_mail.Mail(waiting_app)
    with waiting_app.app_context():
        current_app.extensions["mail"].send(Message("Hello", ["bob@example.com"]))
    with waiting_app.app_context():
        assert queued(waiting_app) == 1

    assert sink.connections == 0
    assert caplog.text.count("flask_mail.Mail was set up after Mailer") == 1


def test_a_plain_flask_mail_before_it(caplog: pytest.LogCaptureFixture) -> None:
    """Flask-Mail set up before Mailer sends past the queue, and a warning is logged."""
    app = create_app()
    flask_mail.Mail(app)
    Mailer(app)

    assert "flask_mail.Mail was set up before Mailer" in caplog.text


def test_what_a_test_puts_in_its_place_stays(app: Flask) -> None:
    """An object that a test puts into `app.extensions["mail"]` stays there."""
    app.extensions["mail"] = own = object()
    with app.app_context():
        assert app.extensions["mail"] is own


def test_the_drop_in_uses_the_mailer_that_is_there(app: Flask, mail: Mail) -> None:
    """All `Mail` and `Mailer` objects of an app share one queue."""
    mail.send_message("Hello", ["bob@example.com"])
    Mailer().enqueue(Message("Hello", ["bob@example.com"]))

    assert queued(app) == 2


def test_what_flask_mail_refuses_is_refused(app: Flask, mail: Mail) -> None:
    """A line break in a header, or no recipient, is refused and nothing is queued."""
    for message in (
        Message("Hello\nBcc: eve@example.com", ["bob@example.com"]),
        Message("Hello", ["bob@example.com\nBcc: eve@example.com"]),
        Message("Hello", ["bob@example.com"], extra_headers={"X-Tag": "1\r\nBcc: eve@example.com"}),
        Message("Hello", []),
    ):
        with pytest.raises(InvalidMail):
            mail.send(message)

    assert queued(app) == 0


# --- the application's own tests ----------------------------------------------------------------


def test_recorded_messages(mail: Mail) -> None:
    """Recorded messages have the values that the application gave."""
    with mail.record_messages() as outbox:
        mail.send_message(
            "Welcome",
            recipients=["bob@example.com"],
            body="Hello Bob",
            html="<p>Hello Bob</p>",
            cc=["Eve <eve@example.com>"],
            reply_to="Help <help@example.com>",
            extra_headers={"X-Tag": "1"},
            attachments=[REPORT],
        )

    sent = outbox[0]
    assert (sent.subject, sent.sender, sent.recipients) == (
        "Welcome",
        "Ada <ada@example.com>",
        ["bob@example.com"],
    )
    assert (sent.body, sent.html) == ("Hello Bob", "<p>Hello Bob</p>")
    assert (sent.cc, sent.reply_to, sent.extra_headers) == (
        ["Eve <eve@example.com>"],
        "Help <help@example.com>",
        {"X-Tag": "1"},
    )
    assert [(one.filename, one.data) for one in sent.attachments] == [("report.pdf", b"%PDF")]


def test_each_recipient_is_a_message_of_its_own(mail: Mail) -> None:
    """Unlike with Flask-Mail, a copy is sent and signalled for each recipient."""
    with mail.record_messages() as outbox:
        mail.send_message("Hello", ["bob@example.com", "eve@example.com"], bcc=["joe@example.com"])

    assert [sent.send_to for sent in outbox] == [
        {"bob@example.com"},
        {"eve@example.com"},
        {"joe@example.com"},
    ]
    assert len({sent.msgId for sent in outbox}) == 1


def test_the_signal(app: Flask, mail: Mail) -> None:
    """`email_dispatched` is sent with the app as its sender."""
    heard = []

    def hear(sender: Flask, message: Message) -> None:
        heard.append((sender, message.subject))

    with flask_mail.email_dispatched.connected_to(hear, sender=app):
        mail.send_message("Hello", ["bob@example.com"])

    assert heard == [(app, "Hello")]


def test_a_test_needs_no_server_and_no_worker(app: Flask, caplog: pytest.LogCaptureFixture) -> None:
    """With TESTING, mail goes to nobody at once, without a warning about a missing broker."""
    with caplog.at_level(logging.WARNING):
        receipt = Mailer().enqueue(Message("Hello", ["bob@example.com"]))

    [delivery] = Mailer().status(receipt.id)
    assert (delivery.status, delivery.reply) == (Status.SENT, "250 delivered to nobody")
    assert caplog.records == []


def test_a_receiver_that_sends_another_mail(app: Flask, mail: Mail) -> None:
    """A mail sent by a receiver of the signal is delivered after the present one."""
    order: list[str] = []

    def hear(sender: Flask, message: Message) -> None:
        if message.subject == "first":
            mail.send_message("second", ["bob@example.com"])
        order.append(message.subject)

    with flask_mail.email_dispatched.connected_to(hear):
        mail.send_message("first", ["bob@example.com"])

    assert order == ["first", "second"]


def test_sending_can_be_suppressed_without_testing(sink: Sink) -> None:
    """MAIL_SUPPRESS_SEND without TESTING delivers to nobody, as on a staging system."""
    app = create_app(TESTING=False, MAIL_SUPPRESS_SEND=True, MAIL_PORT=sink.port)
    mail = Mail(app)

    with app.app_context(), mail.record_messages() as outbox:
        mail.send_message("Hello", ["bob@example.com"])

    assert (len(outbox), sink.connections) == (1, 0)
    close(app)


def test_a_test_can_have_the_queue_as_it_is(redis_url: str) -> None:
    """With MAIL_SUPPRESS_SEND=False, mail waits for a worker even under TESTING."""
    app = create_app(MAIL_SUPPRESS_SEND=False, MAILER_REDIS_URL=redis_url)
    Mail(app)

    with app.app_context():
        receipt = Mailer().enqueue(Message("Hello", ["bob@example.com"]))
        assert [one.status for one in Mailer().status(receipt.id)] == [Status.QUEUED]
    close(app)
