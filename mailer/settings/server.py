"""The host of the relay: a name, an address or a socket, and nothing beside it."""

import ipaddress
import re
from urllib.parse import urlsplit

_NOT_IN_A_HOST = re.compile(r"[\s/:@\[\]]")
_ALLOWED = "allowed: a host name or an IP address, such as smtp.example.com"


def checked_server(value: str) -> str:
    """Return the host. Raise `ValueError`, which names the keys to set, for a URL or a port."""
    if value.startswith("/") or _is_address(value) or not _NOT_IN_A_HOST.search(value):
        return value
    try:
        url = urlsplit(value if "://" in value else f"//{value}")
        is_smtps = url.scheme.lower() == "smtps"
        host, port = url.hostname, url.port or (465 if is_smtps else None)
    except ValueError:
        raise ValueError(_ALLOWED) from None
    if not host or not (_is_address(host) or not _NOT_IN_A_HOST.search(host)):
        raise ValueError(_ALLOWED)
    keys = [f"MAIL_SERVER={host!r}"]
    if port is not None:
        keys.append(f"MAIL_PORT={port}")
    if is_smtps:
        keys.append("MAIL_USE_SSL=True")
    if url.username:
        keys.append("MAIL_USERNAME and MAIL_PASSWORD for the login")
    raise ValueError(f"give the host alone: set {' and '.join(keys)}")


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
