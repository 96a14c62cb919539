"""An application that used Flask-Mail keeps its calls, its mails and its own tests."""

import logging
import re
import subprocess
import sys
from collections import UserString
from collections.abc import Iterator
from email import message_from_bytes, policy
from email.message import EmailMessage
from email.utils import parseaddr
from typing import Any
from unittest import mock

import flask_mail
import pytest
from flask import Flask, current_app
from flask_mail import Attachment, Message
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mailer import ConfigurationError, InvalidHeader, Mail, Mailer, MailerError, Status
from mailer.mime import WireMessage
from tests.services.sink import Sink
from tests.shop import close, on_the_wire, store_of


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


def test_text_as_an_attachment(app: Flask, mail: Mail) -> None:
    """A str as the data of an attachment is encoded as UTF-8; Flask-Mail damages it."""
    text = Attachment("a.txt", "text/plain", "Größe: 漢字")
    receipt = mail.send_message("Hello", ["bob@example.com"], attachments=[text])

    [part] = on_the_wire(app, receipt).iter_attachments()
    assert part.get_payload(decode=True) == "Größe: 漢字".encode()


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
    """Every way of sending queues the mail, and those of a `Mail` return a receipt."""
    message = Message("Hello", ["bob@example.com"])
    state = app.extensions["mail"]

    receipts = [mail.send(message), mail.send_message("Hello", ["bob@example.com"])]
    receipts += [state.send(message), state.send_message("Hello", ["bob@example.com"])]
    with mail.connect() as connection:
        receipts += [connection.send(message)]
        receipts += [connection.send_message("Hello", ["bob@example.com"])]
        message.send(connection)

    assert queued(app) == 7
    assert [Mailer().status(one).subject for one in receipts] == ["Hello"] * 6


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


@pytest.mark.parametrize("is_first", [True, False])
def test_a_plain_flask_mail_beside_it(redis_url: str, sink: Sink, is_first: bool) -> None:
    """A `flask_mail.Mail` on the same app queues, whether it was set up before Mailer or after."""
    app = create_app(MAIL_SUPPRESS_SEND=False, MAILER_REDIS_URL=redis_url, MAIL_PORT=sink.port)
    plain = flask_mail.Mail()
    for extension in (plain, Mailer()) if is_first else (Mailer(), plain):
        extension.init_app(app)

    with app.app_context():
        plain.send(Message("Hello", ["bob@example.com"]))
        with plain.connect() as connection:
            connection.send_message("Hello", ["bob@example.com"])
        current_app.extensions["mail"].send(Message("Hello", ["bob@example.com"]))
        assert queued(app) == 3

    assert sink.connections == 0
    close(app)


def test_a_flask_mail_that_is_made_for_each_mail(waiting_app: Flask, sink: Sink) -> None:
    """A `flask_mail.Mail` made in a request queues, as Flask-AppBuilder makes one for each mail."""
    with waiting_app.test_request_context():
        for _ in range(2):
            mail = flask_mail.Mail(waiting_app)
            mail.send(Message("Hello", ["bob@example.com"]))
            waiting_app.extensions["mail"].send_message("Hello", ["bob@example.com"])
        assert queued(waiting_app) == 4

    with waiting_app.app_context():
        assert waiting_app.extensions["mail"] is waiting_app.extensions["mailer"].mail
    assert sink.connections == 0


def test_a_flask_mail_of_another_app(waiting_app: Flask, sink: Sink) -> None:
    """A `flask_mail.Mail` on an app without a Mailer sends at once, as ever."""
    other = Flask("other")
    other.config.update(MAIL_PORT=sink.port, MAIL_DEFAULT_SENDER="ada@example.com")
    mail = flask_mail.Mail(other)

    with other.app_context():
        mail.send(Message("Hello", ["bob@example.com"], "Hello"))
        assert len(sink.messages) == 1

    assert queued(waiting_app) == 0


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


@pytest.mark.parametrize("first", [Mail, Mailer])
def test_mail_and_mailer_in_any_order(first: type[Mail] | type[Mailer]) -> None:
    """`Mail(app)` and `Mailer(app)` share a queue in any order; a second Mailer is an error."""
    app = create_app()
    for extension in (first, Mailer if first is Mail else Mail, Mail):
        extension(app)
    queue = app.extensions["mailer"]
    with app.app_context():
        Mail(app).send_message("Hello", ["bob@example.com"])
        Mailer().enqueue(Message("Hello", ["bob@example.com"]))

    assert queued(app) == 2
    with pytest.raises(ConfigurationError, match=r"^This app has its Mailer already"):
        Mailer(app)
    assert app.extensions["mailer"] is queue
    close(app)


