"""A route to a server that can be blocked, so that all bytes are lost silently."""

import selectors
import socket
import socketserver
from contextlib import suppress

from tests.services.server import LocalServer


class Detour(LocalServer):
    """A port that forwards to a Unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__(_Traveller)
        self.path = path
        self.is_blocked = False  #: True: accept connections and drop all their bytes


class _Traveller(socketserver.BaseRequestHandler):
    server: Detour
    request: socket.socket

    def handle(self) -> None:
        self.server.connected.append(self.request)
        with (
            suppress(OSError),
            socket.socket(socket.AF_UNIX) as server,
            selectors.DefaultSelector() as selector,
        ):
            server.connect(self.server.path)
            ways = {self.request: server, server: self.request}
            for end in ways:
                selector.register(end, selectors.EVENT_READ)
            while not self.server.stopping.is_set():
                for key, _ in selector.select(0.1):
                    assert isinstance(key.fileobj, socket.socket)
                    data = key.fileobj.recv(65536)
                    if not data:
                        return
                    if not self.server.is_blocked:
                        ways[key.fileobj].sendall(data)
