"""Lazy strings, such as Flask-Babel's, are texts of a mail, in the language of the request."""

from collections import UserString
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from babel.messages import Catalog
from babel.messages.mofile import write_mo
from babel.support import LazyProxy
from flask import Flask, request
from flask_babel import Babel, lazy_gettext
from flask_babel.speaklater import LazyString
from jinja2 import DictLoader
from werkzeug.local import LocalProxy

from mailer import Address, Attachment, InvalidMail, Mail, Mailer, Message, Receipt, send_email
from tests.shop import close, on_the_wire

GERMAN = {
    "Your order": "Deine Bestellung",
    "Thank you!": "Danke!",
    "<p>Thank you!</p>": "<p>Danke!</p>",
    "The shop": "Der Laden",
    "Ada of the shop <ada@example.com>": "Ada vom Laden <ada@example.com>",
    "invoice.pdf": "Rechnung.pdf",
    "November": "Nebelmond",
}


@pytest.fixture
def app(tmp_path: Path) -> Iterator[Flask]:
    """Yield an app that speaks English, and German to those who ask for it."""
    file = tmp_path / "de" / "LC_MESSAGES" / "messages.mo"
    file.parent.mkdir(parents=True)
    catalog = Catalog(locale="de")
    for english, german in GERMAN.items():
        catalog.add(english, german)
    with file.open("wb") as stream:
        write_mo(stream, catalog)
    app = Flask("app")
    app.config.update(TESTING=True, MAILER_DATABASE_URL="sqlite://")
    app.jinja_loader = DictLoader(
        {"thanks.txt": "{{ _('Thank you!') }}", "plain.txt": "Thank you!"}
    )
    Babel(
        app,
        default_translation_directories=str(tmp_path),
        locale_selector=lambda: request.accept_languages.best_match(["en", "de"]),
    )
    Mail(app)
    yield app
    close(app)


# Made when the module is imported, as the texts of forms and models are.
SUBJECT = lazy_gettext("Your order")
BODY = lazy_gettext("Thank you!")
HTML = lazy_gettext("<p>Thank you!</p>")
SHOP = lazy_gettext("The shop")
ADA = lazy_gettext("Ada of the shop <ada@example.com>")
MONTH = lazy_gettext("November")


def send_lazily(template: str | None = "thanks", **bodies: Any) -> Receipt:
    return send_email(
        ADA,
        SUBJECT,
        template,
        **bodies,
        sender=(SHOP, "shop@example.com"),
        cc=[Address("bob@example.com", SHOP)],
        reply_to=[(SHOP, "help@example.com")],
        headers={"X-Campaign": MONTH, "Sender": ADA},
        attachments=[Attachment(lazy_gettext("invoice.pdf"), b"%PDF")],
    )


def make_message() -> Message:
    message = Message(
        SUBJECT,
        [ADA],
        BODY,
        HTML,
        sender=(SHOP, "shop@example.com"),
        cc=[(SHOP, "bob@example.com")],
        reply_to=(SHOP, "help@example.com"),
        extra_headers={"X-Campaign": MONTH, "Sender": ADA},
    )
    message.attach(lazy_gettext("invoice.pdf"), "application/pdf", b"%PDF")
    return message


@pytest.mark.parametrize(
    "queue",
    [
        send_lazily,
        lambda: send_lazily(template=None, text=BODY, html=HTML),
        lambda: Mailer().enqueue(make_message()),
        lambda: Mail().send(make_message()),
    ],
    ids=["template", "text and html", "enqueue", "send"],
)
def test_the_language_is_that_of_the_request(app: Flask, queue: Callable[[], Receipt]) -> None:
    """Each lazy string of a mail is translated in the request, and stays so outside of it."""
    for language, texts in (("en", dict(zip(GERMAN, GERMAN, strict=True))), ("de", GERMAN)):
        with app.test_request_context(headers={"Accept-Language": language}):
            receipt = queue()
        with app.app_context():
            mail = on_the_wire(app, receipt)

        shop, ada = texts["The shop"], texts["Ada of the shop <ada@example.com>"]
        assert mail["Subject"] == texts["Your order"]
        assert (mail["From"], mail["To"]) == (f"{shop} <shop@example.com>", ada)
        assert mail["Cc"] == f"{shop} <bob@example.com>"
        assert mail["Reply-To"] == f"{shop} <help@example.com>"
        assert (mail["X-Campaign"], mail["Sender"]) == (texts["November"], ada)
        body = mail.get_body(("plain",))
        assert body is not None
        assert body.get_content().strip() == texts["Thank you!"]
        [file] = mail.iter_attachments()
        assert file.get_filename() == texts["invoice.pdf"]


