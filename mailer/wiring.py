"""The wiring of an app: its objects are built and connected here.

They belong to the app, as `app.extensions["mailer"]`. Those that deliver its mail are built by
`delivery/wiring.py`, when they are needed.
"""

import itertools
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from logging import Logger
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from flask import Flask, current_app
from sqlalchemy import make_url

from mailer.attendance import Watch
from mailer.clock import AppClock
from mailer.content import Renderer
from mailer.dropin import QueueState, flask_mail_state
from mailer.errors import ConfigurationError
from mailer.intake import Intake
from mailer.logs import get_logger
from mailer.message.ports import Clock
from mailer.mime import make_signer
from mailer.operations import Operations
from mailer.outbound import InlineBell, Outbound
from mailer.settings import Settings, database
from mailer.signals import SignalOutlet
from mailer.store import Store
from mailer.store.leftover import warn_of_leftover

if TYPE_CHECKING:
    from celery import Celery

    from mailer.celery.check import CeleryCheck

log: Logger = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class State:
    """The objects of one app."""

    settings: Settings
    clock: AppClock
    outlet: SignalOutlet
    store: Store
    intake: Intake
    inline: InlineBell
    operations: Operations
    outbound: Outbound
    mail: QueueState  #: `app.extensions["mail"]`
    celery: "Celery[Any]"
    celery_check: "CeleryCheck"  #: kept here, since Celery's signal has a weak reference
    #: The configuration that the settings were made of. It has passwords.
    config: Mapping[str, Any] = field(repr=False)


def state_of(app: Flask | None = None) -> State:
    """Return the objects of an app, or of the current app."""
    app = app or current_app
    try:
        state: State = app.extensions["mailer"]
    except KeyError:
        raise ConfigurationError(
            f"The app {app.import_name!r} has no Mailer. Where it is made, write `from mailer"
            " import Mailer` and `Mailer(app)`, or in a factory mailer.init_app(app); `flask mail"
            " init` shows how, and writes what the workers need."
        ) from None
    return state


# The apps with a Mailer, in the order in which they got it.
_apps: WeakValueDictionary[int, Flask] = WeakValueDictionary()
_numbers = itertools.count()


def newest_app() -> Flask | None:
    """Return the app that got its Mailer last, for code that has no app context."""
    made = [app for app in list(_apps.values()) if "mailer" in app.extensions]
    return made[-1] if made else None


def wire(app: Flask) -> State:
    """Build the objects of an app, and give it a Celery app if it has none.

    Only the objects for queueing are built here: the outbound side waits until it is used.
    """
    # Celery and the client of Redis take 12 MB: a process that only imports us has no use for them.
    import mailer.tasks  # noqa: F401, PLC0415 -- registers the tasks with every Celery app
    from mailer.celery.app import broker_of, install, make_celery  # noqa: PLC0415
    from mailer.celery.bell import CeleryBell  # noqa: PLC0415
    from mailer.celery.check import CeleryCheck, refuse_as_celery  # noqa: PLC0415

    settings = _load_settings(app, broker_of(app.extensions.get("celery")))
    make_signer(settings.dkim_keys)  # refuses keys that can't sign before the app takes any mail
    if "celery" not in app.extensions:
        app.extensions["celery"] = make_celery(app, settings)
    celery = app.extensions["celery"]
    clock = AppClock()
    outlet = SignalOutlet(app, clock, inline=settings.mail_suppress_send)
    store = Store(
        settings.database_url,
        pgbouncer=settings.pgbouncer,
        outlet=outlet,
        rules=settings.tenant_rules,
    )
    inline = InlineBell()
    bell = inline if settings.mail_suppress_send else CeleryBell(celery, settings, clock, inline)
    outbound = inline.outbound = Outbound(app, settings, store, bell, clock)
    install(celery, outbound)
    refuse_as_celery(app)
    check = CeleryCheck(app, celery)
    watch = _watch(settings, store, check.objection, clock)
    intake = Intake(settings, store, Renderer(app), bell, clock, watch, inline)
    _apps[next(_numbers)] = app
    return State(
        settings=settings,
        clock=clock,
        outlet=outlet,
        store=store,
        intake=intake,
        inline=inline,
        operations=Operations(settings, store, clock),
        outbound=outbound,
        mail=QueueState(flask_mail_state(settings), intake),
        celery=celery,
        celery_check=check,
        config=_configuration(app),
    )


def refuse_changes(app: Flask) -> None:
    """Raise `ConfigurationError` if the configuration was changed since the app was wired."""
    before, now = state_of(app).config, _configuration(app)
    changed = [key for key in sorted({*before, *now}) if before.get(key) != now.get(key)]
    if changed:
        raise ConfigurationError(
            f"{', '.join(changed)}: changed after the first Mail(app) or Mailer(app), which reads"
            " the settings for all of them. Set it before."
        )


def _configuration(app: Flask) -> dict[str, Any]:
    return {
        key: value
        for key, value in app.config.items()
        if key == "TESTING" or key.startswith(("MAIL_", "MAILER_"))
    }


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


def warn_of_gaps(app: Flask, settings: Settings) -> None:
    """Warn at start of settings whose absence some mail would meet later."""
    if settings.mail_suppress_send:
        return
    if database.is_in_memory(make_url(settings.database_url)) and not app.testing:
        log.warning(
            "Mail is kept in the memory of this process, where no worker finds it, and is lost at"
            " its end: MAILER_DATABASE_URL=sqlite:// is for tests. Name a file or a PostgreSQL."
        )
    if settings.mail_default_sender is None:
        log.warning(
            "MAIL_DEFAULT_SENDER is not set: a mail without a sender of its own is refused. Set it,"
            " or pass sender=… in each call."
        )
    for relay in settings.relays:
        if relay.lacks_password and not relay.is_inbox:
            log.warning(
                "MAIL_USERNAME is set without MAIL_PASSWORD: relay=%s. Workers with these settings"
                " do not log in: set both, or neither.",
                relay.name,
            )


def log_database(app: Flask, settings: Settings) -> None:
    """Log the database at start, and warn of unfinished mail in files that are not used now."""
    url = make_url(settings.database_url)
    used = database.shown(settings.database_url)
    log.info(
        "Mail is kept in %s", database.described(settings.database_url, app.config, os.environ)
    )
    if database.is_in_memory(url):
        return
    others = [database.default_file(app.instance_path)]
    given = app.config.get("MAILER_DATABASE_URL", os.environ.get("MAILER_DATABASE_URL"))
    if given and (file := database.file_of(make_url(given))) is not None:
        others.append(file)  # a relative path was relative to the working directory once
    for other in others:
        if other.absolute() != database.file_of(url):
            warn_of_leftover(other, used)
