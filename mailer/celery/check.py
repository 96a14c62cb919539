"""A check that the Celery app of a Flask app is still the one that delivers its mail."""

from typing import Any

from celery import Celery, signals
from flask import Flask

from mailer.logs import get_logger

log = get_logger(__name__)


class CeleryCheck:
    """The check for a Celery app that was put into the Flask app after Mailer was set up."""

    def __init__(self, app: Flask, celery: Celery[Any]) -> None:
        self._extensions = app.extensions  # not the app, so that nothing keeps it alive
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
