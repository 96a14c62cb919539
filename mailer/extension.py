"""`Mailer`: the entry point of an application."""

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeVar, Unpack, overload

import flask_mail
from flask import Flask, has_app_context

from mailer.background import BackgroundFunction
from mailer.bulk import Bulk
from mailer.errors import ConfigurationError
from mailer.intake import Addresses, Options
from mailer.intake.arguments import Undo, When
from mailer.intake.bulk import BulkMail, BulkOptions
from mailer.intake.bulk_arguments import BulkArguments
from mailer.intake.content import Content
from mailer.mail import set_up
from mailer.mail_operations import MailOperations
from mailer.message import AddressLike, Attachment, Lane, OnDoubt, Receipt
from mailer.message.bulk import BulkProgress, Rehearsal
from mailer.message.calendar import Calendar
from mailer.store import CallersConnection
from mailer.wiring import State, state_of

#: In `app.extensions`, if a `Mailer` was initialised: a second one may be a mistake.
_OWNER = "mailer.owner"

#: The ends of errors: methods of `Mail` that are not here.
_INSTEAD_OF_MAIL = {
    "send": ": Mailer has enqueue(message), and send(message) is a method of Mail.",
    "send_message": ": Mailer has send_email(to, subject, template), and send_message() is a method"
    " of Mail.",
    "connect": ": call enqueue(message) for each message. connect() is a method of Mail.",
    "record_messages": ": that is a method of Mail; tests of a Mailer have the fixture outbox.",
}

P = ParamSpec("P")
R = TypeVar("R")


