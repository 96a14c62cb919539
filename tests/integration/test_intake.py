"""A queued mail is sent as the application gave it, with both databases."""

import logging
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.headerregistry import Address as ParsedAddress
from email.message import EmailMessage
from time import time
from typing import Any

import flask_mail
import pytest
from celery.contrib.testing.worker import start_worker
from flask import Flask
from markupsafe import Markup
from sqlalchemy import ForeignKey, create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship

from mailer import Attachment, Lane, Mail, Mailer, OnDoubt, Status, send_email
from tests.mails import table
from tests.services.databases import sqlite_only
from tests.services.loggers import logging_left_alone
from tests.services.sink import Sink
from tests.shop import OpenShop, on_the_wire, rows, store_of, stored

mailer = Mailer()


def deliveries(app: Flask) -> list[dict[str, Any]]:
    return list(table(store_of(app)).values())


def addresses(mail: EmailMessage, header: str) -> list[tuple[str, str]]:
    found: tuple[ParsedAddress, ...] = mail[header].addresses if mail[header] else ()
    return [(address.display_name, address.addr_spec) for address in found]


# --- a template pair ----------------------------------------------------------------------------


def test_a_mail_is_queued(shop: Flask) -> None:
    """The receipt names the queued mail, whose status can be asked for at once."""
    receipt = mailer.send_email("Ada <ada@example.com>", "Welcome", "welcome", name="Ada")
    status = mailer.status(receipt.id)

    assert receipt.recipients == ("ada@example.com",)
    assert (status.id, status.message_id, status.subject) == (
        receipt.id,
        receipt.message_id,
        "Welcome",
    )
    assert [(one.recipient, one.status, one.attempts) for one in status] == [
        ("ada@example.com", Status.QUEUED, 0)
    ]
    assert not status.is_finished
    assert rows(shop) == {"mailer_message": 1, "mailer_delivery": 1}


def test_what_goes_out(shop: Flask) -> None:
    """Both templates are sent: HTML escaped and with inlined CSS, the text as it is."""
    mail = on_the_wire(
        shop, send_email("ada@example.com", "Welcome", "welcome", name="Ada & <Bob>")
    )
    text, html = mail.get_body(["plain"]), mail.get_body(["html"])

    assert text is not None
    assert html is not None
    assert text.get_content().strip() == "Welcome, Ada & <Bob>!"
    assert '<p style="color: red;">Welcome, Ada &amp; &lt;Bob&gt;!</p>' in html.get_content()
    assert mail["Subject"] == "Welcome"
    assert addresses(mail, "From") == [("Mailer", "mailer@example.com")]
    assert addresses(mail, "To") == [("", "ada@example.com")]


@sqlite_only
def test_only_one_template(shop: Flask) -> None:
    """A text alone stays alone; HTML alone gets a text made from it."""
    only_text = stored(shop, send_email("ada@example.com", "Hello", "only_text", name="Ada"))
    only_html = stored(shop, send_email("ada@example.com", "Hello", "only_html", name="Ada"))

    assert (only_text.text, only_text.html) == ("Hello Ada", None)
    assert only_html.text == "Hello [there](https://example.com/Ada)\n"
    assert only_html.html == "<p>Hello <a href='https://example.com/Ada'>there</a></p>"


