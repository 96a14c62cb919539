"""The drop-in for Flask-Mail: its objects and its ways of sending, whose mail is queued.

Other extensions send through `app.extensions["mail"]`, so that must be the queue. Some make a
`flask_mail.Mail` of their own, as Flask-AppBuilder does for each mail: on an app with a Mailer, its
connection queues as well. Relays are configured with a plain state of Flask-Mail's.
"""

from typing import Any, Self

import flask_mail
from flask import Flask, appcontext_pushed, current_app

from mailer.errors import ConfigurationError
from mailer.intake import Intake, Options
from mailer.message import Receipt
from mailer.settings import Settings, keys

#: The attributes that Flask-Mail's messages look up when they are made and written.
_LIVE = ("default_sender", "ascii_attachments")

# Flask-Mail documents no other name of its state and of what it has in common with Mail.
_PlainState = flask_mail._Mail  # noqa: SLF001
_PlainMixin = flask_mail._MailMixin  # noqa: SLF001
_plain_connect = _PlainMixin.connect


class QueueState(_PlainState):
    """The settings of Flask-Mail for one app, and its ways of sending, which all queue."""

    # So that vars() has Flask-Mail's attributes and no others.
    __slots__ = ("_intake", "_options")
    _intake: Intake
    _options: Options

    def __init__(self, plain: flask_mail._Mail, intake: Intake) -> None:
        vars(self).update(vars(plain))
        self._intake = intake
        self.set_default_options(Options())

    def __setattr__(self, name: str, value: object) -> None:
        """Set an attribute as an application does, in a test for example.

        Raise `ConfigurationError` for one with which the relays are configured: code that counts on
        it, such as `mail.state.suppress = True`, would send.
        """
        if name in _LIVE:
            setattr(self._intake, name, value)
        elif name in vars(self) and vars(self)[name] != value:
            raise ConfigurationError(
                f"app.extensions['mail'].{name} = … has no effect, since the relays are configured"
                f" when the app starts: set {_key_of(name)} before Mail(app)."
            )
        super().__setattr__(name, value)

    def set_default_options(self, options: Options) -> None:
        """Set the options of messages that are sent without any, as by extensions."""
        self._options = options

    def send(  # type: ignore[override]  # not None
        self, message: flask_mail.Message, options: Options | None = None
    ) -> Receipt:
        """Queue the message."""
        return self._intake.enqueue(message, options or self._options)

    def send_message(self, *arguments: Any, **named: Any) -> Receipt:  # type: ignore[override]
        """Make a message of the arguments, and queue it."""
        return self.send(flask_mail.Message(*arguments, **named))

    def connect(self, options: Options | None = None) -> "QueueConnection":
        """Return an object like a connection to the relay, whose `send()` queues."""
        return QueueConnection(self, self._intake, options or self._options)

    # --- its place -------------------------------------------------------------------------------

    def install(self, app: Flask) -> None:
        """Become `app.extensions["mail"]`, and stay it if a plain Flask-Mail is set up later."""
        app.extensions["mail"] = self
        appcontext_pushed.connect(self._keep_place, sender=app)
        _patch_flask_mail()

    def _keep_place(self, app: Flask, **_signal: Any) -> None:
        """Replace the state of a plain Flask-Mail. Leave the objects of tests there."""
        if type(app.extensions.get("mail")) is _PlainState:
            app.extensions["mail"] = self


class QueueConnection(flask_mail.Connection):
    """An object like a connection to the relay, whose mail is queued.

    If the application gives it a `host`, such as a mock, that gets the mail instead.
    """

    mail: Any
    num_emails: int

    def __init__(self, state: QueueState, intake: Intake, options: Options) -> None:
        super().__init__(state)  # type: ignore[arg-type]  # annotated as Mail, used as its state
        self._intake = intake
        self._options = options

    def __enter__(self) -> Self:
        self.num_emails = 0
        return self

    def __exit__(self, *_exception: object) -> None:
        pass

    def send(  # type: ignore[override]  # Flask-Mail's returns None
        self, message: flask_mail.Message, envelope_from: str | tuple[str, str] | None = None
    ) -> Receipt:
        """Queue the message. The receipt of a mail that a `host` got has no id."""
        if self.host is not None:
            super().send(message, envelope_from)
            return Receipt("", message.msgId, tuple(map(str, message.send_to)))
        receipt = self._intake.enqueue(message, self._options, envelope_from=envelope_from)
        self.num_emails += 1
        return receipt

    def send_message(self, *arguments: Any, **named: Any) -> Receipt:  # type: ignore[override]
        """Make a message of the arguments, and queue it."""
        return self.send(flask_mail.Message(*arguments, **named))


def _patch_flask_mail() -> None:
    """Let the objects of Flask-Mail that extensions make queue as well, on apps with a Mailer."""
    _PlainMixin.connect = _connect  # type: ignore[method-assign]


def _connect(self: flask_mail._MailMixin) -> flask_mail.Connection:
    """Return a connection that queues on an app with a Mailer, and else that of Flask-Mail.

    It replaces the method `connect()`, the only one that a `flask_mail.Mail` that sends calls.
    """
    app = getattr(self, "app", None) or current_app
    queue = app.extensions.get("mailer")
    return queue.mail.connect() if queue else _plain_connect(self)


def flask_mail_state(settings: Settings) -> flask_mail._Mail:
    """Return the state that Flask-Mail's own connections look for, made of the checked settings."""
    values = {
        key: getattr(settings, name) for key, name in keys().items() if key.startswith("MAIL_")
    }
    return flask_mail.Mail().init_mail(values)


def _key_of(name: str) -> str:
    """Return the key of a setting: its attribute is named like it but for one."""
    return {"suppress": "MAIL_SUPPRESS_SEND"}.get(name, f"MAIL_{name.upper()}")
