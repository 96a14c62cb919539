"""The client's side of SMTP: a relay, a mail, and a server whose every byte a test chooses."""

import socketserver
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

from flask import Flask

from mailer.dropin import flask_mail_state
from mailer.message import Address, Message, Outcome, new_id, new_message_id
from mailer.mime import WireMessage, compose
from mailer.settings import Settings
from mailer.smtp import Relay
from tests.services.server import LocalServer

TIMEOUTS = (
    "MAILER_CONNECT_TIMEOUT",
    "MAILER_COMMAND_TIMEOUT",
    "MAILER_DATA_TIMEOUT",
    "MAILER_REPLY_TIMEOUT",
)
LONG = 60.0  # no test waits for this time-out
SHORT = 0.3  # some tests wait for this one


def make_relay(host: str, port: int, environ: Any = None, **config: Any) -> Relay:
    """Return the relay of an app with this configuration and no other environment."""
    given = {"MAIL_SERVER": host, "MAIL_PORT": port, **dict.fromkeys(TIMEOUTS, LONG), **config}
    settings = Settings.load(given, environ or {}, default_database_url="sqlite://")
    return Relay(settings, Flask("tests"), flask_mail_state(settings))


def make_letter(recipient: str = "bob@example.com", **changes: Any) -> WireMessage:
    """Return a composed mail for one recipient."""
    now = time.time()
    mail_id = new_id(now)
    sender = Address("ada@example.com", "Ada")
    said = {
        "subject": "Hello",
        "text": "Hello\n",
        "html": None,
        "sender": sender,
        "to": (Address("bob@example.com"),),
        **changes,
    }
    message = Message(
        id=mail_id, message_id=new_message_id(mail_id, sender), created_at=now, **said
    )
    return WireMessage(message, recipient, compose(message))


def supply(mails: Iterable[WireMessage | None]) -> Callable[[], WireMessage | None]:
    """Return the `next_mail` of an exchange: the mails one by one, then None."""
    return partial(next, iter(mails), None)


def send(relay: Relay, letter: WireMessage | None = None) -> Outcome:
    """Send a mail over one of the relay's connections, which stays open."""
    with relay.connection() as connection:
        return connection.send(letter or make_letter())


Reply = bytes | Iterable[bytes]

_USUAL: Mapping[str, Reply] = {
    "greeting": b"220 relay\r\n",
    "EHLO": b"250-relay\r\n250 HELP\r\n",
    "DATA": b"354 go on\r\n",
    ".": b"250 taken\r\n",
    "QUIT": b"221 bye\r\n",
}


class RawServer(LocalServer):
    """A server that sends the given replies, whether they are SMTP or not.

    The stages are "greeting", the commands, and "." for the end of a mail. A reply may be a
    sequence of pieces, with a pause after each. No piece at all is silence, and an endless sequence
    keeps the server from reading on.
    """

    def __init__(self, **replies: Reply) -> None:
        super().__init__(_Conversation)
        self.replies = {**_USUAL, **replies}
        self.heard: list[
            bytes
        ] = []  # commands in lower case, since versions of smtplib differ in their case
        self.mails: list[bytes] = []


class _Conversation(socketserver.StreamRequestHandler):
    server: RawServer

    def handle(self) -> None:
        self.server.connected.append(self.request)
        with suppress(OSError):
            self._reply("greeting")
            for line in self.rfile:
                self.server.heard.append(line.lower())
                command = line.decode("ascii", "replace").partition(" ")[0].strip().upper()
                self._reply(command)
                if command == "DATA":
                    self._read_mail()
                    self._reply(".")

    def _read_mail(self) -> None:
        lines: list[bytes] = []
        for line in self.rfile:
            if line == b".\r\n":
                self.server.mails.append(b"".join(lines))
                return
            lines.append(line)

    def _reply(self, stage: str) -> None:
        reply = self.server.replies.get(stage, b"250 ok\r\n")
        for piece in [reply] if isinstance(reply, bytes) else reply:
            self.wfile.write(piece)
            if not isinstance(reply, bytes) and self.server.stopping.wait(0.02):
                return
