"""A mail that can't be sent is refused at the call with a remedy, and leaves nothing behind."""

from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import flask_mail
import pytest
from flask import Flask

from mailer import (
    Attachment,
    ConfigurationError,
    InvalidAddress,
    InvalidAttachment,
    InvalidHeader,
    InvalidMail,
    Mail,
    Mailer,
    MailerError,
    MissingRecipient,
    MissingSender,
    OverLimit,
    SchemaMismatch,
    StoreUnavailable,
    TemplateError,
    send_email,
)
from tests.injections import WAYS_IN, attached, injected
from tests.services.databases import sqlite_only
from tests.shop import OpenShop, rows

mailer = Mailer()


def send(**changes: Any) -> None:
    """Queue a mail that is valid, except for the changes."""
    mail = {
        "to": "ada@example.com",
        "subject": "Hello",
        "template": "only_text",
        "context": {"name": "Ada"},
    }
    send_email(**{**mail, **changes})


def enqueue(**changes: Any) -> None:
    """Queue a Flask-Mail message that is valid, except for the changes."""
    message = flask_mail.Message("Hello", ["ada@example.com"], "text")
    for name, value in changes.items():
        setattr(message, name, value)
    mailer.enqueue(message)


def refusal(call: Callable[..., None], **changes: Any) -> tuple[type[MailerError], str]:
    with pytest.raises(MailerError) as error:
        call(**changes)
    return type(error.value), str(error.value)


# --- invalid arguments --------------------------------------------------------------------------

GIVE_AN_ADDRESS = "give 'ada@example.com' or 'Ada <ada@example.com>'."
NOBODY = "The mail has no recipient: give at least one in to, cc or bcc."
FILE = Attachment("a.pdf", b"%PDF")

NO_OPTION = (
    "there is no such option, and template 'only_text' has no variable of this name: did you mean"
)
MISSPELT = "Pass variables for other templates in context={…}."
UNUSABLE = "'ada' is not a usable address: An email address must have an @-sign."
GIVE_A_LIST = "attachments: give a list of Attachment(filename, data), not"
GIVE_ATTACHMENTS = "attachments: give Attachment(filename, data, content_type), not"
IMPORT_IT = "`from mailer import Attachment`."
GIVE_A_TIME = "give a timedelta, or a datetime with a time zone"
TOO_EARLY = "expires_at: the mail would expire before it is due"
NO_YEAR = "seconds since 1970 are in no year from 1 to 9999."

