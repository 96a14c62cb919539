"""`Mailer`: the only place that wires. Its objects belong to the app: `app.extensions["mailer"]`."""

import os
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import flask_mail
from flask import Flask, current_app
from sqlalchemy import make_url

from mailer.attendance import Watch
from mailer.cli import mail_group
from mailer.clock import SystemClock
from mailer.dropin import QueueConnection, QueueState, flask_mail_state
from mailer.errors import ConfigurationError, InvalidMail
from mailer.intake import Addresses, Intake, Options, When
from mailer.logs import get_logger
from mailer.message import AddressLike, Attachment, Lane, MailStatus, OnDoubt, Receipt, Status
from mailer.message.ports import Clock
from mailer.mime import make_signer
from mailer.operations import Operations
from mailer.outbound import InlineBell, Outbound
from mailer.rendering import Renderer
from mailer.schema.autogenerate import register_if_needed
from mailer.settings import Settings, database
from mailer.signals import SignalOutlet
from mailer.store import CallersConnection, Store
from mailer.store.leftover import warn_of_leftover

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class State:
    """The objects of one app."""

    settings: Settings
    store: Store
    intake: Intake
    operations: Operations
    outbound: Outbound
    mail: QueueState  #: `app.extensions["mail"]`
    celery_check: object  #: kept here, since Celery's signal has a weak reference


