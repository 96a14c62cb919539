"""The proxy of a relay: its URL in MAILER_PROXY and in the environment."""

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Self
from urllib.parse import urlsplit

#: The value of MAILER_PROXY that turns the proxy of the environment off.
NO_PROXY = "none"
_ALLOWED = (
    "allowed: socks5://user:password@host:1080, socks5h://… (the proxy asks the DNS), socks4://…,"
    " http://host:3128, or none"
)
_SCHEMES = frozenset({"socks5", "socks5h", "socks4", "http"})


def checked_proxy(url: str) -> str:
    """Return the URL, or NO_PROXY. Raise ValueError if it is no URL of a proxy."""
    if url.lower() == NO_PROXY:
        return NO_PROXY
    try:
        parts = urlsplit(url)
        usable = parts.scheme in _SCHEMES and bool(parts.hostname) and bool(parts.port)
    except ValueError:  # the port is no number
        usable = False
    if not usable:
        raise ValueError(_ALLOWED)
    if find_spec("python_socks") is None:
        raise ValueError("a proxy needs one more package: pip install 'flask-mailer-queue[socks]'")
    return url


@dataclass(frozen=True, slots=True)
class EnvironmentProxy:
    """The proxy of the environment, in the variables that curl and other programs read."""

    url: str | None = field(default=None, repr=False)
    exempt: str = ""

    @classmethod
    def read(cls, environ: Mapping[str, str]) -> Self:
        """Read ALL_PROXY and NO_PROXY, in lower case first, as curl does."""
        url = environ.get("all_proxy") or environ.get("ALL_PROXY")
        return cls(url or None, environ.get("no_proxy") or environ.get("NO_PROXY") or "")

    def for_server(self, server: str) -> str | None:
        """Return the proxy for a server. Return None if NO_PROXY names the server."""
        entries = [entry.strip().lower() for entry in self.exempt.split(",") if entry.strip()]
        return None if any(_covers(entry, server.lower()) for entry in entries) else self.url


def is_local(server: str) -> bool:
    """Return whether the server is a socket or a loopback address."""
    if server.startswith("/") or server.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(server).is_loopback
    except ValueError:
        return False


def _covers(entry: str, server: str) -> bool:
    """Return whether an entry of NO_PROXY is the server, a domain above it, or its network."""
    name = entry.removeprefix("*").removeprefix(".")
    if not name or server == name or server.endswith(f".{name}"):
        return True
    try:
        return ipaddress.ip_address(server) in ipaddress.ip_network(name, strict=False)
    except ValueError:
        return False
