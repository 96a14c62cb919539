"""The web application of the local stack and of Docker: `app.py`, with more pages to try it out.

write     a mail typed into a page, and the status of each copy
race      the same mails sent in the request, with a thread each, and queued
inbox     the mails that the SMTP server of the local stack received
"""

import os
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Any

from flask import Flask, request

import app as reference
from devstack import race, write
from mailer.private import create_private_file, make_private_folder
from mailer.smtpd.inbox import Inbox
from mailer.web.inbox import make_inbox_blueprint

#: Pages that work while the database is down.
_WITHOUT_TABLES = ("pages.healthz", "pages.home", "static")


def create_app(config: dict[str, Any] | None = None) -> Flask:
    config = dict(config or {})
    given = config.get("INSTANCE_PATH") or os.environ.get("INSTANCE_PATH")
    folder = Path(given or Path(reference.__file__).with_name("instance"))
    if not (config.get("SECRET_KEY") or os.environ.get("SECRET_KEY")):
        config["SECRET_KEY"] = kept_secret(folder)
    app = reference.create_app(config)
    app.before_request(CreateTables(app))
    pages = {"Write": "write.write", **reference.PAGES, "Race": "race.new_race"}
    for blueprint in (write.pages, race.pages):
        app.register_blueprint(blueprint)
    if inbox := app.config.get("MAILER_INBOX_DIR") or os.environ.get("MAILER_INBOX_DIR"):
        blueprint = make_inbox_blueprint(Inbox(Path(inbox)), layout="base.html")
        app.register_blueprint(blueprint, url_prefix="/inbox")
        pages["Inbox"] = "inbox.index"
    app.config["PAGES"] = pages
    return app


class CreateTables:
    """A hook that creates the tables before the first request that needs them."""

    def __init__(self, app: Flask) -> None:
        self._app = app
        self._done = False

    def __call__(self) -> None:
        if self._done or request.endpoint in _WITHOUT_TABLES:
            return
        # Makes a SQLite file, for its owner only.
        self._app.extensions["mailer"].store.check_schema()
        reference.db.create_all()
        self._done = True


def kept_secret(folder: Path) -> str:
    """Return the key in the instance folder, which is made once and the same in every process."""
    file = folder / "secret_key"
    if not file.exists():
        make_private_folder(folder)
        draft = folder / f"secret_key.{secrets.token_hex(4)}"
        with os.fdopen(create_private_file(draft), "w", encoding="ascii") as writing:
            writing.write(secrets.token_hex())
        with suppress(FileExistsError):  # another process was faster
            file.hardlink_to(draft)
        draft.unlink()
    return file.read_text(encoding="ascii")
