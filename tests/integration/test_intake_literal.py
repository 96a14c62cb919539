"""A mail without a template: `text` and `html` as the caller gives them."""

from typing import Any

import pytest
from flask import Flask, render_template_string
from jinja2 import DictLoader
from markupsafe import Markup
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

import mailer as package
from mailer import InvalidMail, KeyReused, Mail, Mailer, OverLimit, Status, send_email
from mailer.signals import mail_sent
from tests.services.databases import sqlite_only
from tests.shop import OpenShop, on_the_wire, rows, store_of, stored

mailer = Mailer()
STYLED = Markup(
    "<style>p { color: red }</style><p>Hello <a href='https://example.com/a'>Ada</a></p>"
)


def test_text_and_html(shop: Flask) -> None:
    """Both versions are sent as given, with inlined CSS, and nothing in them is a template."""
    receipt = mailer.send_email(
        "ada@example.com", "Hello", text="Hello {{ name }} <Ada>\n", html=STYLED
    )
    mail = on_the_wire(shop, receipt)
    text, html = mail.get_body(["plain"]), mail.get_body(["html"])

    assert text is not None
    assert html is not None
    assert text.get_content().strip() == "Hello {{ name }} <Ada>"
    assert '<p style="color: red;">Hello' in html.get_content()
    assert rows(shop) == {"mailer_message": 1, "mailer_delivery": 1}


@sqlite_only
def test_one_of_the_two(shop: Flask) -> None:
    """Text alone stays alone; html alone gets a text made from it; empty html is no html."""
    only_text = stored(shop, send_email("ada@example.com", "Hello", text="Hello"))
    only_html = stored(shop, send_email("ada@example.com", "Hello", html=STYLED))
    empty_html = stored(shop, send_email("ada@example.com", "Hello", text="", html=""))

    assert (only_text.text, only_text.html) == ("Hello", None)
    assert only_html.text == "Hello [Ada](https://example.com/a)\n"
    assert only_html.html is not None
    assert "color: red;" in only_html.html
    assert (empty_html.text, empty_html.html) == ("", None)


@sqlite_only
def test_both_calls_of_the_tutorials(shop: Flask) -> None:
    """The two signatures of the common tutorials can be written with `send_email()`."""

    def with_a_template(to: str, subject: str, template: str, **kwargs: Any) -> None:
        mailer.send_email(to, subject, template, **kwargs)

    def with_bodies(
        subject: str, sender: str, recipients: list[str], text_body: str, html_body: str | None
    ) -> None:
        mailer.send_email(recipients, subject, sender=sender, text=text_body, html=html_body)

    with shop.test_request_context():
        with_a_template("ada@example.com", "Hello", "only_text", name="Ada")
        text = render_template_string("Hello {{ name }}", name="Ada")
        with_bodies("Hello", "boss@example.com", ["ada@example.com"], text, None)

    store = store_of(shop)
    mails = [store.load_messages([mail.id])[mail.id] for mail in mailer.mails()]
    assert [mail.text for mail in mails] == ["Hello Ada"] * 2
    assert {mail.sender.email for mail in mails} == {"mailer@example.com", "boss@example.com"}


NO_TEMPLATE = "a mail with text or html has no template, which could use this variable."
NOT_BOTH = (
    "Give a template, or text and html, not both. If the template has a variable 'text', pass it in"
    " context={'text': …}."
)
ORDER = (
    "The order of the arguments is send_email(to, subject, template). A mail without a template"
    " takes text=… and html=…."
)
NO_CONTENT = "The mail has no content: give the name of a template, or text=… and html=…"


@sqlite_only
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            {"template": "only_text", "text": "Hello"},
            "text: the mail has template 'only_text' already. " + NOT_BOTH,
        ),
        (
            {"template": "only_text", "html": "", "name": "Ada"},
            "html: the mail has template 'only_text' already.",
        ),
        ({}, NO_CONTENT),
        ({"html": ""}, NO_CONTENT),
        ({"name": "Ada"}, NO_CONTENT),
        ({"body": "Hello"}, "body: there is no such option: did you mean text?"),
        (
            {"text_body": "Hello", "html_body": None},
            "text_body: there is no such option: did you mean text?",
        ),
        ({"html_body": "Hello"}, "html_body: there is no such option: did you mean html?"),
        (
            {"text": "Hello", "attachment": b""},
            "attachment: there is no such option: did you mean attachments?",
        ),
        ({"text": "Hello", "name": "Ada"}, f"name: {NO_TEMPLATE} Write its value into the text"),
        ({"text": "Hello", "context": {"name": "Ada"}}, f"name: {NO_TEMPLATE}"),
        ({"text": "Hello", "context": ["name"]}, "context: give a dict of template variables"),
        ({"template": ["bob@example.com"]}, "template: give the name of a template, not list."),
        (
            {"template": ["bob@example.com"], "text_body": "Hello"},
            "template: give the name of a template, not list. " + ORDER,
        ),
        ({"text": b"Hello"}, "text: give a str, not bytes."),
        ({"html": 5}, "html: give a str, not int."),
        ({"text": "Hello", "html": False}, "html: give a str, not bool."),
        ({"text": "Hello", "html": b""}, "html: give a str, not bytes."),
        ({"text": "a\x00b"}, r"text: the character '\x00' at 1 can't be in a mail: remove it."),
        ({"html": "\ud800"}, r"html: the character '\ud800' at 0 can't be in a mail"),
    ],
)
def test_refused_contents(shop: Flask, content: dict[str, Any], words: str) -> None:
    """A call with no content, two of them, or variables without a template is refused."""
    with pytest.raises(InvalidMail) as refused:
        send_email("ada@example.com", "Hello", **content)

    assert str(refused.value).startswith(words)
    assert "mailer_message" not in rows(shop)