class Mailer:
    """The extension. It keeps nothing of its own, so that one object serves any number of apps."""

    def __init__(self, app: Flask | None = None) -> None:
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Check the settings, and give the app its queue, its Celery app and `flask mail`."""
        if "mailer" in app.extensions:
            raise ConfigurationError(
                "This app has its Mailer already: use that one, and call init_app() once."
            )
        state = app.extensions["mailer"] = _set_up(app)
        state.mail.take_place(app)
        app.cli.add_command(mail_group)
        _tell_where_mail_is_kept(app, state.settings)
        register_if_needed()

    def send_email(
        self,
        to: Addresses,
        subject: str,
        template: str,
        *,
        cc: Addresses = None,
        bcc: Addresses = None,
        reply_to: Addresses = None,
        sender: AddressLike | None = None,
        attachments: Iterable[Attachment | flask_mail.Attachment] = (),
        headers: Mapping[str, str] | None = None,
        lane: Lane | str = Lane.NORMAL,
        send_at: When = None,
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
        """Render `<template>.txt` and `<template>.html` with the context, and queue the mail.

        When this returns, the mail is on disk. Whatever is wrong with it raises `InvalidMail` here,
        and nothing is stored. With an `idempotency_key`, the same call again queues nothing and
        returns the first receipt; `KeyReused` if it says something else. With a `connection` (a
        `Session` or `Connection` of SQLAlchemy, or `db.session`) the mail is part of that
        transaction: it goes out when that is committed. A template variable that has the name of an
        argument goes into `context={…}`. A keyword that no template uses and that is nearly an
        option, or the name of one elsewhere (`attachment`, `body`), is refused.
        """
        if not isinstance(context or {}, Mapping):
            raise InvalidMail(
                f"context: give a dict of template variables, not {type(context).__name__}."
            )
        intake = _state().intake
        if more_context:
            intake.check_keywords(template, more_context)
        return intake.send_email(
            to,
            subject,
            template,
            {**(context or {}), **more_context},
            cc=cc,
            bcc=bcc,
            reply_to=reply_to,
            sender=sender,
            attachments=attachments,
            headers=headers,
            options=Options(
                lane=lane,
                send_at=send_at,
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
        send_at: When = None,
        expires_at: When = None,
        on_doubt: OnDoubt | str = OnDoubt.RESEND,
        sensitive: bool = False,
        tags: Iterable[str] = (),
        metadata: Mapping[str, str] | None = None,
        idempotency_key: str | None = None,
        connection: CallersConnection | None = None,
    ) -> Receipt:
        """Queue a message of Flask-Mail as it is; `idempotency_key`, `connection` and `sensitive` are those of `send_email()`."""
        options = Options(
            lane=lane,
            send_at=send_at,
            expires_at=expires_at,
            on_doubt=on_doubt,
            sensitive=sensitive,
            tags=tags,
            metadata=metadata,
            idempotency_key=idempotency_key,
            connection=connection,
        )
        return _state().intake.enqueue(message, options)

    # --- operations ------------------------------------------------------------------------------

    def status(self, mail_id: str | Receipt) -> MailStatus:
        """Return how a mail is doing.

        Raise `UnknownMail` unless this is its whole id, or its receipt.
        """
        return _state().operations.status(mail_id)

    def statuses(self, mail_ids: Collection[str | Receipt]) -> dict[str, MailStatus]:
        """Return how mails are doing, by id. Unknown ids are left out."""
        return _state().operations.statuses(mail_ids)

    def mails(
        self,
        *,
        state: Status | str | None = None,
        to: str | None = None,
        tag: str | None = None,
        subject: str | None = None,
        relay: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        before: str | Receipt | None = None,
        limit: int = 50,
    ) -> list[MailStatus]:
        """Return the newest mails of which one delivery meets all conditions.

        `to` is an address, or a domain such as `@example.com`; `subject` is a part of the subject.
        `since` and `until` bound the time at which a mail was queued. For the next page, pass the
        id of the last mail as `before`:

            page = mailer.mails(state="failed", tag="invoice")
            next_page = mailer.mails(state="failed", tag="invoice", before=page[-1].id)

        """
        return _state().operations.mails(
            state=state,
            to=to,
            tag=tag,
            subject=subject,
            relay=relay,
            since=since,
            until=until,
            before=before,
            limit=limit,
        )

    def cancel(self, mail_id: str | Receipt, *, to: str | None = None) -> bool:
        """Cancel the deliveries of a mail that are still queued, or the one to a recipient.

        Return whether there was any. Raise `UnknownMail` as `status()` does.
        """
        return _state().operations.cancel(mail_id, to=to) > 0

    def retry(self, mail_id: str | Receipt, *, to: str | None = None) -> bool:
        """Queue again the failed and doubtful deliveries of a mail, or the one to a recipient.

        Return False if there is none, or if the content of the mail is erased. A mail whose
        `expires_at` is over expires instead of being sent.
        """
        return _state().operations.retry(mail_id, to=to) > 0

    def resolve(self, mail_id: str | Receipt, verdict: str, *, to: str | None = None) -> bool:
        """Decide about the doubtful deliveries of a mail: `"sent"` or `"failed"`.

        Return whether there was any.
        """
        return _state().operations.resolve(mail_id, verdict, to=to) > 0

    def pause(self, lane: Lane | str | None = None, *, reason: str = "by hand") -> int:
        """Let nothing of a lane be sent, or nothing at all, until `resume()`.

        Mail is queued as ever.

        Return the number of deliveries that workers have claimed already, and may still send.

        """
        return _state().operations.pause(lane, reason=reason)

    def resume(self, lane: Lane | str | None = None, *, relay: str | None = None) -> bool:
        """End the pause of a lane, of a relay, or, with neither, of everything.

        Return whether there was one.
        """
        return _state().operations.resume(lane, relay=relay)

    def absence(self) -> str | None:
        """Return "12 mails are due and no worker has been seen for 4 minutes.", or None: for a health check."""
        return _state().operations.absence()


class Mail(flask_mail.Mail):
    """Drop-in for `flask_mail.Mail`: `mail.send(message)` queues, nothing else changes."""

    def init_app(self, app: Flask) -> flask_mail._Mail:
        """Give the app its queue, if it has none yet."""
        if "mailer" not in app.extensions:
            Mailer(app)
        return _state(app).mail

    def send(self, message: flask_mail.Message) -> None:
        """Queue the message."""
        _state(self.app).mail.send(message)

    def connect(self) -> QueueConnection:
        """For `with mail.connect() as connection: connection.send(message)`: each message is queued."""
        return _state(self.app).mail.connect()


def _state(app: Flask | None = None) -> State:
    try:
        state: State = (app or current_app).extensions["mailer"]
    except KeyError:
        raise ConfigurationError(
            "This app has no Mailer: call Mailer().init_app(app) where the app is made."
        ) from None
    return state


def _set_up(app: Flask) -> State:
    """Wire Mailer into the app.

    Only the objects for queueing are built here: the outbound side waits until it is used.
    """
    # Celery and the client of Redis take 12 MB: a process that only imports us has no use for them.
    import mailer.tasks  # noqa: F401, PLC0415 -- registers the tasks with every Celery app
    from mailer.celery.app import broker_of, install, make_celery  # noqa: PLC0415
    from mailer.celery.bell import CeleryBell  # noqa: PLC0415
    from mailer.celery.check import CeleryCheck  # noqa: PLC0415

    settings = _load_settings(app, broker_of(app.extensions.get("celery")))
    make_signer(settings.dkim_keys)  # refuses keys that can't sign before the app takes any mail
    if "celery" not in app.extensions:
        app.extensions["celery"] = make_celery(app, settings)
    celery = app.extensions["celery"]
    clock = SystemClock()
    outlet = SignalOutlet(app, clock, inline=settings.mail_suppress_send)
    store = Store(settings.database_url, pgbouncer=settings.pgbouncer, outlet=outlet)
    bell = InlineBell() if settings.mail_suppress_send else CeleryBell(celery, settings, clock)
    outbound = Outbound(app, settings, store, bell, clock)
    if isinstance(bell, InlineBell):
        bell.outbound = outbound
    install(celery, outbound)
    check = CeleryCheck(app, celery)
    watch = _watch(settings, store, check.objection, clock)
    intake = Intake(settings, store, Renderer(app), bell, clock, watch)
    return State(
        settings,
        store,
        intake,
        Operations(settings, store, clock),
        outbound,
        QueueState(flask_mail_state(settings), intake),
        check,
    )


def _load_settings(app: Flask, broker_url: str | None) -> Settings:
    folder = app.instance_path
    default = database.default_url(app.config, folder)
    return Settings.load(
        app.config, os.environ, default_database_url=default, folder=folder, broker_url=broker_url
    )


def _watch(
    settings: Settings, store: Store, objection: Callable[[], str | None], clock: Clock
) -> Watch | None:
    """Return the watch that looks for workers; None where there can be none."""
    if settings.mail_suppress_send or database.is_in_memory(make_url(settings.database_url)):
        return None
    return Watch(store, objection, clock, shown=settings.log_addresses)


def _tell_where_mail_is_kept(app: Flask, settings: Settings) -> None:
    """Log the database once at start, and warn of unfinished mail in the files that would have been used otherwise."""
    url = make_url(settings.database_url)
    used = database.shown(settings.database_url)
    log.info("Mail is kept in %s (%s)", used, database.source(app.config, os.environ))
    if database.is_in_memory(url):
        return
    others = [database.default_file(app.instance_path)]
    given = app.config.get("MAILER_DATABASE_URL", os.environ.get("MAILER_DATABASE_URL"))
    if given and (file := database.file_of(make_url(given))) is not None:
        others.append(file)  # a relative path was relative to the working directory once
    for other in others:
        if other.absolute() != database.file_of(url):
            warn_of_leftover(other, used)
