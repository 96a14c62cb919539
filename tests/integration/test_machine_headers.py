"""The machine headers of mails as relays get them: which mail has them, and who takes them off."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email import message_from_bytes
from email.message import Message as Parsed
from pathlib import Path
from typing import Any

import flask_mail
import pytest
from flask import Flask
from jinja2 import DictLoader

from mailer import Mail, Mailer
from mailer.message import MACHINE_HEADERS
from mailer.testing import Outbox
from tests.services.opendkim import verified_by_opendkim
from tests.signing import RSA, records

mailer = Mailer()

PLAIN = {
    "Auto-Submitted": "auto-generated",
    "X-Auto-Response-Suppress": "OOF, AutoReply",
    "Feedback-ID": ":normal::example.com",
}
ADA = "ada@example.com"


@contextmanager
def an_app(**config: Any) -> Iterator[Flask]:
    app = Flask("app")
    app.jinja_loader = DictLoader({"news.txt": "Hello {{ name }}"})
    app.config.update(
        TESTING=True,
        MAILER_REDIS_URL="redis://127.0.0.1:1/0",
        MAIL_DEFAULT_SENDER="shop@example.com",
        **{"MAILER_DATABASE_URL": "sqlite://", **config},
    )
    Mailer(app)
    with app.app_context():
        yield app


def wires(app: Flask, send: Callable[[], object]) -> list[bytes]:
    """Return the bytes of the mails that a call sends."""
    with Mail(app).record_messages() as sent:
        send()
    return [mail.as_bytes() for mail in sent]


def machine_headers(wire: bytes) -> dict[str, str]:
    """Return the machine headers of a mail. None may be there twice."""
    parsed: Parsed = message_from_bytes(wire)
    found = [(name, parsed[name]) for name in MACHINE_HEADERS for _one in parsed.get_all(name, ())]
    assert len(found) == len(dict(found))
    return dict(found)


def sent(call: Callable[[], object], **config: Any) -> dict[str, str]:
    """Return the machine headers of the only mail that a call sends."""
    with an_app(**config) as app:
        [wire] = wires(app, call)
    return machine_headers(wire)


def send(**options: Any) -> object:
    return mailer.send_email(ADA, "Hello", text="Hello", **options)


def send_bulk(*rows: object, **options: Any) -> object:
    return mailer.send_bulk("News", "news", rows or [(ADA, {"name": "Ada"})], **options)


# --- which mail has them ------------------------------------------------------------------------


def test_a_mail_of_send_email() -> None:
    """A mail of send_email says that a program sent it."""
    assert sent(send) == PLAIN


def test_a_contact_form() -> None:
    """Out-of-office replies to a contact form reach the visitor whom reply_to names."""
    assert sent(lambda: send(reply_to="visitor@example.org")) == {
        "Feedback-ID": ":normal::example.com"
    }


def test_mails_of_a_bulk_send() -> None:
    """All mails of a bulk send have the same Feedback-ID, with the id of the send."""
    rows = [(ADA, {"name": "Ada"}), ("bob@example.com", {"name": "Bob"})]
    with an_app() as app:
        found = [*map(machine_headers, wires(app, lambda: send_bulk(*rows)))]
        [bulk] = mailer.bulks()

    feedback_id = f"{bulk.id}:bulk::example.com"
    assert found == [PLAIN | {"Precedence": "bulk", "Feedback-ID": feedback_id}] * 2


def test_a_message_of_flask_mail_is_sent_as_it_is() -> None:
    """Mail of an application that has moved from Flask-Mail has the headers that it wrote."""
    message = flask_mail.Message(
        "Hello", [ADA], "Hello", sender="shop@example.com", extra_headers={"Precedence": "list"}
    )
    with an_app() as app:
        [by_mail, by_mailer] = wires(
            app, lambda: [Mail(app).send(message), mailer.enqueue(message)]
        )

    assert machine_headers(by_mail) == machine_headers(by_mailer) == {"Precedence": "list"}


def test_what_a_test_sees_are_the_headers_of_the_caller() -> None:
    """Recorded mails and their snapshots do not change with a setting."""
    with an_app() as app:
        with Outbox(app) as outbox:
            send(headers={"X-Campaign": "november"})
        [mail] = outbox
        assert mail.headers == {"X-Campaign": "november"}
        assert "Auto-Submitted" not in mail.snapshot()


# --- who takes them off -------------------------------------------------------------------------


@pytest.mark.parametrize("name", MACHINE_HEADERS)
def test_a_header_of_the_caller_wins(name: str) -> None:
    """A header that the caller gives, in any case, is there once and as it was given."""
    found = sent(lambda: send(lane="bulk", headers={name.upper(): "mine"}))

    assert found[name] == "mine"
    assert set(found) == set(MACHINE_HEADERS)


@pytest.mark.parametrize("name", MACHINE_HEADERS)
def test_none_turns_a_header_of_a_mail_off(name: str) -> None:
    """With None for a header, the mail has none of that name, and the others."""
    for call in (send, send_bulk):
        found = sent(lambda call=call: call(lane="bulk", headers={name.lower(): None}))  # type: ignore[misc]

        assert set(found) == {*MACHINE_HEADERS} - {name}


def test_a_row_of_a_bulk_send_wins() -> None:
    """A header of a row replaces that of its mail, and None takes it away."""
    row = {
        "email": ADA,
        "name": "Ada",
        "headers": {"precedence": "list", "Feedback-ID": None},
    }
    assert sent(lambda: send_bulk(row)) == {
        "Auto-Submitted": "auto-generated",
        "X-Auto-Response-Suppress": "OOF, AutoReply",
        "Precedence": "list",
    }


def test_none_is_for_machine_headers_only() -> None:
    """Another header that is None is a mistake."""
    with an_app() as app, pytest.raises(Exception, match=r"headers\['X-A'\]: give a str"):
        wires(app, lambda: send(headers={"X-A": None}))


@pytest.mark.parametrize(
    ("setting", "names"),
    [
        ("none", set()),
        ([], set()),
        ("auto-submitted", {"Auto-Submitted"}),
        ("Precedence, Feedback-ID", {"Precedence", "Feedback-ID"}),
        (["X-Auto-Response-Suppress"], {"X-Auto-Response-Suppress"}),
    ],
)
def test_the_setting_chooses(setting: object, names: set[str]) -> None:
    """MAILER_MACHINE_HEADERS lists the headers that the app's mail gets."""
    for call in (send, send_bulk):
        found = sent(lambda call=call: call(lane="bulk"), MAILER_MACHINE_HEADERS=setting)  # type: ignore[misc]

        assert set(found) == names