def test_everything_a_mail_can_have(shop: Flask) -> None:
    """Each field of a mail arrives in its place, and nobody sees the recipients in Bcc."""
    receipt = send_email(
        ["Ada <ada@example.com>", "bob@example.com"],
        "Your invoice",
        "logo",
        cc=("Cleo", "cleo@example.com"),
        bcc=["eve@example.com"],
        reply_to=["billing@example.com", "Boss <boss@example.com>"],
        sender=("Billing", "billing@example.com"),
        attachments=[
            Attachment("Größe.pdf", b"%PDF"),
            Attachment("logo.png", b"PNG", content_id="logo"),
        ],
        headers={"X-Campaign": "november"},
    )
    mail = on_the_wire(shop, receipt)

    assert receipt.recipients == (
        "ada@example.com",
        "bob@example.com",
        "cleo@example.com",
        "eve@example.com",
    )
    assert addresses(mail, "To") == [("Ada", "ada@example.com"), ("", "bob@example.com")]
    assert addresses(mail, "Cc") == [("Cleo", "cleo@example.com")]
    assert addresses(mail, "Reply-To") == [
        ("", "billing@example.com"),
        ("Boss", "boss@example.com"),
    ]
    assert addresses(mail, "From") == [("Billing", "billing@example.com")]
    assert mail["X-Campaign"] == "november"
    assert "eve@example.com" not in mail.as_string()
    [attached] = mail.iter_attachments()
    assert (attached.get_filename(), attached.get_content_type(), attached.get_content()) == (
        "Größe.pdf",
        "application/pdf",
        b"%PDF",
    )
    [image] = [part for part in mail.walk() if part["Content-ID"] == "<logo>"]
    assert (image.get_content_type(), image.get_content_disposition(), image.get_content()) == (
        "image/png",
        "inline",
        b"PNG",
    )


def test_the_same_file_is_stored_once(shop: Flask) -> None:
    """A file that several mails carry is stored once."""
    for address in ("ada@example.com", "bob@example.com"):
        send_email(
            address,
            "Hello",
            "only_text",
            name="you",
            attachments=[Attachment("terms.pdf", b"%PDF")],
        )

    assert rows(shop) == {
        "mailer_message": 2,
        "mailer_delivery": 2,
        "mailer_attachment": 2,
        "mailer_blob": 1,
    }


@sqlite_only
def test_the_subject_has_a_prefix(open_shop: OpenShop) -> None:
    """The subject prefix is followed by one space, or by none if the subject is empty."""
    shop = open_shop(MAILER_SUBJECT_PREFIX="[Shop]")
    with shop.app_context():
        for subject, prefixed in (("Hello", "[Shop] Hello"), ("", "[Shop]")):
            receipt = send_email("ada@example.com", subject, "only_text", name="Ada")
            assert stored(shop, receipt).subject == prefixed


def test_names_arrive_as_they_were_given(shop: Flask) -> None:
    """Any name arrives unchanged in each address field."""
    for name in (
        "Lovelace, Ada",
        'Ada "the first" L.',
        "Zoë 🦊",
        "ada@example.com",
        "A\\B",
        "(Ada); <x>",
        "=?utf-8?q?x?=",
    ):
        pair = (name, "ada@example.com")
        mail = on_the_wire(
            shop,
            send_email(
                [pair], "Hello", "only_text", cc=[pair], reply_to=[pair], sender=pair, name="Ada"
            ),
        )

        assert [addresses(mail, header) for header in ("To", "Cc", "Reply-To", "From")] == [
            [pair]
        ] * 4


def test_texts_of_a_kind_of_their_own(shop: Flask) -> None:
    """A subclass of str, such as Markup, is taken as its text."""
    receipt = send_email(
        Markup("ada@example.com"),
        Markup("<b>"),
        "only_text",
        headers={"X-A": Markup("<i>")},
        name="Ada",
    )

    assert mailer.status(receipt.id).subject == "<b>"
    assert stored(shop, receipt).headers[0] == ("X-A", "<i>")


def test_a_domain_of_another_script(shop: Flask) -> None:
    """An international domain is sent in ASCII, also in the Message-ID."""
    receipt = send_email(
        "ada@bücher.example", "Hello", "only_text", sender="shop@bücher.example", name="Ada"
    )

    assert receipt.recipients == ("ada@xn--bcher-kva.example",)
    assert deliveries(shop)[0]["domain"] == "xn--bcher-kva.example"
    assert receipt.message_id.endswith("@xn--bcher-kva.example>")


def test_a_recipient_gets_one_copy(shop: Flask) -> None:
    """A recipient in several fields, or with several names, gets one copy."""
    receipt = send_email(
        ["ada@example.com", "Ada <ada@EXAMPLE.com>"],
        "Hello",
        "only_text",
        cc=["ada@example.com", "bob@example.com"],
        bcc=["Bob <bob@example.com>", "eve@example.com"],
        name="you",
    )

    assert receipt.recipients == ("ada@example.com", "bob@example.com", "eve@example.com")
    assert [one["recipient"] for one in deliveries(shop)] == list(receipt.recipients)