REFUSED_MAILS: list[tuple[dict[str, Any], type[MailerError], str]] = [
    (
        {"idempotancy_key": "a"},
        InvalidMail,
        f"idempotancy_key: {NO_OPTION} idempotency_key? {MISSPELT}",
    ),
    ({"attachment": FILE}, InvalidMail, f"attachment: {NO_OPTION} attachments? {MISSPELT}"),
    ({"to": None}, MissingRecipient, NOBODY),
    ({"to": []}, MissingRecipient, NOBODY),
    ({"to": iter([])}, MissingRecipient, NOBODY),
    ({"to": 5}, InvalidAddress, f"to: 5 is no address: {GIVE_AN_ADDRESS}"),
    (
        {"to": b"ada@example.com"},
        InvalidAddress,
        f"to: b'ada@example.com' is no address: {GIVE_AN_ADDRESS}",
    ),
    (
        {"to": ["ada@example.com", None]},
        InvalidAddress,
        f"to: None is no address: {GIVE_AN_ADDRESS}",
    ),
    ({"to": "ada"}, InvalidAddress, f"to: {UNUSABLE}"),
    ({"cc": "ada"}, InvalidAddress, f"cc: {UNUSABLE}"),
    ({"bcc": "ada"}, InvalidAddress, f"bcc: {UNUSABLE}"),
    ({"reply_to": "ada"}, InvalidAddress, f"reply_to: {UNUSABLE}"),
    ({"sender": "ada"}, InvalidAddress, f"sender: {UNUSABLE}"),
    ({"sender": 5}, InvalidAddress, f"sender: 5 is no address: {GIVE_AN_ADDRESS}"),
    ({"subject": None}, InvalidHeader, "subject: give a str, not NoneType."),
    ({"subject": 5}, InvalidHeader, "subject: give a str, not int."),
    (
        {"template": "nothing"},
        TemplateError,
        "template 'nothing': neither 'nothing.txt' nor 'nothing.html' is in",
    ),
    ({"template": None}, InvalidMail, "The mail has no content: give the name of a template, or"),
    (
        {"template": "broken"},
        TemplateError,
        "template 'broken.txt': Expected an expression, got 'end of",
    ),
    ({"context": {}}, TemplateError, "template 'only_text.txt': 'name' is undefined"),
    (
        {"context": {"name": "\x00"}},
        TemplateError,
        r"template 'only_text.txt': the character '\x00' at 6 can't be in a mail",
    ),
    (
        {"template": "link"},
        TemplateError,
        "template 'link.txt' could not be rendered: RuntimeError: Unable to build URLs",
    ),
    ({"attachments": FILE}, InvalidMail, "attachments: a list is needed for one as well: [A"),
    ({"attachments": "a.pdf"}, InvalidMail, f"{GIVE_A_LIST} str."),
    ({"attachments": b"%PDF"}, InvalidMail, f"{GIVE_A_LIST} bytes."),
    ({"attachments": {"a.pdf": b"%PDF"}}, InvalidMail, f"{GIVE_A_LIST} dict."),
    ({"attachments": ["a.pdf"]}, InvalidAttachment, f"{GIVE_ATTACHMENTS} str: {IMPORT_IT}"),
    (
        {"attachments": [FILE, Path("a.pdf")]},
        InvalidAttachment,
        f"{GIVE_ATTACHMENTS} PosixPath: {IMPORT_IT}",
    ),
    ({"headers": [("X-A", "b")]}, InvalidHeader, "headers: [('X-A', 'b')]: give a dict"),
    ({"headers": {"X-A": 5}}, InvalidHeader, "headers['X-A']: give a str, not int."),
    (
        {"headers": {"Bcc": "eve@example.com"}},
        InvalidHeader,
        "headers: 'Bcc' is written by Mailer: use the argument",
    ),
    ({"lane": "urgent"}, InvalidMail, "lane: 'urgent': use 'critical', 'normal' or 'bulk'."),
    ({"lane": 7}, InvalidMail, "lane: 7: use 'critical', 'normal' or 'bulk'."),
    ({"sensitive": "yes"}, InvalidMail, "sensitive: 'yes': use True or False."),
    ({"on_doubt": "forget"}, InvalidMail, "on_doubt: 'forget': use 'resend' or 'hold'."),
    ({"on_doubt": None}, InvalidMail, "on_doubt: None: use 'resend' or 'hold'."),
    ({"send_at": 60}, InvalidMail, f"send_at: 60: {GIVE_A_TIME}"),
    ({"send_at": "tomorrow"}, InvalidMail, f"send_at: 'tomorrow': {GIVE_A_TIME}"),
    (
        {"send_at": date(2100, 1, 1)},
        InvalidMail,
        "send_at: datetime.date(2100, 1, 1): give a timedelta, or a datetime with",
    ),
    (
        {"send_at": datetime(2100, 1, 1)},  # noqa: DTZ001 - a time without a zone is the fault
        InvalidMail,
        "send_at: datetime.datetime(2100, 1, 1, 0, 0): give",
    ),
    ({"send_at": timedelta.max}, InvalidMail, "send_at: 8"),
    (
        {"send_at": datetime.max.replace(tzinfo=timezone(timedelta(hours=-1)))},
        InvalidMail,
        "send_at: 2",
    ),
    ({"expires_at": timedelta(0)}, InvalidMail, f"{TOO_EARLY}: give a later time."),
    ({"expires_at": datetime(2020, 1, 1, tzinfo=UTC)}, InvalidMail, TOO_EARLY),
    ({"send_at": timedelta(2), "expires_at": timedelta(1)}, InvalidMail, TOO_EARLY),
    ({"tags": "welcome"}, InvalidMail, "tags: give a list of texts, not str."),
    ({"tags": 5}, InvalidMail, "tags: give a list of texts, not int."),
    ({"tags": [5]}, InvalidMail, "tags: give a str, not int."),
    ({"metadata": "order"}, InvalidMail, "metadata: give a dict of texts, not str."),
    ({"metadata": [("order", "42")]}, InvalidMail, "metadata: give a dict of texts, not list."),
    ({"metadata": {"order": 42}}, InvalidMail, "metadata: 'order': give texts, not int."),
    ({"metadata": {5: "42"}}, InvalidMail, "metadata: 5: give texts, not int."),
    (
        {"metadata": {"order": "x" * 10_000}},
        OverLimit,
        "metadata: 10005 characters: give 10000 at most, such as an id.",
    ),
]

