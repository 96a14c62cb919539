"""The choice of the database, and of the file that a relative path means."""

import os
import re
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

_SQLITE = ("sqlite", "sqlite+pysqlite")
_PLAIN_NAME = re.compile(r"[\w.-]{1,64}(/[\w.-]{1,64}){0,8}")
_OF_WINDOWS = re.compile(r"[A-Za-z]:[\\/]|\\\\")
# The values of `?uri=` that SQLAlchemy takes for true.
_YES = frozenset({"true", "yes", "on", "y", "t", "1"})


def default_url(config: Mapping[str, Any], folder: str) -> str:
    """Return the database of an app without MAILER_DATABASE_URL.

    That is memory in tests, the application's own database if it is PostgreSQL, and else a SQLite
    file in the instance folder.
    """
    if config.get("TESTING"):
        return "sqlite://"
    own = _parsed(config.get("SQLALCHEMY_DATABASE_URI"))
    if own is not None and own.get_backend_name() in {"postgresql", "postgres"}:
        return own.render_as_string(hide_password=False)
    return URL.create("sqlite", database=str(default_file(folder))).render_as_string()


def default_file(folder: str) -> Path:
    """Return the SQLite file in an instance folder."""
    return Path(folder) / "mailer.sqlite3"


def checked_url(value: str) -> str:
    """Return the URL of a database that Mailer can use. Raise `ValueError` for another one."""
    # Some platforms still use the old name.
    value = re.sub("^postgres://", "postgresql://", value)
    try:
        url = make_url(value)
    # The ValueError quotes the port: without a host, that is the password.
    except (ArgumentError, ValueError):
        url = URL.create("nothing")
    is_postgresql = url.get_backend_name() == "postgresql"
    if not is_postgresql and url.drivername not in ("sqlite", "sqlite+pysqlite"):
        raise ValueError("allowed: sqlite:////path/to/file or postgresql://user:password@host/name")
    if not is_postgresql and (wrong := _misnamed_file(url)):
        raise ValueError(wrong)
    if is_postgresql and find_spec("psycopg") is None:
        raise ValueError(
            "PostgreSQL needs one more package: pip install 'flask-mailer-queue[postgres]'"
        )
    return value


def source(config: Mapping[str, Any], environ: Mapping[str, str]) -> str:
    """Return the name of the setting that chooses the database."""
    if config.get("MAILER_DATABASE_URL", environ.get("MAILER_DATABASE_URL") or None) is not None:
        return "MAILER_DATABASE_URL"
    if config.get("TESTING"):
        return "TESTING"
    is_own = default_url(config, "/").startswith("postgres")
    return "SQLALCHEMY_DATABASE_URI" if is_own else "the default"


def described(url: str, config: Mapping[str, Any], environ: Mapping[str, str]) -> str:
    """Return the database without secrets, and the setting that chooses it, for people."""
    return f"{shown(url)} ({source(config, environ)})"


def placed(value: object, folder: str) -> object:
    """Make a relative SQLite path absolute, in the instance folder, as Flask-SQLAlchemy does."""
    url = _parsed(value)
    if url is None or _misnamed_file(url):
        return value  # the validation of the settings refuses it
    if (file := file_of(url)) is not None and not file.is_absolute():
        place = str(Path(folder) / file)
        url = url.set(database=f"file:{quote(place)}" if _is_uri(url) else place)
    return (
        url.render_as_string(hide_password=False)
        if isinstance(value, URL) or file is not None
        else value
    )


def file_of(url: URL) -> Path | None:
    """Return the file of a SQLite database. Return None in memory, or for another database."""
    if url.drivername not in _SQLITE:
        return None
    name = url.database or ""
    if _is_uri(url):
        name = "" if _mode(url) == "memory" else unquote(urlsplit(name).path)
    if name in ("", ":memory:"):
        return None
    return Path("/", name.lstrip("/")) if name.startswith("/") else Path(name)


def may_be_made(url: URL) -> bool:
    """Return whether SQLite makes a missing file."""
    return _mode(url) == "rwc"


def is_in_memory(url: URL) -> bool:
    """Return whether the database is lost with the process."""
    return url.get_backend_name() == "sqlite" and file_of(url) is None


def server_options(url: URL) -> str:
    """Return the session options of PostgreSQL, from the URL or else the environment."""
    if url.get_backend_name() == "sqlite":
        return ""
    given = url.query.get("options") or os.environ.get("PGOPTIONS", "")
    return given if isinstance(given, str) else given[-1]


def shown(value: str) -> str:
    """Return the URL without secrets, for logs and errors."""
    url = make_url(value)
    secret = {key: "***" for key in url.query if "password" in key}
    return url.update_query_dict(secret).render_as_string(hide_password=True)


def _misnamed_file(url: URL) -> str:
    """Return the mistake in the URL of a SQLite file, with the remedy. It is empty if none."""
    if url.drivername not in _SQLITE:
        return ""
    if url.host:
        file = "/".join(filter(None, [url.host, url.database]))
        if not _PLAIN_NAME.fullmatch(file):  # perhaps a secret in the wrong place
            file = "mailer.db"
        return (
            f"a server follows two slashes, and SQLite has none: write sqlite:///{file} for a file"
            " in the instance folder, sqlite:////path/to/file for another one"
        )
    if os.name != "nt" and _OF_WINDOWS.match(url.database or ""):
        return "a path of Windows, and this machine has no drives: write sqlite:////path/to/file"
    return ""


def _is_uri(url: URL) -> bool:
    return str(url.query.get("uri")).strip().lower() in _YES and str(url.database).startswith(
        "file:"
    )


def _mode(url: URL) -> str:
    return str(url.query.get("mode", "rwc")) if _is_uri(url) else "rwc"


def _parsed(value: object) -> URL | None:
    if isinstance(value, URL):
        return value
    try:
        return make_url(value) if isinstance(value, str) else None
    except (ArgumentError, ValueError):
        return None