def test_each_is_made_once(app: Flask) -> None:
    """A lazy string is made once for each mail: the next call may give another text."""
    made: list[str] = []

    def make(text: str) -> str:
        made.append(text)
        return text

    texts = ["Hello", "body", "<p>html</p>", "Shop", "name", "value", "Ada <ada@example.com>"]
    subject, body, html, shop, name, value, ada = (LazyString(make, text) for text in texts)
    message = Message(subject, [(name, "bob@example.com"), ada], sender="shop@example.com")
    message.body, message.html = body, html
    message.sender, message.extra_headers = (shop, "shop@example.com"), {"X-Name": value}
    with app.app_context():
        Mailer().enqueue(message)
        assert sorted(made) == sorted(texts)
        made.clear()
        send_email(ada, subject, "plain", sender=(shop, "a@b.de"), headers={"X-Name": value})
        assert sorted(made) == sorted([texts[0], texts[3], texts[5], texts[6]])
        made.clear()
        send_email("bob@example.com", "Hello", text=body, html=html, sender="shop@example.com")
        assert sorted(made) == sorted([texts[1], texts[2]])


@pytest.mark.parametrize(
    "text",
    [
        LazyString(lambda: "Hello"),
        LazyProxy(lambda: "Hello"),
        LocalProxy(lambda: "Hello"),
        UserString("Hello"),
    ],
    ids=lambda text: type(text).__name__,
)
def test_what_is_lazy(app: Flask, text: Any) -> None:
    """The lazy strings of Flask-Babel, Babel and Werkzeug are taken."""
    with app.app_context():
        receipt = Mail().send_message(
            text, ["ada@example.com"], text, sender=(text, "a@example.com")
        )
        mail = on_the_wire(app, receipt)

    assert (mail["Subject"], mail["From"]) == ("Hello", "Hello <a@example.com>")
    assert mail.get_content().strip() == "Hello"


class User:
    """A row of the application, which can be printed."""

    def __str__(self) -> str:
        return "ada@example.com"


@pytest.mark.parametrize(
    "value",
    [
        *(None, 5, 1.5, True, b"Hello", bytearray(b"Hello"), ["Hello"], ("Hello",), {"a": "b"}),
        *({"Hello"}, range(3), Decimal(5), Path("a.txt"), User(), User, len, object()),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_no_text(app: Flask, value: Any) -> None:
    """Any other object is refused with the name of its type, though it could be printed."""
    kind = type(value).__name__
    with app.app_context():
        for changes, words in (
            ({"subject": value}, f"subject: give a str, not {kind}."),
            ({"headers": {"X-A": value}}, f"headers['X-A']: give a str, not {kind}."),
            ({"to": Address("ada@example.com", value)}, f"to: give a str, not {kind}."),
        ):
            usual = {"to": "ada@example.com", "subject": "Hello", "sender": "shop@example.com"}
            with pytest.raises(InvalidMail) as error:
                send_email(**{**usual, **changes}, template="plain")
            assert str(error.value) == words
        message = Message("Hello", ["ada@example.com"], sender="shop@example.com", html=value)
        message.body = value
        if value is not None:
            with pytest.raises(InvalidMail, match=f"^(html|body): give a str, not {kind}"):
                Mailer().enqueue(message)
