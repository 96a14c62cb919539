"""A relay that follows a script, and knows what it really took.

Mails are told apart by their sender, so a fault is for one mail, wherever and however often that
comes up.
"""

import select
import socket
import socketserver
import ssl
import struct
import threading
import time
from collections import defaultdict
from contextlib import suppress
from typing import Literal

from tests.services.server import LocalServer

Point = Literal[
    "greeting",
    "ehlo",
    "starttls",
    "handshake",
    "auth",
    "rset",
    "quit",
    "mail",
    "rcpt",
    "data",
    "body",
    "dot",
    "after",
]
#: Points of a connection, and of a mail: "body" is when its first line has come, "after" when it
#: has its reply.
OF_A_CONNECTION: tuple[Point, ...] = (
    "greeting",
    "ehlo",
    "starttls",
    "handshake",
    "auth",
    "rset",
    "quit",
)
OF_A_MAIL: tuple[Point, ...] = ("mail", "rcpt", "data", "body", "dot", "after")

#: What may happen at a point: a reply, or one of these.
CLOSE, RESET, SILENCE, GARBAGE, ENDLESS = "close", "reset", "silence", "garbage", "endless"
HOLD = "hold"  # as usual, but not before the test says so
_USUAL: dict[Point, str] = {
    "greeting": "220 relay",
    "starttls": "220 go on",
    "auth": "235 welcome",
    "rset": "250 ok",
    "quit": "221 bye",
    "mail": "250 sender ok",
    "rcpt": "250 recipient ok",
    "data": "354 go on",
    "dot": "250 taken",
}
_POINTS: dict[bytes, Point] = {b"AUTH": "auth", b"RSET": "rset", b"QUIT": "quit"}


class ScriptedRelay(LocalServer):
    """`faults[sender, point]` are done one after the other, each time that mail is there; a connection's have no sender.

    With `holds_back`, replies to commands that came together go out together, and are lost when the connection is.
    """

    def __init__(self, *offers: str, holds_back: bool = False) -> None:
        super().__init__(_Conversation)
        self.offers = offers
        self.holds_back = holds_back
        self.faults: dict[tuple[str, Point], list[str]] = defaultdict(list)
        self.tls: ssl.SSLContext | None = None  # for STARTTLS, which is offered if "STARTTLS" is
        self.begun: list[str] = []  # the senders of the mails whose envelope was said
        self.acknowledged: list[
            str
        ] = []  # the senders of the mails that had a yes to their final dot
        self.unanswered: list[str] = []  # of those that are here as a whole, and had no reply
        self.connections = 0
        self.round_trips = 0  # how often it had to wait for the client
        self.data_without_recipient = 0  # how often DATA was said in vain
        self.held = 0  # how often it came to a HOLD
        self._going_on = threading.Condition()
        self.waited_for: list[float] = []  # each silence, in seconds: until the client hung up

    def always(self, sender: str, point: Point, action: str) -> None:
        """As often as anybody could try."""
        self.faults[sender, point] = [action] * 10

    def hold(self) -> None:
        self.held += 1
        with self._going_on:
            self._going_on.wait()

    def go_on(self) -> None:
        """With what was held so far."""
        with self._going_on:
            self._going_on.notify_all()

    def at_mail(self, carried: int) -> str | None:
        """What it replies to MAIL when a connection has carried so many mails, if that is all that counts."""
        return None

    def begin(self, client: socket.socket) -> None:
        self.connections += 1
        self.connected.append(client)


class _Over(Exception):
    """The connection is."""