class Mailer(MailOperations):
    """The email queue of a Flask app: it queues mails, and finds, cancels and retries them.

    One object serves any number of apps. Its methods need an app context, as a request has one;
    outside of any, `Mailer(app)` uses its app.

    >>> from flask import Flask
    >>> app = Flask("shop")
    >>> app.config["MAIL_DEFAULT_SENDER"] = "Shop <shop@example.com>"
    >>> mailer = Mailer(app)
    >>> @app.post("/orders")
    ... def order():
    ...     receipt = mailer.send_email("ada@example.com", "Your order", "mail/order", number=42)
    ...     return {"mail": receipt.id}, 202

    Args:
        app: The app to initialise, and to use outside of any app context: in one, it is the current
            app that counts. Without it, call `init_app()`.
    """

    def __init__(self, app: Flask | None = None) -> None:
        self._app = app
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Check the settings, and give the app its queue, its Celery app and `flask mail`.

        A Celery app that is in `app.extensions["celery"]` already is used as it is. If a `Mail`
        was there first, the two share one queue.

        >>> from flask import Flask
        >>> mailer = Mailer()
        >>> def create_app():
        ...     app = Flask("shop")
        ...     app.config.from_prefixed_env()
        ...     mailer.init_app(app)
        ...     return app
        >>> celery = create_app().extensions["celery"]

        Raises:
            ConfigurationError: A setting can't be used, or the app has its Mailer already.
        """
        if app.extensions.get(_OWNER):
            raise ConfigurationError(
                "This app has its Mailer already: use that one, and call init_app() once."
            )
        set_up(app)
        app.extensions[_OWNER] = True

    def send_email(
        self,
        to: Addresses,
        subject: str,
        template: str | None = None,
        *,
        text: str | None = None,
        html: str | None = None,
        cc: Addresses = None,
        bcc: Addresses = None,
        reply_to: Addresses = None,
        sender: AddressLike | None = None,
        attachments: Iterable[Attachment | flask_mail.Attachment] = (),
        headers: Mapping[str, str | None] | None = None,
        lane: Lane | str = Lane.NORMAL,
        tenant: str | None = None,
        send_at: When = None,
        undo: Undo = None,
        expires_at: When = None,
        on_doubt: OnDoubt | str = OnDoubt.RESEND,
        sensitive: bool = False,
        tags: Iterable[str] = (),
        metadata: Mapping[str, str] | None = None,
        idempotency_key: str | None = None,
        connection: CallersConnection | None = None,
        context: Mapping[str, Any] | None = None,
        **more_context: Any,
    ) -> Receipt:
        """Render `<template>.txt` and `<template>.html`, and queue the mail.

        When the call returns, the mail is on disk. One of the two templates is enough.

        >>> receipt = mailer.send_email("ada@example.com", "Welcome", "mail/welcome", name="Ada")

        A mail without a template is given as `text`, `html` or both.

        >>> receipt = mailer.send_email(
        ...     "ada@example.com", "Welcome", text="Hello Ada!", html="<p>Hello <b>Ada</b>!</p>"
        ... )

        The mail becomes part of your transaction with `connection`, and is queued once with
        `idempotency_key`, however often the call is repeated.

        >>> receipt = mailer.send_email(
        ...     ["ada@example.com", "Bob <bob@example.com>"],
        ...     "Your order",
        ...     "mail/order",
        ...     number=42,
        ...     connection=db.session,
        ...     idempotency_key="order-42-confirmed",
        ... )
        >>> db.session.commit()

        Args:
            to: An address, such as `"Ada <ada@example.com>"` or an `Address`, or several of them.
            subject: The subject. `MAILER_SUBJECT_PREFIX` comes before it.
            template: The name of the templates, without `.txt` and `.html`.
            text: The text of a mail without a template.
            html: Its html. Without `text`, the text is made from it.
            cc: Recipients whom the header `Cc` names.
            bcc: Recipients whom no header names.
            reply_to: The addresses that replies go to.
            sender: The address in `From`, if it is not `MAIL_DEFAULT_SENDER`.
            attachments: Files and inline images.
            headers: More headers, such as `{"List-Id": "news.example.com"}`. With None instead of a
                value, the mail does not get that one of `MAILER_MACHINE_HEADERS`.
            lane: `"critical"`, `"normal"` or `"bulk"`: urgent mail is delivered first.
            tenant: Whose mail it is, if you send for several: a name or an id. Tenants take turns.
            send_at: The earliest time of delivery: a `timedelta`, or a `datetime` with a time zone.
            undo: The seconds, or a `timedelta`, before which the mail is not sent, so that
                `cancel()` succeeds. 0: none. The default is `MAILER_UNDO_SECONDS`, but not in the
                lane `critical` or with `send_at`.
            expires_at: The time after which the mail is not sent any more, given like `send_at`.
            on_doubt: `"resend"` or `"hold"`: the action if the relay's last reply is lost.
            sensitive: Whether to erase the content as soon as the mail is finished.
            tags: Words to find the mail by.
            metadata: Texts of your own that `status()` and signals return: `{"order": "42"}`.
            idempotency_key: A name for this mail. The same call with it returns the first receipt.
            connection: A `Session` or `Connection` of SQLAlchemy, or `db.session`: its commit
                queues the mail.
            context: Variables of the templates, also those that are named like an argument.
            **more_context: Variables of the templates. One that no template uses, and whose name is
                almost that of an argument, is refused.

        Returns:
            The receipt, whose `id` is for `status()`.

        Raises:
            InvalidMail: The call is wrong. Nothing is queued.
            StoreUnavailable: The database does not answer. Nothing is queued, unless it is a
                `CommitLost`.
            ConfigurationError: There is no sender, or no Mailer in the app.
        """
        return self._state().intake.send_email(
            to,
            subject,
            Content(
                template=template, text=text, html=html, context=context, keywords=more_context
            ),
            cc=cc,
            bcc=bcc,
            reply_to=reply_to,
            sender=sender,
            attachments=attachments,
            headers=headers,
            options=Options(
                lane=lane,
                tenant=tenant,
                send_at=send_at,
                undo=undo,
                expires_at=expires_at,
                on_doubt=on_doubt,
                sensitive=sensitive,
                tags=tags,
                metadata=metadata,
                idempotency_key=idempotency_key,
                connection=connection,
            ),
        )

    def enqueue(
        self,
        message: flask_mail.Message,
        *,
        lane: Lane | str = Lane.NORMAL,
        tenant: str | None = None,
        send_at: When = None,
        undo: Undo = None,
        expires_at: When = None,
        on_doubt: OnDoubt | str = OnDoubt.RESEND,
        sensitive: bool = False,
        tags: Iterable[str] = (),
        metadata: Mapping[str, str] | None = None,
        idempotency_key: str | None = None,
        connection: CallersConnection | None = None,
    ) -> Receipt:
        """Queue a message of Flask-Mail as it is. If it has no `date`, that is set.

        The options, the receipt and the errors are those of `send_email()`.

        >>> message = Message("Welcome", ["ada@example.com"], "Hello Ada!")
        >>> receipt = mailer.enqueue(message, lane="bulk", tags=["welcome"])
        """
        options = Options(
            lane=lane,
            tenant=tenant,
            send_at=send_at,
            undo=undo,
            expires_at=expires_at,
            on_doubt=on_doubt,
            sensitive=sensitive,
            tags=tags,
            metadata=metadata,
            idempotency_key=idempotency_key,
            connection=connection,
        )
        return self._state().intake.enqueue(message, options)

    @overload
    def send_bulk(
        self,
        subject: str,
        template: str,
        recipients: Iterable[object],
        *,
        dry_run: Literal[False] = False,
        **options: Unpack[BulkArguments],
    ) -> Bulk: ...

    @overload
    def send_bulk(
        self,
        subject: str,
        template: str,
        recipients: Iterable[object],
        *,
        dry_run: Literal[True],
        **options: Unpack[BulkArguments],
    ) -> Rehearsal: ...

    def send_bulk(
        self,
        subject: str,
        template: str,
        recipients: Iterable[object],
        *,
        shared: Mapping[str, Any] | None = None,
        locales: Collection[str] = (),
        sender: AddressLike | None = None,
        reply_to: Addresses = None,
        attachments: Iterable[Attachment | flask_mail.Attachment] = (),
        headers: Mapping[str, str | None] | None = None,
        lane: Lane | str = Lane.BULK,
        tenant: str | None = None,
        send_at: When = None,
        undo: Undo = None,
        calendar: Calendar | None = None,
        expires_at: When = None,
        on_doubt: OnDoubt | str = OnDoubt.RESEND,
        tags: Iterable[str] = (),
        metadata: Mapping[str, str] | None = None,
        idempotency_key: str | None = None,
        on_error: str = "skip",
        start: str = "complete",
        progress: Callable[[BulkProgress], object] | None = None,
        require_confirmation_above: int | None = None,
        max_failed_share: float = 0.5,
        dry_run: bool = False,
    ) -> Bulk | Rehearsal:
        """Queue one mail for each recipient, each with a context of its own.

        The recipients are stored as they are read, in flat memory, each address once. The templates
        are stored as they are now; the subject is a template, too. Workers render the mails in a
        sandbox. Nothing is sent before all recipients are stored.

        >>> readers = [("ada@example.com", {"name": "Ada"}), ("bob@example.com", {"name": "Bob"})]
        >>> bulk = mailer.send_bulk("News for {{ name }}", "mail/news", readers)
        >>> bulk.progress().accepted
        2

        With an `idempotency_key`, a call that was interrupted can be repeated: it goes on with the
        rows that are missing.

        Args:
            subject: The subject, a template.
            template: The name of the templates, without `.txt` and `.html`. A recipient with a
                locale gets `<template>.<locale>.txt` and `.html`, if there are such templates.
            recipients: An iterable of `(address, context)`, or of dicts with the column `email`. Of
                a dict, `locale`, `headers` and `recipient_name` are no variables of the template.
            shared: Variables that all mails have in common.
            locales: Locales of templates, if the app's loader can't list its templates.
            sender: The address in `From`, if it is not `MAIL_DEFAULT_SENDER`.
            reply_to: The addresses that replies go to.
            attachments: Files that each mail carries. They are stored once.
            headers: More headers of each mail, given like those of `send_email()`.
            lane: The lane.
            tenant: Whose mail it is, if you send for several.
            send_at: The earliest time of delivery: a `timedelta`, or a `datetime` with a time zone.
            undo: The seconds, or a `timedelta`, for which nothing is sent once all recipients are
                stored, so that `cancel()` takes back all of it.
            calendar: The days and hours in which mail is sent. A recipient whose row has a
                `time_zone` gets it in the hours of that zone.
            expires_at: The time after which no mail is sent any more, given like `send_at`.
            on_doubt: `"resend"` or `"hold"`: the action if the relay's last reply is lost.
            tags: Words to find the send by.
            metadata: Texts of your own that signals return.
            idempotency_key: A name for this send.
            on_error: `"skip"`: rows that can't be used are left out, and listed by `errors()`.
                `"abort"`: the first one ends the call, and nothing is sent.
            start: `"complete"`: delivery begins once all recipients are stored. `"streaming"`: at
                once.
            progress: A function that is called with the progress each time that rows were stored,
                a thousand at most.
            require_confirmation_above: Hold the send for `confirm()` if it has more recipients.
            max_failed_share: Pause the send if more than this share of its mail fails.
            dry_run: Rehearse the send: render each mail, and return a `Rehearsal` with the errors,
                the sizes, three mails and the time that it would take. Nothing is stored or sent.

        Raises:
            InvalidMail: The call is wrong, and nothing is queued. `BadRow` names the row.
            StoreUnavailable: The database does not answer. Repeat the call with its key.
        """
        state = self._state()
        mail = BulkMail(
            subject=subject,
            template=template,
            shared=shared,
            locales=locales,
            sender=sender,
            reply_to=reply_to,
            attachments=attachments,
            headers=headers,
        )
        options = Options(
            lane=lane,
            tenant=tenant,
            send_at=send_at,
            undo=undo,
            expires_at=expires_at,
            on_doubt=on_doubt,
            tags=tags,
            metadata=metadata,
            idempotency_key=idempotency_key,
        )
        bulk = BulkOptions(
            on_error=on_error,
            start=start,
            progress=progress,
            require_confirmation_above=require_confirmation_above,
            max_failed_share=max_failed_share,
            calendar=calendar,
        )
        if dry_run:
            return state.intake.rehearse_bulk(mail, recipients, options, bulk)
        bulk_id = state.intake.send_bulk(mail, recipients, options, bulk)
        return state.operations.bulk(bulk_id)

    @overload
    def background(self, function: Callable[P, R], /) -> BackgroundFunction[P, R]: ...

    @overload
    def background(
        self, function: None = None, /, *, name: str | None = None, **options: Any
    ) -> Callable[[Callable[P, R]], BackgroundFunction[P, R]]: ...

    def background(
        self, function: Callable[P, R] | None = None, /, *, name: str | None = None, **options: Any
    ) -> BackgroundFunction[P, R] | Callable[[Callable[P, R]], BackgroundFunction[P, R]]:
        """Decorate a function of the application that workers run, in an app context.

        A call of the function queues it, as `delay()` does, and returns Celery's result.
        `apply_async()` takes Celery's options, and `run()` calls the function itself. It is an
        ordinary task of the application's Celery app: if Redis loses the call, or the worker dies,
        the call is lost. With `TESTING` it runs at once, unless `MAIL_SUPPRESS_SEND` is False.

        >>> @mailer.background
        ... def resize(path, width=200):
        ...     print("resized", path, "to", width)
        >>> result = resize("ada.png", width=100)
        resized ada.png to 100

        With options:

        >>> @mailer.background(queue="slow", time_limit=600, autoretry_for=[OSError])
        ... def make_report(year):
        ...     return f"report of {year}"

        Args:
            function: The function. Its arguments must be texts, numbers, dates, and lists and
                dicts of them.
            name: The name of the task, if it is not that of the function with its module.
            **options: Options of a Celery task.

        Raises:
            InvalidArgument: This can't be a function for workers. A call raises it for an argument
                that can't be sent to one.
            TypeError: A call has arguments that do not fit the function.
            BrokerUnavailable: The broker does not answer a call, which is not queued.
            ConfigurationError: A call is in an app without Mailer, or one that was given another
                Celery app since.
        """

        def decorate(function: Callable[P, R]) -> BackgroundFunction[P, R]:
            return BackgroundFunction(function, self._state, name, options)

        return decorate if function is None else decorate(function)

    if not TYPE_CHECKING:  # a type checker would take every name for an attribute

        def __getattr__(self, name: str) -> Any:
            """Raise `AttributeError`, for a method of `Mail` with the one to call instead."""
            raise AttributeError(
                f"{type(self).__name__!r} object has no attribute {name!r}"
                f"{_INSTEAD_OF_MAIL.get(name, '')}",
                name=name,
                obj=self,
            )

    def _state(self) -> State:
        """Return the objects of the current app, or outside of an app context those of our own."""
        return state_of(None if has_app_context() else self._app)