@sqlite_only
def test_only_bcc(shop: Flask) -> None:
    """A mail may have its only recipient in Bcc."""
    mail = on_the_wire(
        shop, send_email(None, "Hello", "only_text", bcc="eve@example.com", name="Eve")
    )

    assert addresses(mail, "To") == []
    assert "eve@example.com" not in mail.as_string()


@sqlite_only
def test_lists_of_any_kind(shop: Flask) -> None:
    """Each list may be any iterable, or None."""
    receipt = send_email(
        (f"{name}@example.com" for name in ("ada", "bob")),
        "Hello",
        "only_text",
        cc={"cleo@example.com"},
        bcc=None,
        attachments=(Attachment(name, b"data") for name in ("a.pdf", "b.pdf")),
        tags=iter(["hello"]),
        name="you",
    )
    mail = stored(shop, receipt)

    assert receipt.recipients == ("ada@example.com", "bob@example.com", "cleo@example.com")
    assert [one.filename for one in mail.attachments] == ["a.pdf", "b.pdf"]
    assert mail.tags == ("hello",)


@sqlite_only
def test_context_with_the_name_of_an_argument(shop: Flask) -> None:
    """A variable named like an argument goes into `context`; keywords come before it."""
    shop.jinja_loader.mapping["names.txt"] = "{{ subject }} {{ to }} {{ name }}"  # type: ignore[union-attr]
    receipt = send_email(
        "ada@example.com",
        "Hello",
        "names",
        context={"subject": "S", "to": "T", "name": "?"},
        name="N",
    )

    assert stored(shop, receipt).text == "S T N"


# --- options ------------------------------------------------------------------------------------


def test_now_is_the_default(shop: Flask) -> None:
    """By default a mail is due now, in the normal lane, resent in doubt, and never expires."""
    before = time()
    send_email("ada@example.com", "Hello", "only_text", name="Ada")
    [row] = deliveries(shop)

    assert before <= row["due_at"] <= time()
    assert (row["lane"], row["on_doubt"], row["expires_at"]) == (Lane.NORMAL, OnDoubt.RESEND, None)


def test_options(shop: Flask) -> None:
    """Options are words or enum members, and times are relative or have a time zone."""
    due, end = datetime(2100, 1, 1, tzinfo=UTC), datetime(2100, 1, 2, tzinfo=UTC)
    options: dict[str, Any] = {
        "lane": "bulk",
        "on_doubt": "hold",
        "send_at": due,
        "expires_at": end,
        "sensitive": True,
    }
    secret = mailer.enqueue(flask_mail.Message("Hello", ["a@example.com"]), **options)
    send_email(
        "b@example.com", "Hello", "only_text", name="B", lane=Lane.CRITICAL, on_doubt=OnDoubt.HOLD
    )
    soon = time() + 3600
    send_email(
        "c@example.com",
        "Hello",
        "only_text",
        name="C",
        lane="Bulk",
        send_at=timedelta(hours=1),
        expires_at=timedelta(hours=2),
    )
    bulk, critical, later = deliveries(shop)

    assert (bulk["lane"], bulk["on_doubt"], stored(shop, secret).sensitive) == (
        Lane.BULK,
        OnDoubt.HOLD,
        True,
    )
    assert (bulk["due_at"], bulk["expires_at"]) == (due.timestamp(), end.timestamp())
    assert (critical["lane"], critical["on_doubt"]) == (Lane.CRITICAL, OnDoubt.HOLD)
    assert soon <= later["due_at"] <= time() + 3600
    assert later["expires_at"] - later["due_at"] == pytest.approx(3600)


def test_a_time_that_is_over_is_now(shop: Flask) -> None:
    """A time in the past counts as now: the mail goes before no other and can be retried."""
    before = time()
    send_email(
        "ada@example.com",
        "Hello",
        "only_text",
        name="Ada",
        send_at=datetime(2020, 1, 1, tzinfo=UTC),
    )

    assert deliveries(shop)[0]["due_at"] >= before
    assert deliveries(shop)[0]["queued_at"] >= before


