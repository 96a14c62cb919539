"""Checks that a worker starts with the Celery app that delivers the mail of a Flask app."""

from logging import Logger
from typing import Any

import click
from celery import Celery, signals
from flask import Flask

from mailer.logs import get_logger

log: Logger = get_logger(__name__)


class CeleryCheck:
    """The check for a Celery app that was put into the Flask app after Mailer was set up."""

    def __init__(self, app: Flask, celery: Celery[Any]) -> None:
        self._extensions = app.extensions
        self._celery = celery
        signals.worker_init.connect(self._tell_worker)  # a weak reference

    def objection(self) -> str | None:
        """Return the mistake and its remedy, or None."""
        if self._extensions.get("celery") is self._celery:
            return None
        return (
            "app.extensions['celery'] was set after Mailer(app), so the workers of that Celery app"
            " deliver no mail. Set it before Mailer(app) or init_app()."
        )

    def _tell_worker(self, sender: Any = None, **_signal: Any) -> None:
        starting = getattr(sender, "app", None)
        is_ours = starting is self._extensions.get("celery")
        if is_ours and starting is not self._celery and (objection := self.objection()):
            log.error("This worker delivers no mail. %s", objection)


def refuse_as_celery(app: Flask) -> None:
    """Let the command `celery -A worker` end with the remedy if it takes the Flask app for its own.

    Celery takes the object named `app` of the module, and first reads its `user_options`.
    """
    vars(app)["user_options"] = _Refusal(app.import_name)


class _Refusal:
    """The `user_options` of a Flask app, which only the command `celery` reads."""

    def __init__(self, name: str) -> None:
        self._name = name

    def get(self, *_arguments: object) -> None:
        raise click.UsageError(
            f"Celery took the Flask app {self._name!r}, since it is named 'app' in the module after"
            " -A. In that module, give the Flask app another name, and the Celery app its own:"
            " 'from app import app as flask_app', then 'celery ="
            ' flask_app.extensions["celery"]\'.'
        )
