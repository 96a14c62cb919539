"""Text from outside reaches terminals and logs without escape sequences or forged lines."""

from collections.abc import Iterator

import pytest
from flask import Flask

from mailer import send_email
from mailer.delivery import preparing
from mailer.message import Status
from tests.mails import a_message, bring, record
from tests.services.databases import sqlite_only
from tests.services.relay import RawServer
from tests.shop import OpenShop, store_of

pytestmark = sqlite_only

#: These clear a screen, name a window, colour (in two bytes and in one), ring, delete, turn text
#: around, and end a line.
ESCAPES = [
    "\x1b[2J",
    "\x1b]0;mine\x07",
    "\x1b[31m",
    "\x9b31m",
    "\x08",
    "\x7f",
    "\x00",
    "\u202egnp.",
    "\u2066",
    "\u200f",
    "\u2028",
    "\x85",
]
FORGED = "\rINFO all is well"
HOSTILE = "".join(f"a{escape}" for escape in ESCAPES) + FORGED


@pytest.fixture
def relay() -> Iterator[RawServer]:
    with RawServer() as relay:
        yield relay


@pytest.fixture
def shop(open_shop: OpenShop, relay: RawServer) -> Iterator[Flask]:
    app = open_shop(MAIL_SERVER=relay.host, MAIL_PORT=relay.port)
    with app.app_context():
        yield app


def assert_harmless(text: str) -> None:
    """Assert that a text has only printable characters and line ends, and no forged line."""
    assert [letter for letter in text if not letter.isprintable() and letter != "\n"] == []
    assert not any(line.startswith("INFO all is well") for line in text.split("\n"))


def reply(code: str) -> bytes:
    return f"{code}-{HOSTILE}\r\n{code} {HOSTILE}\r\n".encode()


def printed(app: Flask, *command: str) -> str:
    return app.test_cli_runner().invoke(args=["mail", *command]).output


@pytest.mark.parametrize("stage", ["greeting", "EHLO", "MAIL", "RCPT", "DATA", "."])
@pytest.mark.parametrize("code", ["450", "550", "421", "999"])
def test_a_relay(
    shop: Flask, relay: RawServer, caplog: pytest.LogCaptureFixture, stage: str, code: str
) -> None:
    """No reply of a relay, at any stage, brings escapes into the log or the commands' output."""
    relay.replies[stage] = relay.replies["HELO" if stage == "EHLO" else stage] = reply(code)
    receipt = send_email("ada@example.com", "Hello", "only_text", name="Ada")

    shop.extensions["mailer"].outbound.dispatcher.deliver_batch()

    said = caplog.text + printed(shop, "status", receipt.id) + printed(shop, "relays")
    assert "31ma" in said  # the rest of an escape sequence, so the reply was shown
    assert_harmless(said)


def test_a_subject(shop: Flask) -> None:
    """A subject may have bidirectional controls, as some scripts need; a terminal gets none."""
    receipt = send_email("ada@example.com", "Invoice \u202efdp.exe", "only_text", name="Ada")

    said = printed(shop, "status", receipt.id)

    assert "Invoice" in said
    assert_harmless(said)


def test_the_database(shop: Flask) -> None:
    """No text in the database brings escapes to the terminal of an operator."""
    store = store_of(shop)
    deferred = bring(store, Status.TRANSMITTING, message=a_message(subject=HOSTILE))
    record(store, deferred, to=Status.QUEUED, reply=HOSTILE)
    store.pause_relay(
        next(iter(shop.extensions["mailer"].settings.relays)).name,
        failures=0,
        now=0,
        until=0,
        reason=HOSTILE,
    )

    said = printed(shop, "status", deferred.mail_id) + printed(shop, "relays")

    assert said.count("all is well") == 4  # the subject, the last reply, the history, the pause
    assert_harmless(said)


def test_a_mail_that_can_not_be_composed(shop: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason why a mail can't be composed may quote it, and is kept without escapes."""

    def refuse(*_mail: object) -> None:
        raise ValueError(HOSTILE)

    monkeypatch.setattr(preparing, "compose", refuse)
    receipt = send_email("ada@example.com", "Hello", "only_text", name="Ada")

    shop.extensions["mailer"].outbound.dispatcher.deliver_batch()

    [delivery] = store_of(shop).status(receipt.id)
    assert delivery.reply
    assert_harmless(delivery.reply)


@pytest.mark.parametrize("escape", [*ESCAPES, "\r", "\n"])
def test_an_id_and_a_relay_that_do_not_exist(shop: Flask, escape: str) -> None:
    """An error that repeats an unknown id or relay shows no escapes."""
    for command in ("status", "resume"):
        said = printed(shop, command, f"a{escape}b")
        assert "a" in said
        assert_harmless(said)