class _Conversation(socketserver.BaseRequestHandler):
    server: ScriptedRelay
    request: socket.socket

    def setup(self) -> None:
        self.server.begin(self.request)
        self.sender = ""
        self._has_recipient = False
        self._carried = 0
        self._arrived = b""
        self._held_back = b""

    def handle(self) -> None:
        with suppress(OSError, _Over):
            self._answer("greeting")
            while line := self._line():
                self._obey(line)

    def _obey(self, line: bytes) -> None:
        command = line[:4].upper()
        match command:
            case b"EHLO" | b"HELO" | b"LHLO":
                if not self._stumbles("ehlo"):
                    self._say(
                        "\r\n".join(
                            [
                                "250-relay",
                                *(f"250-{offer}" for offer in self.server.offers),
                                "250 HELP",
                            ]
                        )
                    )
            case b"STAR":
                self._secure()
            case b"AUTH" | b"RSET" | b"QUIT":
                self._answer(_POINTS[command])
            case b"MAIL":
                self.sender = line.split(b"<")[1].split(b">")[0].decode()
                self.server.begun.append(self.sender)
                self._has_recipient = False
                if (refusal := self.server.at_mail(self._carried)) is None:
                    self._answer("mail")
                else:
                    self._say(refusal)
            case b"RCPT":
                self._has_recipient = self._answer("rcpt").startswith("2")
            case b"DATA":
                self.server.data_without_recipient += not self._has_recipient
                if self._answer("data").startswith("354"):
                    self._take()
            case _:
                self._say("250 ok")

    def _secure(self) -> None:
        refusal = not self._answer("starttls").startswith("220")
        self._flush()
        if refusal:
            return
        if self._stumbles("handshake"):
            self._flush()
            raise _Over
        assert self.server.tls is not None
        self.request = self.server.tls.wrap_socket(self.request, server_side=True)
        self.server.connected.append(self.request)

    def _take(self) -> None:
        lines = 0
        while (line := self._line()) != b".\r\n":
            if not line:
                raise _Over
            if not lines and self._stumbles("body"):
                self._flush()
                raise _Over
            lines += 1
        if not self._has_recipient:
            self._say("554 5.5.1 no valid recipients")
            return
        if not lines:
            self.sender += ", and empty"
        said = self._next("dot")
        if said.startswith("2"):
            self.server.acknowledged.append(self.sender)
            self._carried += 1
        elif not said[0].isdigit():
            self.server.unanswered.append(self.sender)
        self._do(said)
        self._flush()
        if said.startswith("2"):
            self._stumbles("after")

    # --- what is said ----------------------------------------------------------------------------

    def _next(self, point: Point) -> str:
        faults = self.server.faults["" if point in OF_A_CONNECTION else self.sender, point]
        action = faults.pop(0) if faults else _USUAL.get(point, "")
        if action == HOLD:
            self.server.hold()
            return _USUAL[point]
        return action

    def _stumbles(self, point: Point) -> bool:
        """Do what is to happen here, if anything is."""
        action = self._next(point)
        if action:
            self._do(action)
        return bool(action)

    def _answer(self, point: Point) -> str:
        action = self._next(point)
        self._do(action)
        return action

    def _do(self, action: str) -> None:
        match action:
            case "close":
                raise _Over
            case "reset":
                self.request.setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
                )
                self.request.close()
                raise _Over
            case "silence":
                self._wait_until_left()
                raise _Over
            case "endless":
                while True:
                    self._say("\r\n".join(["250-and so on"] * 5000))
                    self._flush()
            case "garbage":
                self._say("what?")
            case _:
                self._say(action)
                if action.startswith("421"):
                    self._flush()
                    raise _Over

    def _wait_until_left(self) -> None:
        """Without a word, and without taking what the client still says."""
        began, watch = time.monotonic(), select.poll()
        watch.register(self.request, select.POLLRDHUP)
        watch.poll()
        if not self.server.stopping.is_set():
            self.server.waited_for.append(time.monotonic() - began)

    def _say(self, reply: str) -> None:
        self._held_back += reply.encode() + b"\r\n"
        if not self.server.holds_back:
            self._flush()

    def _flush(self) -> None:
        said, self._held_back = self._held_back, b""
        self.request.sendall(said)

    def _line(self) -> bytes:
        while b"\n" not in self._arrived:
            self._flush()
            self.server.round_trips += 1
            more = self.request.recv(65536)
            if not more:
                return b""
            self._arrived += more
        line, _, self._arrived = self._arrived.partition(b"\n")
        return line + b"\n"
