"""The last words of `flask mail init`: the steps that are left for the user."""

import shlex
from collections.abc import Iterator
from importlib.util import find_spec

from flask import Flask

from mailer.cli.app_source import AppSource
from mailer.cli.mail_database import MailDatabase

_FOR_AN_APP = """
       from mailer import Mailer

       mailer = Mailer({name})  # after the configuration of the app
"""
_FOR_A_FACTORY = """
       from mailer import Mailer

       mailer = Mailer()  # beside the other extensions

       mailer.init_app(app)  # in {name}(), after the configuration of the app
"""


def next_steps(source: AppSource, app: Flask | None, worker: str, database: MailDatabase) -> str:
    """Return the steps after `flask mail init`, numbered.

    Args:
        source: The place of the app.
        app: The app itself, or None if it could not be made.
        worker: The name of the worker's module.
        database: The place of the mail in the containers.
    """
    has_own_celery = app is not None and _has_own_celery(app)
    steps = [
        *_set_up(source, app),
        *(_own_celery(app) if app is not None and has_own_celery else ()),
        *filter(None, [database.advice]),
        *_settings(),
        *_start(source, worker, has_own_celery=has_own_celery),
    ]
    numbered = (f"{number}. {step}" for number, step in enumerate(steps, start=1))
    return "\n".join(["Next:", *numbered])


def _set_up(source: AppSource, app: Flask | None) -> Iterator[str]:
    if app is not None and "mailer" in app.extensions:
        return
    if app is not None and "mail" in app.extensions:
        yield (
            "Change `from flask_mail import Mail` to `from mailer import Mail`, so that the app"
            " queues its mail. mail.init_app(app) stays. `flask mail migrate-code` finds the other"
            " places in the project."
        )
        return
    missing = "The app has no Mailer yet" if app is not None else "If the app has no Mailer yet"
    code = _FOR_AN_APP if source.arguments is None else _FOR_A_FACTORY
    yield f"{missing}: set it up in {source.place}:\n{code.format(name=source.name)}"


def _settings() -> Iterator[str]:
    yield "Name the relay and the sender in .env: MAIL_SERVER and MAIL_DEFAULT_SENDER at least."
    if find_spec("dotenv") is None:
        yield (
            "pip install python-dotenv, so that `flask` and the worker read .env. (Docker Compose"
            " reads it anyway.)"
        )


def _own_celery(app: Flask) -> Iterator[str]:
    mailer = app.extensions.get("mailer")
    if mailer is None or mailer.celery is not app.extensions["celery"]:
        yield (
            'The app has a Celery app of its own: set app.extensions["celery"] to it before'
            " mail.init_app(app) or mailer.init_app(app), so that its workers deliver the mail."
        )
    yield (
        "Let the Celery app of the app take its broker_url from MAILER_REDIS_URL, which is the"
        " Redis of the stack in the containers."
    )


def _has_own_celery(app: Flask) -> bool:
    celery, mailer = app.extensions.get("celery"), app.extensions.get("mailer")
    if celery is None or mailer is None:
        return celery is not None
    return bool(celery.conf.task_default_queue != mailer.settings.queue_name)


def _start(source: AppSource, worker: str, *, has_own_celery: bool) -> Iterator[str]:
    flask = f"flask --app {shlex.quote(source.for_flask)}"
    if has_own_celery:
        yield (
            "Restart the workers of that Celery app, with the command that you have: they deliver"
            f" the mail, and you need no other. If you have none yet: celery -A {worker} worker"
        )
    else:
        yield f"Start a worker beside the web server and a Redis: celery -A {worker} worker"
    yield "Or start all of them in containers: docker compose up --build"
    yield f"See the workers, and what became of the mail: {flask} mail queue"
