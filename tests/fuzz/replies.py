"""A relay may reply anything: no exception, no endless wait and no endless memory."""

import socket
from collections.abc import Iterator
from functools import partial
from typing import cast

import flask_mail
from flask import Flask

from mailer.message import Address, Message, Verdict
from mailer.message.text import LONGEST_REPLY
from mailer.mime import WireMessage, compose
from mailer.settings import RelaySettings, Settings
from mailer.smtp.connection import RelayConnection
from mailer.smtp.limits import ConnectionLimit
from mailer.smtp.opening import SessionOpener
from mailer.smtp.replies import YES, is_reply
from mailer.smtp.session import Session
from tests.fuzz.bytes import Bytes

_CHUNKS = [1, 7, 64, 4096, 65536]
_MOST_UNREAD = LONGEST_REPLY + 65536
# A hundred lines that are cut, and one as long as the bytes that arrive at once.
_LONGEST = 102 * (LONGEST_REPLY + 65536)
_LOGIN = {"MAIL_USERNAME": "ada", "MAIL_PASSWORD": "not a word of it"}
_RELAYS = [
    Settings.load(config, {}, default_database_url="sqlite://")
    for config in ({}, _LOGIN, {"MAILER_LMTP": True})
]
_GREETING = (
    b"220 relay\r\n"
    b"250-relay\r\n250-PIPELINING\r\n250-AUTH PLAIN LOGIN CRAM-MD5\r\n250 SIZE 1000000\r\n"
)
_MESSAGE = Message(
    id="mail",
    message_id="<mail@example.com>",
    created_at=1_800_000_000.0,
    sender=Address("ada@example.com"),
    subject="Hello",
    text="Hello",
    html=None,
    to=(Address("bob@example.com"),),
)
_APP = Flask(__name__)
_STATE = flask_mail.Mail().init_mail({})


class Wire:
    """A socket that accepts all bytes and returns the given ones in pieces before it closes."""

    def __init__(self, says: bytes, chunk: int) -> None:
        self._says = memoryview(says)
        self._chunk = chunk

    def send(self, data: bytes) -> int:
        return len(data)

    def recv(self, size: int) -> bytes:
        piece = bytes(self._says[: min(size, self._chunk)])
        self._says = self._says[len(piece) :]
        return piece

    def settimeout(self, seconds: float) -> None:
        assert seconds > 0

    def shutdown(self, _how: int) -> None:
        pass

    def close(self) -> None:
        self._says = memoryview(b"")


class _Opener(SessionOpener):
    """An opener that returns the same wire, once."""

    def __init__(self, settings: RelaySettings, wire: Wire) -> None:
        super().__init__(settings)
        self._wires = [wire]

    def _connect(self) -> socket.socket:
        if not self._wires:
            raise ConnectionRefusedError
        return cast(socket.socket, self._wires.pop())


def hear(data: bytes) -> None:
    """Read replies until the relay closes the connection or breaks the protocol."""
    source = Bytes(data)
    session = Session("relay", command_timeout=60, is_lmtp=False)
    chunk = source.pick(_CHUNKS)
    session.sock = cast(socket.socket, Wire(source.rest(), chunk))
    try:
        while True:
            reply = session.receive_reply(60)
            assert is_reply(reply)
            assert len(reply) <= _LONGEST
            assert len(session._arrived) <= _MOST_UNREAD
    except OSError:  # the relay closed the connection or broke the protocol
        pass


def converse(data: bytes) -> None:
    """Greet, log in and send two mails, whatever the relay replies."""
    source = Bytes(data)
    settings, chunk = source.pick(_RELAYS), source.pick(_CHUNKS)
    beginning = source.pick([_GREETING, b""])
    connection = RelayConnection(
        _STATE,
        settings,
        _APP,
        _Opener(settings, Wire(beginning + source.rest(), chunk)),
        ConnectionLimit("relay"),
    )
    outcomes = list(connection.exchange(partial(next, _mails(), None)))
    connection.close()
    assert 1 <= len(outcomes) <= 2
    for outcome in outcomes:
        assert outcome.reply.isprintable()
        assert len(outcome.reply) <= LONGEST_REPLY + 100
        assert "not a word" not in outcome.reply + outcome.advice
        assert outcome.verdict is not Verdict.SENT or outcome.reply[:1] == chr(YES), outcome


def _mails() -> Iterator[WireMessage]:
    composed = compose(_MESSAGE)
    yield from (
        WireMessage(_MESSAGE, recipient, composed)
        for recipient in ("bob@example.com", "eve@example.com")
    )
