"""The place of the mail in the containers for which `flask mail init` writes a compose file."""

import os
from dataclasses import dataclass
from pathlib import Path

from flask import Flask
from sqlalchemy import make_url

from mailer.settings import database

_KEY = "MAILER_DATABASE_URL"
_WINS = f"app.config sets {_KEY} to {{url}}, which comes before the {_KEY} of the compose file: "
_TAKE_IT = f'let the code take the variable, as in os.environ.get("{_KEY}", …).'
_NOT_ON_THE_VOLUME = (
    f"{_WINS}that is not on the volume `instance`, so the mail would be lost with its container."
    " Name a file in the instance folder, as sqlite:///shop.sqlite3 does, and call this command"
    f" again with a new compose file; or {_TAKE_IT}"
)
_NOT_IN_THE_STACK = (
    f"{_WINS}the PostgreSQL there would hold no mail. Leave the key out, or {_TAKE_IT}"
)


@dataclass(frozen=True, slots=True)
class MailDatabase:
    """The database that keeps the mail in the containers."""

    #: `postgres`: that of the compose file. `app`: that of SQLALCHEMY_DATABASE_URI. `config`: that
    #: of app.config["MAILER_DATABASE_URL"]. `sqlite`: a file on the volume of the compose file.
    kind: str
    is_postgresql: bool
    advice: str = ""  #: for a user whose app.config has another one


def find_mail_database(app: Flask | None, folder: Path, *, postgres: bool) -> MailDatabase:
    """Choose the database of the mail in the containers.

    Args:
        app: The app, or None if it could not be made.
        folder: The folder of the project.
        postgres: Whether the compose file has a PostgreSQL for the mail.
    """
    given = _from_config(app)
    if postgres:
        advice = _NOT_IN_THE_STACK.format(url=database.shown(given)) if given else ""
        return MailDatabase("postgres", True, advice)
    if given is None:
        is_own = app is not None and _is_postgresql(app.config.get("SQLALCHEMY_DATABASE_URI"))
        return MailDatabase("app" if is_own else "sqlite", is_own)
    if _is_postgresql(given):
        return MailDatabase("config", True)
    file = database.file_of(make_url(given))
    if file is not None and file.is_relative_to(folder / "instance"):
        return MailDatabase("config", False)
    return MailDatabase("sqlite", False, _NOT_ON_THE_VOLUME.format(url=database.shown(given)))


def _from_config(app: Flask | None) -> str | None:
    """Return MAILER_DATABASE_URL in app.config, unless it is the value of the variable."""
    given = app.config.get(_KEY) if app else None
    if app is None or given is None or given == os.environ.get(_KEY):
        return None
    return str(database.placed(given, app.instance_path))


def _is_postgresql(url: object) -> bool:
    return str(url).startswith("postgres")
