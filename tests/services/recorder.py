"""A relay that records every byte of its clients."""

import socket
import socketserver
from contextlib import suppress

from tests.services.server import LocalServer

END_OF_MAIL = b"\r\n.\r\n"


class Recorder(LocalServer):
    """A relay that accepts everything, with lines and mails that end exactly as in RFC 5321."""

    def __init__(self, *offers: str) -> None:
        super().__init__(_Conversation)
        self.offers = offers
        self.heard = bytearray()


class _Conversation(socketserver.BaseRequestHandler):
    server: Recorder
    request: socket.socket

    def handle(self) -> None:
        self.server.connected.append(self.request)
        self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._unread = b""
        with suppress(OSError):
            self._say("220 recorder")
            while line := self._next(b"\r\n"):
                self._obey(line)

    def _obey(self, line: bytes) -> None:
        match line[:4].upper():
            case b"EHLO":
                self._say(
                    "\r\n".join(
                        [
                            "250-recorder",
                            *(f"250-{offer}" for offer in self.server.offers),
                            "250 HELP",
                        ]
                    )
                )
            case b"DATA":
                self._say("354 go on")
                self._next(END_OF_MAIL)
                self._say("250 taken")
            case _:
                self._say("250 ok")

    def _next(self, end: bytes) -> bytes:
        while end not in self._unread:
            more = self.request.recv(65536)
            if not more:
                return b""
            self.server.heard += more
            self._unread += more
        said, end, self._unread = self._unread.partition(end)
        return said + end

    def _say(self, reply: str) -> None:
        self.request.sendall(reply.encode() + b"\r\n")