@sqlite_only
def test_a_template_with_such_a_variable(open_shop: OpenShop) -> None:
    """A template gets its variables `text` and `html` in `context`."""
    shop = open_shop()
    shop.jinja_loader = DictLoader({"note.txt": "{{ text }}, {{ html }}"})
    context = {"text": "Hello", "html": "Ada"}

    with shop.app_context():
        receipt = send_email("ada@example.com", "Hello", "note", context=context)
        assert stored(shop, receipt).text == "Hello, Ada"


@sqlite_only
def test_the_limits_apply(open_shop: OpenShop) -> None:
    """A mail with text or html that is too large is refused."""
    with open_shop(MAILER_MAX_SIZE=1000).app_context():
        for text, html in (("x" * 1001, None), ("", "x" * 1001)):
            with pytest.raises(OverLimit, match="MAILER_MAX_SIZE allows 1000"):
                send_email("ada@example.com", "Hello", text=text, html=html)


def test_a_key_compares_the_content(shop: Flask) -> None:
    """The same key with other text or html is refused, and with the same it is one mail."""

    def send(text: str, html: str | None = None, *, sensitive: bool = False) -> str:
        key = f"sensitive-{sensitive}"
        return mailer.send_email(
            "ada@example.com",
            "Hello",
            text=text,
            html=html,
            sensitive=sensitive,
            idempotency_key=key,
        ).id

    for sensitive in (False, True):
        assert send("Hello", sensitive=sensitive) == send("Hello", sensitive=sensitive)
        for other in (("Hallo", None), ("Hello", "<p>Hello</p>")):
            with pytest.raises(KeyReused):
                send(*other, sensitive=sensitive)
    assert rows(shop)["mailer_message"] == 2


@sqlite_only
def test_a_sensitive_mail_is_erased(open_shop: OpenShop) -> None:
    """Text and html of a sensitive mail are erased as those of a template are."""
    shop = open_shop(MAIL_SUPPRESS_SEND=True)
    with shop.app_context():
        receipt = send_email("ada@example.com", "Code", text="1234", html="1234", sensitive=True)
        status = mailer.status(receipt)

    assert status.deliveries[0].status is Status.SENT
    assert status.erased_at is not None


@sqlite_only
def test_it_is_sent_in_tests(open_shop: OpenShop) -> None:
    """With MAIL_SUPPRESS_SEND, the recorder and the signals have the mail at once."""
    shop = open_shop(MAIL_SUPPRESS_SEND=True)
    sent = []

    def note(app: Flask, event: package.signals.Event) -> None:
        sent.append(dict(event.metadata))

    with mail_sent.connected_to(note), shop.app_context(), Mail(shop).record_messages() as outbox:
        send_email("ada@example.com", "Hello", text="Hello", metadata={"order": "42"})

    assert sent == [{"order": "42"}]
    assert [(one.subject, one.body) for one in outbox] == [("Hello", "Hello")]


@sqlite_only
def test_it_is_part_of_a_transaction(shop: Flask) -> None:
    """With `connection`, a mail without a template vanishes with a rollback."""
    engine = create_engine(store_of(shop).engine.url)
    store_of(shop).check_schema()
    with Session(engine) as session:
        send_email("ada@example.com", "Hello", text="Hello", connection=session)
        session.rollback()
        assert "mailer_message" not in rows(shop)
        send_email("ada@example.com", "Hello", html="<p>Hello</p>", connection=session)
        session.commit()
    engine.dispose()

    assert rows(shop)["mailer_message"] == 1


@sqlite_only
def test_deeply_nested_html(shop: Flask) -> None:
    """Html with more nested tags than Python has stack is queued or refused, and no crash."""
    html = "<div>" * 50_000 + "Hello" + "</div>" * 50_000

    assert stored(shop, send_email("ada@example.com", "Hello", text="Hello", html=html)).html