def test_a_host_of_the_application(app: Flask, mail: Mail) -> None:
    """A connection whose `host` the application has set, to a mock for example, sends to that."""
    message = Message("Hello", ["bob@example.com"], "Hello")
    with mail.connect() as connection, mock.patch.object(connection, "host") as host:
        receipt = connection.send(message, envelope_from="bounces@example.com")
        connection.send_message("Hello", ["bob@example.com"])

    host.sendmail.assert_any_call(
        "bounces@example.com", ["bob@example.com"], message.as_bytes(), [], []
    )
    assert (host.sendmail.call_count, connection.num_emails) == (2, 2)
    assert (receipt.id, receipt.message_id) == ("", message.msgId)
    assert queued(app) == 0


# --- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "raised"),
    [
        ({"subject": "Hello\nBcc: eve@example.com"}, flask_mail.BadHeaderError),
        ({"subject": "Hello\r\n"}, flask_mail.BadHeaderError),
        ({"sender": "Ada\n <ada@example.com>"}, flask_mail.BadHeaderError),
        ({"recipients": ["bob@example.com\nBcc: e@example.com"]}, flask_mail.BadHeaderError),
        ({"reply_to": "eve@example.com\r"}, flask_mail.BadHeaderError),
        ({"extra_headers": {"X-Tag": "1\r\nBcc: e@example.com"}}, flask_mail.BadHeaderError),
        ({"cc": ["eve@example.com\nBcc: e@example.com"]}, flask_mail.BadHeaderError),
        ({"bcc": ["eve@example.com\r\n"]}, flask_mail.BadHeaderError),
        ({"subject": "Hello\tBob"}, flask_mail.BadHeaderError),
        ({"recipients": ["Bob"]}, flask_mail.BadHeaderError),
        ({"recipients": []}, AssertionError),
        ({"sender": None}, AssertionError),
    ],
    ids=str,
)
def test_what_flask_mail_refuses_is_refused(
    app: Flask, mail: Mail, said: dict[str, Any], raised: type[Exception]
) -> None:
    """The errors are Flask-Mail's and Mailer's at once, also for what Flask-Mail sends damaged."""
    app.extensions["mail"].default_sender = None
    usual = {"subject": "Hello", "recipients": ["bob@example.com"], "sender": "ada@example.com"}
    message = Message(**{**usual, **said})

    with pytest.raises(raised) as error:
        mail.send(message)

    assert isinstance(error.value, MailerError)
    assert message.date is None
    assert queued(app) == 0


def test_errors_do_not_depend_on_assertions() -> None:
    """`python -O` removes assertions, and a missing sender or recipient is still refused."""
    code = """
import flask, mailer
app = flask.Flask("app")
app.config.update(TESTING=True, MAILER_DATABASE_URL="sqlite://")
mail = mailer.Mail(app)
with app.app_context():
    for said in ({"sender": "ada@example.com"}, {"recipients": ["bob@example.com"]}):
        try:
            mail.send(mailer.Message("Hello", **said))
        except AssertionError as error:
            print(type(error).__name__)
"""
    done = subprocess.run(
        [sys.executable, "-O", "-c", code], capture_output=True, text=True, check=True
    )

    assert done.stdout.split() == ["MissingRecipient", "MissingSender"]


#: Pieces of subjects: folds, and line breaks that fold nothing.
pieces = st.sampled_from(
    ["a", "b:", "é", " ", "\t", "\r\n", "\r\n ", "\r\n\t", "\r", "\n", "\u2003"]
)


@given(subject=st.lists(pieces, max_size=9).map("".join))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_folded_subject(app: Flask, mail: Mail, subject: str) -> None:
    """A subject that Flask-Mail takes is sent as one line, and one that it refuses is refused."""
    message = Message(subject, ["bob@example.com"])
    unfolded = re.sub(r"[ \t]*\r\n[ \t]+", " ", subject)
    if message.has_bad_headers():
        with pytest.raises(flask_mail.BadHeaderError):
            mail.send(message)
    elif "\t" in unfolded:
        with pytest.raises(InvalidHeader, match=r"^subject: it contains '\\t'"):
            mail.send(message)
    else:
        receipt = mail.send(message)
        assert Mailer().status(receipt).subject == unfolded
        assert message.subject == subject