# --- templates and tasks ------------------------------------------------------------------------


class Base(DeclarativeBase):
    pass


class Team(Base):
    __tablename__ = "team"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


class User(Base):
    __tablename__ = "user"
    id: Mapped[int] = mapped_column(primary_key=True)
    team_id: Mapped[int] = mapped_column(ForeignKey("team.id"))
    team: Mapped[Team] = relationship(lazy="select")


@sqlite_only
def test_an_object_of_the_applications_database(shop: Flask) -> None:
    """Templates are rendered in the request, where objects of its session can load lazily."""
    shop.jinja_loader.mapping["team.txt"] = "{{ user.team.name }}"  # type: ignore[union-attr]
    engine = create_engine("sqlite://")
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        session.add(User(id=1, team=Team(name="Rockets")))
        session.commit()
        user = session.get(User, 1)
        assert "team" not in user.__dict__  # not loaded yet

        receipt = send_email("ada@example.com", "Hello", "team", user=user)
    engine.dispose()

    assert stored(shop, receipt).text == "Rockets"


@sqlite_only
def test_links_in_a_request(shop: Flask) -> None:
    """Links in a request have the host that the visitor asked for."""
    with shop.test_request_context(base_url="https://shop.example"):
        receipt = send_email("ada@example.com", "Hello", "link")
        assert stored(shop, receipt).text == "https://shop.example/orders/7"


@sqlite_only
def test_links_outside_a_request(open_shop: OpenShop) -> None:
    """Links outside of a request have the host of SERVER_NAME."""
    shop = open_shop(SERVER_NAME="shop.example", PREFERRED_URL_SCHEME="https")
    with shop.app_context():
        receipt = send_email("ada@example.com", "Hello", "link")
        assert stored(shop, receipt).text == "https://shop.example/orders/7"


@pytest.fixture
def logs_as_before() -> Iterator[None]:
    """Restore the level of the root logger, which a worker in this process sets."""
    level = logging.getLogger().level
    yield
    logging.getLogger().setLevel(level)


@sqlite_only
@pytest.mark.usefixtures("logs_as_before")
def test_a_task_of_the_application_sends_mail(open_shop: OpenShop, sink: Sink) -> None:
    """A task runs in the app's context: its mail has links and goes out."""
    shop = open_shop(SERVER_NAME="shop.example")
    celery = shop.extensions["celery"]

    @celery.task  # type: ignore[untyped-decorator]  # what is in `extensions` is Any
    def remind(address: str) -> None:
        send_email(address, "Your order", "link")

    worker = start_worker(celery, pool="solo", perform_ping_check=False, shutdown_timeout=30)
    with logging_left_alone(), worker:
        remind.delay("ada@example.com")
        [mail] = sink.wait_for(1)

    assert mail.recipients == ("ada@example.com",)
    assert mail.parsed.get_content().strip() == "http://shop.example/orders/7"


# --- messages of Flask-Mail ---------------------------------------------------------------------


