"""The name of an installation in a shared Redis, by default derived from the database."""

import hashlib
import re

from sqlalchemy import URL, make_url

from mailer.settings.database import file_of, server_options

_ALLOWED = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_POSTGRESQL_PORT = 5432
_SEARCH_PATH = re.compile(r"search[_-]path\s*=\s*(\S+)")


def check_namespace(value: str) -> str:
    """Raise ValueError unless the value can be part of a Redis key and of the name of a queue."""
    if value and not _ALLOWED.fullmatch(value):
        raise ValueError("allowed: 1 to 64 letters, digits, dots, hyphens and underscores")
    return value


def namespace_of(database_url: str) -> str:
    """Return a short name, the same in every process that uses this database."""
    url = make_url(database_url)
    place = _file(url) if url.get_backend_name() == "sqlite" else _server(url)
    return hashlib.sha256(place.encode()).hexdigest()[:12]


def _file(url: URL) -> str:
    file = file_of(url)
    return f"sqlite:{':memory:' if file is None else file.resolve()}"


def _server(url: URL) -> str:
    """Return host, port, database and schema: all else may differ between machines."""
    hosts = url.query.get("host") or url.host or "localhost"
    ports = url.query.get("port") or url.port or _POSTGRESQL_PORT
    named = [
        ",".join(part if isinstance(part, tuple) else [str(part)]).lower()
        for part in (hosts, ports)
    ]
    schemas = _SEARCH_PATH.findall(server_options(url)) or [""]  # the last one applies
    return ":".join(["postgresql", *named, url.database or "", schemas[-1]])
