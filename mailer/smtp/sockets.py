"""Connected sockets, with a time-out for all addresses together."""

import errno
import socket
import time

from mailer.smtp.names import addresses_of


class Misconfigured(OSError):
    """A setting is wrong or missing."""

    def __init__(self, problem: str, advice: str) -> None:
        super().__init__(problem)
        self.advice = advice  #: which key to change, and how


def connect(host: str, port: int, source: str | None, deadline: float) -> socket.socket:
    """Connect to an address of the host. Each gets its share of the time after the look-up."""
    family = (
        socket.AF_UNSPEC if source is None else socket.AF_INET6 if ":" in source else socket.AF_INET
    )
    addresses = addresses_of(host, port, family, deadline)
    failure: OSError = TimeoutError("timed out")
    for number, (kind, _, protocol, _, address) in enumerate(addresses):
        left = deadline - time.monotonic()
        if left <= 0:
            break
        sock = socket.socket(kind, socket.SOCK_STREAM, protocol)
        try:
            sock.settimeout(left / (len(addresses) - number))
            if source is not None:
                _bind(sock, source)
            sock.connect(address)
        except OSError as error:
            sock.close()
            failure = error
        else:
            # Send short commands at once.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return sock
    raise failure


def _bind(sock: socket.socket, source: str) -> None:
    try:
        sock.bind((source, 0))
    except OSError as error:
        if error.errno != errno.EADDRNOTAVAIL:
            raise
        problem = f"no connection can come from {source}: {error.strerror}"
        raise Misconfigured(
            problem,
            "MAILER_SOURCE_ADDRESS: this machine has no such address: name one that it has, or"
            " unset it.",
        ) from None


def connect_unix(path: str, seconds: float) -> socket.socket:
    """Connect to a socket in the file system."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.settimeout(seconds)
        sock.connect(path)
    except OSError as error:
        sock.close()
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, path) from None
    return sock
