"""The web application of the local stack: the reference application, and the inbox."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flask import Flask

import app as reference
from mailer.smtpd.inbox import Inbox
from mailer.web.inbox import make_inbox_blueprint


def create_app(config: Mapping[str, Any] | None = None) -> Flask:
    app = reference.create_app(config)
    folder = app.config.get("MAILER_INBOX_DIR") or os.environ.get("MAILER_INBOX_DIR") or Path(app.instance_path, "inbox")
    app.register_blueprint(make_inbox_blueprint(Inbox(Path(folder)), layout="base.html"), url_prefix="/inbox")
    app.config["PAGES"] |= {"Inbox": "inbox.index"}
    return app
