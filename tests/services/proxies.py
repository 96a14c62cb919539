"""A proxy between client and relay that detects SOCKS5, SOCKS4 or HTTP."""

import base64
import selectors
import socket
import socketserver
import struct
from contextlib import suppress

from tests.services.server import LocalServer

_NAMES = {"relay.internal": "127.0.0.1"}  # a name that only the proxy's DNS knows


class ProxyServer(LocalServer):
    """A proxy that connects where its clients ask, and records their requests."""

    def __init__(self, credentials: tuple[str, str] | None = None) -> None:
        super().__init__(_Client)
        self.credentials = credentials
        self.refusal = 0  #: reply with this SOCKS5 code or HTTP status instead of connecting
        self.drips = False  #: send an endless answer
        self.asked: list[tuple[str, str, int]] = []  # protocol, host and port
        self.clients: list[tuple[str, int]] = []  # addresses


class _Refused(Exception):
    """The proxy refuses the connection."""


class _Client(socketserver.StreamRequestHandler):
    server: ProxyServer
    request: socket.socket

    def handle(self) -> None:
        self.server.clients.append(self.client_address)
        with suppress(OSError, _Refused):
            match self.request.recv(1, socket.MSG_PEEK):
                case b"\x05":
                    self._socks5()
                case b"\x04":
                    self._socks4()
                case b"C":
                    self._http()

    def _socks5(self) -> None:
        methods = self._read(self._read(2)[1])
        wanted = 2 if self.server.credentials else 0
        self._write(bytes([5, wanted if wanted in methods else 0xFF]))
        if wanted not in methods:
            raise _Refused
        if wanted:
            self._read(1)
            given = tuple(self._read(self._read(1)[0]).decode() for _ in range(2))
            self._write(bytes([1, given != self.server.credentials]))
            if given != self.server.credentials:
                raise _Refused
        kind = self._read(4)[3]
        host = (
            socket.inet_ntoa(self._read(4)) if kind == 1 else self._read(self._read(1)[0]).decode()
        )
        relay = self._connect("socks5", host, struct.unpack("!H", self._read(2))[0])
        self._write(b"\x05" + bytes([self.server.refusal]) + b"\0\x01\0\0\0\0\0\0")
        self._pass_on(relay)

    def _socks4(self) -> None:
        port, address = struct.unpack("!2xH4s", self._read(8))
        while self._read(1) != b"\0":
            pass
        relay = self._connect("socks4", socket.inet_ntoa(address), port)
        self._write(b"\0\x5a\0\0\0\0\0\0")
        self._pass_on(relay)

    def _http(self) -> None:
        host, _, port = self.rfile.readline().split()[1].decode().rpartition(":")
        headers = b"".join(iter(self.rfile.readline, b"\r\n"))
        relay = self._connect("http", host, int(port))
        login = base64.b64encode(":".join(self.server.credentials or ()).encode())
        if self.server.credentials and login not in headers:
            self.server.refusal = 407
        if self.server.refusal:
            relay.close()
            self._write(b"HTTP/1.1 %d no\r\nContent-Length: 0\r\n\r\n" % self.server.refusal)
            raise _Refused
        greeting = relay.recv(1000)  # the relay may answer before this reply is sent
        self._write(b"HTTP/1.1 200 Connection established\r\nVia: proxy\r\n\r\n" + greeting)
        self._pass_on(relay)

    def _connect(self, protocol: str, host: str, port: int) -> socket.socket:
        self.server.asked.append((protocol, host, port))
        while self.server.drips and not self.server.stopping.wait(0.02):
            self.wfile.write(
                b"\x05" if len(self.server.asked) == 1 and protocol == "socks5" else b"H"
            )
        return socket.create_connection((_NAMES.get(host, host), port))

    def _pass_on(self, relay: socket.socket) -> None:
        if self.server.refusal:
            relay.close()
            raise _Refused
        ways = {self.request: relay, relay: self.request}
        with relay, selectors.DefaultSelector() as selector:
            for end in ways:
                selector.register(end, selectors.EVENT_READ)
            while not self.server.stopping.is_set():
                for key, _ in selector.select(0.02):
                    assert isinstance(key.fileobj, socket.socket)
                    data = key.fileobj.recv(65536)
                    if not data:
                        return
                    ways[key.fileobj].sendall(data)

    def _read(self, count: int) -> bytes:
        data = self.rfile.read(count)
        if len(data) < count:
            raise _Refused
        return data

    def _write(self, data: bytes) -> None:
        self.wfile.write(data)
