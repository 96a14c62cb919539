"""The drop-in for `app.extensions["mail"]`: an object like Flask-Mail's, whose mail is queued.

Other extensions send through it (`current_app.extensions["mail"].send(message)`), so it must be the
queue. What relays are configured with is a plain state of Flask-Mail's, which nobody else sees.
"""

from typing import Any, Self

import flask_mail
from flask import Flask, appcontext_pushed

from mailer.intake import Intake, Options
from mailer.logs import get_logger
from mailer.settings import Settings, keys

log = get_logger(__name__)


class QueueState(flask_mail._Mail):  # noqa: SLF001 -- Flask-Mail documents no other name of its state
    """The settings of Flask-Mail for one app, and its ways of sending, which all queue."""

    def __init__(self, plain: flask_mail._Mail, intake: Intake) -> None:
        vars(self).update(vars(plain))
        self._intake = intake

    def send(self, message: flask_mail.Message) -> None:
        """Queue the message."""
        self._intake.enqueue(message, Options())

    def connect(self) -> "QueueConnection":
        """Return an object like a connection to the relay, whose `send()` queues."""
        return QueueConnection(self, self._intake)

    # --- its place -------------------------------------------------------------------------------

    def take_place(self, app: Flask) -> None:
        """Be `app.extensions["mail"]`, also after a plain Flask-Mail was set up on the same app."""
        if "mail" in app.extensions:
            log.warning(
                "%s: flask_mail.Mail was set up before Mailer: what is sent by that object waits"
                " for the relay and is not queued. Use mailer.Mail instead of flask_mail.Mail, or"
                " app.extensions['mail'].",
                app.name,
            )
        app.extensions["mail"] = self
        appcontext_pushed.connect(self._keep_place, sender=app)

    def _keep_place(self, app: Flask, **_signal: Any) -> None:
        """Replace a plain Flask-Mail that took our place. Leave the objects of tests there."""
        if type(app.extensions.get("mail")) is not flask_mail._Mail:  # noqa: SLF001 -- see above
            return
        app.extensions["mail"] = self
        log.warning(
            "%s: flask_mail.Mail was set up after Mailer, and took the place of"
            " app.extensions['mail']; Mailer has put the queue back there. What is sent by that"
            " flask_mail.Mail itself waits for the relay and is not queued: use mailer.Mail"
            " instead.",
            app.name,
        )


class QueueConnection(flask_mail.Connection):
    """An object like a connection to the relay, whose mail is queued."""

    mail: Any

    def __init__(self, state: QueueState, intake: Intake) -> None:
        super().__init__(state)  # type: ignore[arg-type]  # annotated as Mail, used as its state
        self._intake = intake

    def __enter__(self) -> Self:
        self.num_emails = 0
        return self

    def __exit__(self, *_exception: object) -> None:
        pass

    def send(
        self, message: flask_mail.Message, envelope_from: str | tuple[str, str] | None = None
    ) -> None:
        """Queue the message."""
        self._intake.enqueue(message, Options(), envelope_from=envelope_from)
        self.num_emails += 1


def flask_mail_state(settings: Settings) -> flask_mail._Mail:
    """Return the state that Flask-Mail's own connections look for, made of the checked settings."""
    values = {
        key: getattr(settings, name) for key, name in keys().items() if key.startswith("MAIL_")
    }
    return flask_mail.Mail().init_mail(values)
