"""The application of the tests: an ordinary Flask app that uses Mailer."""

from collections.abc import Mapping
from pathlib import Path

from flask import Flask, current_app

from mailer import Mailer


def create_app(config: Mapping[str, object]) -> Flask:
    app = Flask(__name__)
    app.config.from_mapping(config)
    Mailer(app)
    return app


@Mailer().background
def write_note(path: str, text: str) -> None:
    """Write a file that names the app."""
    Path(path).write_text(f"{current_app.import_name}: {text}", encoding="utf-8")