def test_a_message_of_flask_mail(shop: Flask) -> None:
    """Each field of a Flask-Mail message arrives as Flask-Mail would have sent it."""
    message = flask_mail.Message(
        "Hello",
        ["Ada <ada@example.com>"],
        "text",
        "<p>html</p>",
        {"calendar; method=REQUEST": "BEGIN:VCALENDAR"},
        sender=("Lovelace, Ada", "ada@example.com"),
        cc=["bob@example.com"],
        bcc=["eve@example.com"],
        reply_to="r@example.com",
        date=1_000_000_000,
        extra_headers={"X-Campaign": "november"},
        mail_options=["BODY=8BITMIME"],
        rcpt_options=["NOTIFY=SUCCESS,FAILURE", "ORCPT=rfc822;ada+b@example.com"],
    )
    message.attach("notes.txt", "text/plain; charset=utf-8", "Größe", headers={"X-A": "b"})
    message.attach("logo.png", "image/png", b"PNG", "inline", headers={"Content-ID": "<logo>"})
    receipt = mailer.enqueue(message)
    mail, kept = on_the_wire(shop, receipt), stored(shop, receipt)

    assert receipt.recipients == ("ada@example.com", "bob@example.com", "eve@example.com")
    assert receipt.message_id == message.msgId == mail["Message-ID"]
    assert addresses(mail, "From") == [("Lovelace, Ada", "ada@example.com")]
    assert addresses(mail, "Reply-To") == [("", "r@example.com")]
    assert mail["Date"].datetime.timestamp() == 1_000_000_000
    assert mail["X-Campaign"] == "november"
    contents = {
        part.get_content_type(): part.get_content()
        for part in mail.walk()
        if not part.is_multipart()
    }
    assert contents["text/html"].strip() == "<p>html</p>"
    assert contents["text/calendar"].strip() == "BEGIN:VCALENDAR"
    assert contents["image/png"] == b"PNG"
    assert [(one.filename, one.data, one.content_id, one.headers) for one in kept.attachments] == [
        ("notes.txt", "Größe".encode(), None, (("X-A", "b"),)),
        ("logo.png", b"PNG", "logo", ()),
    ]
    assert kept.mail_options == ("BODY=8BITMIME",)
    assert kept.rcpt_options == ("NOTIFY=SUCCESS,FAILURE", "ORCPT=rfc822;ada+b@example.com")


@sqlite_only
def test_a_message_of_html_gets_a_text(shop: Flask) -> None:
    """A message of HTML alone gets a text and is otherwise unchanged."""
    html = "<style>p { color: red }</style><p>Hello</p>"
    mail = stored(shop, mailer.enqueue(flask_mail.Message("Hello", ["ada@example.com"], html=html)))

    assert (mail.text, mail.html) == ("Hello\n", html)


@sqlite_only
def test_attachments_named_in_ascii(open_shop: OpenShop) -> None:
    """MAIL_ASCII_ATTACHMENTS makes filenames ASCII, as with Flask-Mail."""
    shop = open_shop(MAIL_ASCII_ATTACHMENTS="1")
    with shop.app_context():
        message = flask_mail.Message("Hello", ["ada@example.com"])
        message.attach("Ünïcödé.pdf", data=b"%PDF")
        assert [one.filename for one in stored(shop, mailer.enqueue(message)).attachments] == [
            "Unicode.pdf"
        ]


@sqlite_only
def test_the_drop_in_queues(shop: Flask) -> None:
    """`Mail` queues by each way that Flask-Mail has: messages, connections and shortcuts."""
    for mail in (Mail(), Mail(shop)):
        mail.send(flask_mail.Message("sent", ["ada@example.com"]))
        mail.send_message("short", ["ada@example.com"])
        with mail.connect() as connection:
            connection.send(
                flask_mail.Message("connected", ["ada@example.com"]),
                envelope_from="Bounces <bounces@example.com>",
            )
            connection.send_message("both", ["ada@example.com"])

    assert rows(shop) == {"mailer_message": 8, "mailer_delivery": 8}
    kept = store_of(shop).load_messages({row["mail_id"] for row in deliveries(shop)}).values()
    assert {(mail.subject, mail.bounce_address) for mail in kept} == {
        ("sent", "mailer@example.com"),
        ("short", "mailer@example.com"),
        ("connected", "bounces@example.com"),
        ("both", "mailer@example.com"),
    }


# --- under test ---------------------------------------------------------------------------------


def test_a_test_of_the_application_sends_nothing(open_shop: OpenShop, sink: Sink) -> None:
    """With TESTING, mail goes to nobody at once, needs no broker, and can be recorded."""
    shop = open_shop(TESTING=True, MAILER_REDIS_URL="redis://127.0.0.1:1/0")
    with shop.app_context(), Mail(shop).record_messages() as outbox:
        receipt = send_email(
            ["ada@example.com", "bob@example.com"], "Hello", "only_text", name="you"
        )

        assert [one.status for one in mailer.status(receipt.id)] == [Status.SENT, Status.SENT]
    assert [(message.subject, message.body, set(message.send_to)) for message in outbox] == [
        ("Hello", "Hello you", {"ada@example.com"}),
        ("Hello", "Hello you", {"bob@example.com"}),
    ]
    assert sink.messages == []
