"""Whether the Celery app of a Flask app is still the one that has Mailer's tasks."""

from typing import Any

from celery import Celery, signals
from flask import Flask

from mailer.logs import get_logger

log = get_logger(__name__)


class CeleryCheck:
    """Notices a Celery app that was put into `app.extensions["celery"]` after Mailer was set up: its workers deliver nothing."""

    def __init__(self, app: Flask, celery: Celery[Any]) -> None:
        self._extensions = app.extensions  # not the app, so that nothing keeps it alive
        self._celery = celery
        signals.worker_init.connect(self._tell_worker)  # a weak reference

    def objection(self) -> str | None:
        """Return what is wrong and how to mend it, or None."""
        if self._extensions.get("celery") is self._celery:
            return None
        return (
            "app.extensions['celery'] was set after Mailer(app), so the workers of that Celery app have none of Mailer's tasks:"
            " set it before Mailer(app) or init_app()."
        )

    def _tell_worker(self, sender: Any = None, **_signal: Any) -> None:
        starting = getattr(sender, "app", None)
        if starting is not self._celery and starting is self._extensions.get("celery") and (said := self.objection()):
            log.error("This worker delivers no mail. %s", said)