def test_a_setting_between_two_calls_with_a_key(tmp_path: Path) -> None:
    """The headers are no part of what a key compares: a deployment may change the setting."""

    def ids(**config: Any) -> list[str]:
        with an_app(MAILER_DATABASE_URL=f"sqlite:///{tmp_path}/mails.sqlite3", **config):
            receipt = mailer.send_email(ADA, "Hello", text="Hello", idempotency_key="order-1")
            rows = [(ADA, {"name": "Ada"})]
            bulk = mailer.send_bulk("News", "news", rows, idempotency_key="news-1")
            return [receipt.id, bulk.id]

    assert ids() == ids(MAILER_MACHINE_HEADERS="none")


# --- DKIM ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MACHINE_HEADERS)
def test_a_signature_covers_them(name: str, tmp_path: Path) -> None:
    """OpenDKIM accepts a mail with machine headers, and none of which one was changed."""
    keys = [{"domain": "example.com", "selector": "rsa", "key": RSA.pem.decode()}]
    with an_app(MAILER_DKIM_KEYS=keys) as app:
        [wire] = wires(app, lambda: send(lane="bulk"))

    assert machine_headers(wire).keys() == {*MACHINE_HEADERS}
    assert verified_by_opendkim(wire, records(RSA), tmp_path) == {"rsa": "pass"}
    changed = wire.replace(f"\r\n{name}: ".encode(), f"\r\n{name}: x".encode())
    assert changed != wire
    assert verified_by_opendkim(changed, records(RSA), tmp_path) == {"rsa": "fail"}
