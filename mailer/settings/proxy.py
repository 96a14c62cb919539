"""The proxy that relays are reached through, as it is written in the settings and in the environment."""

import ipaddress
from collections.abc import Mapping
from importlib.util import find_spec
from urllib.parse import urlsplit

#: What the environment says of proxies, in the names that curl and others read, and goes for whoever is told nothing else.
AMBIENT = ("all_proxy", "no_proxy")
#: To reach relays directly, whatever the environment says.
NO_PROXY = "none"
_ALLOWED = (
    "allowed: socks5://user:password@host:1080, socks5h://… (the proxy asks the DNS), socks4://…, http://host:3128, or none"
)
_SCHEMES = frozenset({"socks5", "socks5h", "socks4", "http"})


def checked_proxy(url: str) -> str:
    """The same, in lower case where that does not matter; a ValueError says what is wrong with it."""
    if url.lower() == NO_PROXY:
        return NO_PROXY
    try:
        parts = urlsplit(url)
        usable = parts.scheme in _SCHEMES and bool(parts.hostname) and bool(parts.port)
    except ValueError:  # a port that is none
        usable = False
    if not usable:
        raise ValueError(_ALLOWED)
    if find_spec("python_socks") is None:
        raise ValueError("a proxy needs one more package: pip install 'flask-mailer-queue[socks]'")
    return url


def ambient(environ: Mapping[str, str]) -> dict[str, str]:
    """What the environment says of proxies."""
    return {name: value for name in AMBIENT if (value := environ.get(name) or environ.get(name.upper()))}


def is_local(server: str) -> bool:
    """Whether it is a socket or an address of this machine."""
    if server.startswith("/") or server.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(server).is_loopback
    except ValueError:
        return False


def is_exempt(server: str, no_proxy: str) -> bool:
    """Whether `no_proxy` has it: by name, by a domain it is in, or by a network."""
    return any(_covers(entry.strip().lower(), server.lower()) for entry in no_proxy.split(",") if entry.strip())


def _covers(entry: str, server: str) -> bool:
    name = entry.removeprefix("*").removeprefix(".")
    if not name or server == name or server.endswith(f".{name}"):
        return True
    try:
        return ipaddress.ip_address(server) in ipaddress.ip_network(name, strict=False)
    except ValueError:
        return False
