"""The base of the test servers: a port and a thread of their own, and an end with the test."""

import socket
import socketserver
import threading
from contextlib import suppress
from types import TracebackType
from typing import Self


class LocalServer(socketserver.ThreadingTCPServer):
    """A server that runs while its context is entered.

    A handler that waits has to watch `stopping`, and may add its client to `connected`.
    """

    daemon_threads = False

    def __init__(self, handler: type[socketserver.BaseRequestHandler]) -> None:
        super().__init__(("127.0.0.1", 0), handler)
        self.host, self.port = "127.0.0.1", int(self.server_address[1])
        self.stopping = threading.Event()
        self.connected: list[socket.socket] = []
        self._thread = threading.Thread(
            target=self.serve_forever, args=(0.02,), name=type(self).__name__
        )

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stopping.set()
        self.shutdown()
        self._thread.join()
        self.hang_up()
        self.server_close()

    def hang_up(self) -> None:
        """Close all connections."""
        for client in self.connected:
            with suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)