def test_a_folded_subject_arrives_on_one_line(app: Flask, mail: Mail) -> None:
    """Lines are joined with one blank each, as mail readers show them."""
    receipt = mail.send_message("Your order\r\n of November \r\n \tis sent", ["bob@example.com"])

    assert on_the_wire(app, receipt)["Subject"] == "Your order of November is sent"


# --- what send() leaves in the message ----------------------------------------------------------


def test_the_date_of_a_message(app: Flask, mail: Mail) -> None:
    """`send()` sets the date of a message without one, and keeps a date that is set."""
    message = Message("Hello", ["bob@example.com"])
    dated = Message("Hello", ["bob@example.com"], date=1_000_000_000.0)
    receipts = [mail.send(message), mail.send(dated)]

    assert dated.date == 1_000_000_000.0
    dates = [on_the_wire(app, one)["Date"].datetime.timestamp() for one in receipts]
    assert dates == [int(message.date or 0), 1_000_000_000]


def test_the_sender_for_the_author(app: Flask, mail: Mail) -> None:
    """`Sender` in `extra_headers` is written; headers with an argument of their own are refused."""
    receipt = mail.send_message(
        "Hello", ["bob@example.com"], extra_headers={"Sender": "Robot <robot@example.com>"}
    )

    assert on_the_wire(app, receipt)["Sender"] == "Robot <robot@example.com>"
    for name in ("From", "To", "Bcc", "Subject", "Message-ID"):
        with pytest.raises(InvalidHeader, match=f"{name!r} is written by Mailer"):
            mail.send_message("Hello", ["bob@example.com"], extra_headers={name: "e@example.com"})


# --- the state ----------------------------------------------------------------------------------


def test_the_default_sender_of_the_state(app: Flask, mail: Mail) -> None:
    """A default sender that is changed while the app runs counts from then on, as in Flask-Mail."""
    app.extensions["mail"].default_sender = ("Eve", "eve@example.com")
    receipts = [
        mail.send_message("Hello", ["bob@example.com"]),
        Mailer().enqueue(Message("Hello", ["bob@example.com"])),
    ]

    assert [on_the_wire(app, one)["From"] for one in receipts] == ["Eve <eve@example.com>"] * 2


def test_a_lazy_default_sender(app: Flask, mail: Mail) -> None:
    """A default sender with a lazy name is refused in the settings, and taken by the state."""
    lazy = (UserString("Eve"), "eve@example.com")
    other = create_app()
    other.config["MAIL_DEFAULT_SENDER"] = lazy
    with pytest.raises(ConfigurationError, match=r"^MAIL_DEFAULT_SENDER=.*: allowed: a text or"):
        Mail(other)
    app.extensions["mail"].default_sender = lazy
    receipt = mail.send_message("Hello", ["bob@example.com"])

    assert on_the_wire(app, receipt)["From"] == "Eve <eve@example.com>"


def test_ascii_attachments_of_the_state(app: Flask, mail: Mail) -> None:
    """`ascii_attachments` that is changed while the app runs counts from then on."""
    app.extensions["mail"].ascii_attachments = True
    receipt = mail.send_message("Hello", ["bob@example.com"], attachments=[NOTES])

    [part] = on_the_wire(app, receipt).iter_attachments()
    assert part.get_filename() == "Groe.txt"


@pytest.mark.parametrize(
    ("name", "value", "key"),
    [
        ("suppress", False, "MAIL_SUPPRESS_SEND"),
        ("server", "mail.example.com", "MAIL_SERVER"),
        ("port", 587, "MAIL_PORT"),
        ("use_tls", True, "MAIL_USE_TLS"),
        ("max_emails", 5, "MAIL_MAX_EMAILS"),
    ],
)
def test_what_is_changed_too_late(app: Flask, name: str, value: object, key: str) -> None:
    """Changing a setting of the relays while the app runs is an error that names its key."""
    state = app.extensions["mail"]
    before = getattr(state, name)
    with pytest.raises(ConfigurationError, match=rf"^app\.extensions\['mail'\]\.{name} .* {key} "):
        setattr(state, name, value)

    assert getattr(state, name) == before
    setattr(state, name, before)


def test_the_attributes_of_mail(app: Flask) -> None:
    """A `Mail` has the attributes of its state; one without an app has none yet."""
    mail = Mail(app)

    assert vars(mail.state) == vars(mail.init_mail(app.config, app.debug, app.testing))
    for name, value in vars(mail.state).items():
        assert getattr(mail, name) == value
    assert (Mail().server, Mail().state) == (None, None)


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