REFUSED_MESSAGES: list[tuple[dict[str, Any], type[MailerError], str]] = [
    ({"recipients": []}, MissingRecipient, NOBODY),
    ({"recipients": 5}, InvalidAddress, f"recipients: 5 is no address: {GIVE_AN_ADDRESS}"),
    ({"recipients": ["ada"]}, InvalidAddress, "recipients: 'ada' is not a usable address"),
    ({"cc": ["ada"]}, InvalidAddress, "cc: 'ada' is not a usable address"),
    ({"bcc": ["ada"]}, InvalidAddress, "bcc: 'ada' is not a usable address"),
    ({"reply_to": "ada"}, InvalidAddress, "reply_to: 'ada' is not a usable address"),
    ({"sender": "ada"}, InvalidAddress, "sender: 'ada' is not a usable address"),
    ({"subject": 5}, InvalidHeader, "subject: give a str, not int."),
    ({"body": 5}, InvalidMail, "body: give a str, not int."),
    ({"body": b"text"}, InvalidMail, "body: give a str, not bytes."),
    (
        {"body": "\x00"},
        InvalidMail,
        r"body: the character '\x00' at 0 can't be in a mail: remove it.",
    ),
    (
        {"html": "<p>\ud800"},
        InvalidMail,
        r"html: the character '\ud800' at 3 can't be in a mail: remove it.",
    ),
    ({"html": 5}, InvalidMail, "html: give a str, not int."),
    (
        {"alts": {"not a type": "x"}},
        InvalidMail,
        "alts: 'not a type' is no type of text: give one such as 'calendar'",
    ),
    ({"alts": {"multipart/mixed": "x"}}, InvalidMail, "alts: 'multipart/mixed' is no type of text"),
    ({"alts": {5: "x"}}, InvalidMail, "alts: 5 is no type of text"),
    ({"alts": {"calendar": b"x"}}, InvalidMail, "alts['calendar']: give a str, not bytes."),
    ({"alts": {"calendar": None}}, InvalidMail, "alts['calendar']: give a str, not NoneType."),
    (
        {"date": "today"},
        InvalidMail,
        "date: 'today': give seconds since 1970, as time.time() does.",
    ),
    ({"date": datetime(2020, 1, 1, tzinfo=UTC)}, InvalidMail, "date: datetime.datetime(2020, 1, 1"),
    ({"date": 1e20}, InvalidMail, f"date: 1e+20 {NO_YEAR}"),
    ({"date": float("nan")}, InvalidMail, f"date: nan {NO_YEAR}"),
    (
        {"msgId": "no id"},
        InvalidHeader,
        "msgId: 'no id' is no Message-ID: keep Flask-Mail's, or give one such as",
    ),
    ({"msgId": None}, InvalidHeader, "msgId: None is no Message-ID"),
    ({"extra_headers": [("X-A", "b")]}, InvalidHeader, "headers: [('X-A', 'b')]: give a dict"),
    (
        {"mail_options": "BODY=8BITMIME"},
        InvalidMail,
        "mail_options: give a list of options such as 'BODY=8BITMIME', not str.",
    ),
    (
        {"mail_options": ["SIZE=1 RCPT"]},
        InvalidMail,
        "mail_options: 'SIZE=1 RCPT' is no option of SMTP: give one such as",
    ),
    ({"rcpt_options": ["NOTIFY=Ä"]}, InvalidMail, "rcpt_options: 'NOTIFY=Ä' is no option of SMTP"),
    ({"rcpt_options": [5]}, InvalidMail, "rcpt_options: 5 is no option of SMTP"),
    ({"attachments": ["a.pdf"]}, InvalidAttachment, f"{GIVE_ATTACHMENTS} str: {IMPORT_IT}"),
    (attached(data=5), InvalidAttachment, "attachment 'a.pdf': its data is int: give bytes."),
    (attached(data="\ud800"), InvalidAttachment, r"attachment 'a.pdf': the character '\ud800'"),
    (
        attached(content_type="nonsense"),
        InvalidAttachment,
        "attachment 'a.pdf': 'nonsense' is no type",
    ),
    (attached(filename="a.eml"), InvalidAttachment, "attachment 'a.eml': 'message/rfc822' is"),
    (
        attached(headers=[("X-A", "b")]),
        InvalidAttachment,
        "attachment 'a.pdf': headers: give a dict, not list.",
    ),
]


