"""`Mail`: the entry point of an application that has used Flask-Mail."""

from typing import Any, Literal, Never

import flask_mail
from flask import Flask

from mailer.background import install_functions
from mailer.cli import mail_group
from mailer.dropin import QueueConnection, QueueState
from mailer.errors import ConfigurationError
from mailer.intake import Options
from mailer.message import Receipt
from mailer.schema.autogenerate import register_if_needed
from mailer.wiring import State, log_database, refuse_changes, state_of, warn_of_gaps, wire

#: The public methods of `Mailer` that a `Mail` does not have.
_OF_MAILER = frozenset(
    "send_email send_bulk enqueue background bulk bulks status statuses mails cancel retry"
    " reschedule resolve pause resume absence".split()
)


class Mail(flask_mail.Mail):
    """A drop-in for `flask_mail.Mail` that queues each message instead of sending it.

    >>> mail = Mail(app)
    >>> receipt = mail.send(Message("Welcome", ["ada@example.com"], "Hello Ada!"))

    With `when="now"`, `send()` stores the message, and delivers it before it returns. A relay that
    does not take it is no error: the message is kept, and stays queued for the workers if another
    try may help. The receipt leads to the relay's words.

    >>> mail = Mail(app, when="now")
    >>> receipt = mail.send(Message("Welcome", ["ada@example.com"], "Hello Ada!"))
    >>> [delivery.status.value for delivery in mailer.status(receipt)]
    ['sent']

    Args:
        app: The app to initialise. All mail is then queued for it, as in Flask-Mail, whatever the
            current app is. Without it, call `init_app()`, and mail is queued for the current app.
        when: `"queued"`: workers deliver. `"now"`: the calling thread delivers.

    Raises:
        ConfigurationError: `when` is something else, or a setting can't be used.
    """

    def __init__(
        self, app: Flask | None = None, *, when: Literal["queued", "now"] = "queued"
    ) -> None:
        if when not in ("queued", "now"):
            raise ConfigurationError(
                f"Mail(when={when!r}): give 'queued', so that workers deliver, or 'now', so that"
                " send() delivers."
            )
        self._options = Options(inline=when == "now")
        super().__init__(app)

    def init_app(self, app: Flask) -> QueueState:
        """Give the app its queue, if neither a `Mailer` nor a `Mail` has given it one.

        Extensions that send through `app.extensions["mail"]` send like the last `Mail` of the app.

        >>> from flask import Flask
        >>> mail = Mail()
        >>> def create_app():
        ...     app = Flask("shop")
        ...     mail.init_app(app)
        ...     return app
        >>> app = create_app()
        """
        set_up(app)
        state = state_of(app).mail
        state.set_default_options(self._options)
        return state

    def send(  # type: ignore[override]  # returns a receipt instead of None
        self, message: flask_mail.Message, **options: Never
    ) -> Receipt:
        """Queue a message, or deliver it with `when="now"`. Return its receipt.

        It takes no options: `Mailer.enqueue()` does.

        >>> receipt = mail.send(Message("Welcome", ["ada@example.com"], "Hello Ada!"))
        >>> [delivery.recipient for delivery in mailer.status(receipt.id)]
        ['ada@example.com']

        Raises:
            InvalidMail: The message can't be sent as it is. Nothing is queued.
            MissingSender: It has no sender, and there is no default.
            StoreUnavailable: The database does not answer.
            TypeError: An option is given.
        """
        if options:
            given = ", ".join(f"{name}=…" for name in options)
            raise TypeError(
                f"Mail.send(message, {given}): send() takes the message alone. Options are for"
                f" Mailer().enqueue(message, {given}), which works beside a Mail."
            )
        return state_of(self.app).mail.send(message, self._options)

    def send_message(self, *arguments: Any, **named: Any) -> Receipt:  # type: ignore[override]
        """Make a `Message` of the arguments, queue it, and return its receipt.

        >>> receipt = mail.send_message("Welcome", ["ada@example.com"], body="Hello Ada!")
        >>> receipt.recipients
        ('ada@example.com',)
        """
        return self.send(flask_mail.Message(*arguments, **named))

    def connect(self) -> QueueConnection:
        """Return an object like a connection to the relay, whose `send()` queues.

        >>> with mail.connect() as connection:
        ...     for name in ["ada", "bob"]:
        ...         receipt = connection.send(Message("News", [f"{name}@example.com"], "Hello!"))
        """
        return state_of(self.app).mail.connect(self._options)

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the app's state, or else None, as Flask-Mail does.

        Raise `AttributeError` for a method of `Mailer`: a None would be called.
        """
        if name not in _OF_MAILER:
            return super().__getattr__(name)
        imported = "send_email" if name == "send_email" else "Mailer"
        called = "send_email(…)" if name == "send_email" else f"Mailer().{name}"
        raise AttributeError(
            f"Mail has no {name}(): write `from mailer import {imported}` and {called}, which works"
            " beside a Mail.",
            name=name,
            obj=self,
        )


def set_up(app: Flask) -> None:
    """Build the queue of an app, install it and report on it, unless the app has one."""
    if "mailer" in app.extensions:
        refuse_changes(app)
        return
    state = app.extensions["mailer"] = wire(app)
    _install(app, state)
    log_database(app, state.settings)
    warn_of_gaps(app, state.settings)


def _install(app: Flask, state: State) -> None:
    """Let the mail of Flask-Mail, background functions, `flask mail` and Alembic find the queue."""
    state.mail.install(app)
    install_functions(state.celery)
    app.cli.commands.setdefault(str(mail_group.name), mail_group)
    register_if_needed()
