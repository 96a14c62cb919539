"""Connections to a relay through a proxy, by python-socks."""

import socket
import time

from python_socks import ProxyError, parse_proxy_url
from python_socks.sync import Proxy

from mailer.smtp.names import addresses_of
from mailer.smtp.sockets import Misconfigured, connect

_MAX_HEAD = 16384
# The permanent errors of proxies: not allowed (SOCKS 2, HTTP 403 and 405), unsupported command or
# address (SOCKS 7 and 8), login required (HTTP 401 and 407). SOCKS has no code for a login.
_FINAL = frozenset({None, 2, 7, 8, 401, 403, 405, 407})


def connect_through(
    url: str, host: str, port: int, *, key: str, source: str | None, deadline: float
) -> socket.socket:
    """Connect to a host through a proxy. `key` is the setting that names the proxy."""
    # As in curl: with socks5h the proxy looks up the host, with socks5 we do.
    asks_dns = url.startswith(("socks5h:", "http:"))
    kind, proxy_host, proxy_port, user, password = parse_proxy_url(
        url.replace("socks5h:", "socks5:", 1)
    )
    name = f"the proxy {proxy_host}:{proxy_port}"
    proxy = Proxy(
        kind,
        proxy_host,
        proxy_port,
        user,
        password,
        rdns=asks_dns,
        forward=_Dialer(source, deadline),  # type: ignore[arg-type]
    )
    try:
        # python-socks would look up the host without a time-out.
        connected = proxy.connect(host if asks_dns else _address_of(host, port, deadline), port)
    except ProxyError as error:
        problem = f"{name} does not connect us: {error}"
        if error.error_code in _FINAL:
            raise Misconfigured(
                problem,
                f"{key}: {name} refuses this: name one that allows it, with its login if it has"
                " any.",
            ) from None
        raise ConnectionError(problem) from None
    except socket.gaierror as error:
        raise Misconfigured(
            f"{name}: {error.strerror}", _unknown_name(key, asks_dns=asks_dns)
        ) from None
    except TimeoutError:
        raise TimeoutError(f"{name} took too long") from None
    except OSError as error:
        raise ConnectionError(f"{name}: {error.strerror or error}") from None
    return socket.socket(fileno=connected.detach())


def _address_of(host: str, port: int, deadline: float) -> str:
    """Return an address of the host, of IPv4 if possible: SOCKS 4 knows no other."""
    address: str = min(addresses_of(host, port, socket.AF_UNSPEC, deadline))[4][0]
    return address


def _unknown_name(key: str, *, asks_dns: bool) -> str:
    if asks_dns:
        return f"{key}: the DNS does not know the name of the proxy: correct it."
    return (
        f"{key} or MAIL_SERVER: the DNS does not know one of these names: correct it, or let the"
        " proxy look it up: socks5h://…"
    )


class _Dialer:
    """Connects to the proxy itself, in the shape of a proxy of python-socks."""

    def __init__(self, source: str | None, deadline: float) -> None:
        self._source = source
        self._deadline = deadline

    def connect(self, dest_host: str, dest_port: int, timeout: float) -> socket.socket:
        sock = _ProxySocket(
            fileno=connect(dest_host, dest_port, self._source, self._deadline).detach()
        )
        sock.deadline = self._deadline
        return sock


class _ProxySocket(socket.socket):
    """A socket with a deadline that reads no further than the head of an HTTP reply.

    python-socks has a time-out for each piece, and would swallow the greeting of the relay.
    """

    deadline: float

    def recv(self, size: int, flags: int = 0) -> bytes:
        return self._recv_head() if size > _MAX_HEAD else self._recv_in_time(size, flags)

    def _recv_head(self) -> bytes:
        """Read to the empty line, and no further."""
        head = b""
        while not head.endswith(b"\r\n\r\n") and (byte := self._recv_in_time(1)):
            head += byte
            if len(head) > _MAX_HEAD:
                raise ConnectionError("its reply has no end")
        return head

    def _recv_in_time(self, size: int, flags: int = 0) -> bytes:
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        self.settimeout(left)
        return super().recv(size, flags)