@pytest.mark.parametrize(
    ("call", "refused"),
    [(send, REFUSED_MAILS), (enqueue, REFUSED_MESSAGES)],
    ids=["send_email", "enqueue"],
)
def test_refused_and_nothing_stored(
    shop: Flask,
    call: Callable[..., None],
    refused: list[tuple[dict[str, Any], type[MailerError], str]],
) -> None:
    """The error names the argument, the value and the remedy, and no row is stored."""
    for changes, kind, words in refused:
        error, text = refusal(call, **changes)

        assert (error, text[: len(words)]) == (kind, words)
        assert rows(shop) == {}
    call()
    assert rows(shop) == {"mailer_message": 1, "mailer_delivery": 1}


# --- injection ----------------------------------------------------------------------------------

CALLS = {"send_email": send, "enqueue": enqueue}


def test_no_field_carries_a_second_line(shop: Flask) -> None:
    """Controls, such as line breaks, and surrogates are refused in all headers and commands."""
    for way in WAYS_IN:
        for text in injected():
            if way.folds and "\r\n " in text:
                continue  # unfolded: tests/integration/test_flask_mail.py
            error, words = refusal(lambda way=way, text=text: CALLS[way.door](**way.changes(text)))

            assert issubclass(error, InvalidMail), way.name
            assert words.startswith(way.refusal), way.name
    assert rows(shop) == {}


@sqlite_only
def test_no_sender_of_a_connection_carries_a_second_line(shop: Flask) -> None:
    """`envelope_from` of a connection, which becomes MAIL FROM, has no second line."""
    for text in injected("ada@example.com", "> SIZE=1"):
        with (
            Mail(shop).connect() as connection,
            pytest.raises(InvalidAddress, match=r"^envelope_from: "),
        ):
            connection.send(flask_mail.Message("Hello", ["ada@example.com"]), envelope_from=text)
    assert rows(shop) == {}


# --- missing configuration ----------------------------------------------------------------------


@sqlite_only
def test_no_sender(open_shop: OpenShop) -> None:
    """A mail without a sender is refused: the error names the argument and the setting."""
    shop = open_shop(MAIL_DEFAULT_SENDER=None)
    with shop.app_context():
        for call in (send, enqueue):
            assert refusal(call) == (
                MissingSender,
                "The mail has no sender: pass sender=…, or set MAIL_DEFAULT_SENDER.",
            )
        assert rows(shop) == {}
        send(sender="ada@example.com")


@sqlite_only
def test_what_is_no_message(shop: Flask) -> None:
    """`enqueue()` refuses anything but a Message of Flask-Mail."""
    for given, kind in (("ada@example.com", "str"), (None, "NoneType")):
        with pytest.raises(
            InvalidMail, match=f"^message: give a Message of Flask-Mail, not {kind}.$"
        ):
            mailer.enqueue(given)  # type: ignore[arg-type]


@sqlite_only
def test_no_app(open_shop: OpenShop) -> None:
    """Without an app, or with an app without Mailer, the error says what is missing."""
    with pytest.raises(RuntimeError, match="Working outside of application context"):
        send()
    with (
        Flask("bare").app_context(),
        pytest.raises(ConfigurationError, match="The app 'bare' has no Mailer"),
    ):
        send()


def test_a_database_that_is_away(open_shop: OpenShop, database_url: str, tmp_path: Path) -> None:
    """With the database away, the error says that nothing was queued and names the setting."""
    gone = (
        "postgresql://mailer@127.0.0.1:1/mailer"
        if database_url.startswith("postgresql")
        else f"sqlite:///{tmp_path}"
    )
    with open_shop(MAILER_DATABASE_URL=gone).app_context():
        for call in (send, enqueue):
            error, text = refusal(call)

            assert error is StoreUnavailable
            assert "MAILER_DATABASE_URL" in text
            assert "nothing was queued" in text


def test_a_database_without_tables(open_shop: OpenShop, empty_database_url: str) -> None:
    """SQLite gets its tables with the first mail; for PostgreSQL the error names the command."""
    shop = open_shop(MAILER_DATABASE_URL=empty_database_url)
    with shop.app_context():
        if empty_database_url.startswith("sqlite"):
            send()
            assert rows(shop) == {"mailer_message": 1, "mailer_delivery": 1}
        else:
            assert refusal(send) == (
                SchemaMismatch,
                "The database has no tables of Mailer yet: run 'flask mail migrate'.",
            )
