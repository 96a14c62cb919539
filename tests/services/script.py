"""A relay that follows a script and records the mails that it accepted.

Mails are identified by their sender, so that a fault applies to one mail on every connection and at
every try.
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
#: Points of a connection, and of a mail: "body" is after the first line of the mail, "after" is
#: after the reply to the mail.
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

#: The actions at a point, apart from a reply.
CLOSE, RESET, SILENCE, GARBAGE, ENDLESS = "close", "reset", "silence", "garbage", "endless"
HOLD = "hold"  # the usual reply, as soon as the test calls `go_on`
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
    """A relay that does `faults[sender, point]` in order, one each time that mail gets there.

    Faults of a connection have no sender. With `holds_back`, replies to commands that came together
    are sent together, and are lost with the connection.
    """

    def __init__(self, *offers: str, holds_back: bool = False) -> None:
        super().__init__(_Conversation)
        self.offers = offers
        self.holds_back = holds_back
        self.faults: dict[tuple[str, Point], list[str]] = defaultdict(list)
        self.tls: ssl.SSLContext | None = None  # for STARTTLS
        self.begun: list[str] = []  # senders of the mails with a MAIL command
        self.acknowledged: list[str] = []  # senders of the mails that were accepted
        self.unanswered: list[str] = []  # senders of the complete mails without a reply
        self.connections = 0
        # Number of waits for the client. Nobody waits until its QUIT and the end have arrived.
        self.round_trips = 0
        self.data_without_recipient = 0  # number of DATA commands without a recipient
        self.held = 0  # number of HOLDs
        self._going_on = threading.Condition()
        self.waited_for: list[float] = []  # seconds of each silence until the client hung up

    def always(self, sender: str, point: Point, action: str) -> None:
        """Repeat the action more often than any client tries."""
        self.faults[sender, point] = [action] * 10

    def hold(self) -> None:
        self.held += 1
        with self._going_on:
            self._going_on.wait()

    def go_on(self) -> None:
        """Send all replies that are held."""
        with self._going_on:
            self._going_on.notify_all()

    def at_mail(self, carried: int) -> str | None:
        """Return a reply to MAIL that depends only on the number of mails before."""
        return None

    def begin(self, client: socket.socket) -> None:
        self.connections += 1
        self.connected.append(client)


class _Over(Exception):
    """The connection has ended."""


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

    # --- replies ---------------------------------------------------------------------------------

    def _next(self, point: Point) -> str:
        faults = self.server.faults["" if point in OF_A_CONNECTION else self.sender, point]
        action = faults.pop(0) if faults else _USUAL.get(point, "")
        if action == HOLD:
            self.server.hold()
            return _USUAL[point]
        return action

    def _stumbles(self, point: Point) -> bool:
        """Do the action of this point, if there is one."""
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
        """Wait without reading or writing until the client hangs up."""
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
            more = self.request.recv(65536)
            if not more:
                return b""
            self.server.round_trips += not more.startswith(b"QUIT")
            self._arrived += more
        line, _, self._arrived = self._arrived.partition(b"\n")
        return line + b"\n"
