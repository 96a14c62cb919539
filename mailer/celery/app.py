"""The Celery application of a Flask app: made by Mailer, or the application's own one."""

import logging
import signal
import ssl
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlencode

from billiard import current_process
from celery import Celery, Task
from flask import Flask

from mailer.errors import ConfigurationError
from mailer.logs import TaskMask
from mailer.outbound import Outbound
from mailer.settings import Settings
from mailer.store.workers import SWEEP

SEND, PURGE = "mailer.send_email", "mailer.purge"
TASKS = (SEND, SWEEP, PURGE)

#: A task goes on for so many seconds; then the other tasks of the worker get their turn.
TASK_SECONDS = 10.0
# A task that is killed leaves mail in doubt. So our tasks have time limits of their own, above the
# longest delivery: those of the worker and of the application do not apply then.
_TIME_LIMIT, _GRACE = 86400, 60
# The signals that end a child of a prefork pool: a cold shutdown sends them, or whoever signals
# the process group of the worker.
_ENDING = (signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP)
# One try. retry=False would be slower: it waits for a connection at intervals of its own.
ONE_TRY = {"max_retries": 0, "interval_start": 0, "interval_step": 0, "interval_max": 0}

_INSTALLED = "mailer_installed"
_MADE_HERE = "made_by_mailer"
_TASK_MASK = TaskMask(*TASKS)  # one for all apps


def make_celery(app: Flask, settings: Settings) -> Celery[Any]:
    """Make the Celery app of a Flask app, as in Flask's documentation, with safe settings."""

    class FlaskTask(Task):  # type: ignore[type-arg]
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            with app.app_context():
                return self.run(*args, **kwargs)

    celery: Celery[Any] = Celery(app.import_name, task_cls=FlaskTask)
    celery.conf.update(
        broker_url=settings.broker_url,
        task_default_queue=settings.queue_name,  # another one for each installation on this Redis
        broker_transport_options=transport_options(connect=1, answer=2),
        task_publish_retry=True,
        task_publish_retry_policy=ONE_TRY,
        broker_pool_acquire_timeout=2,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_channel_error_retry=True,  # a Redis that is full may have room again
        worker_consumer="mailer.celery.consumer:PatientConsumer",
        task_ignore_result=True,
        result_backend=None,
        task_serializer="json",
        accept_content=["json"],
        # SQL recovers the mail of a dead worker. Late acknowledgement would only add duplicates and
        # hot loops.
        task_acks_late=False,
        task_reject_on_worker_lost=False,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        # Never worker_disable_prefetch: after a burst, the worker would look for the next ring only
        # once a second.
        worker_prefetch_multiplier=1,
        worker_send_task_events=False,
        worker_eta_task_limit=100,
    )
    celery.steps["worker"].add("mailer.celery.consumer:PatientWorker")
    celery.set_default()
    vars(celery)[_MADE_HERE] = True
    return celery


def is_made_by_mailer(celery: Celery[Any]) -> bool:
    """Return whether `make_celery` made this Celery app, not the application."""
    return _MADE_HERE in vars(celery)


def transport_options(connect: float, answer: float, health_check: float = 25) -> dict[str, Any]:
    """Return the options of a connection to Redis with these time-outs.

    Without any, a frozen Redis blocks for ever. Never add retry_on_timeout: it publishes twice.
    """
    return {
        "socket_connect_timeout": connect,
        "socket_timeout": answer,
        "socket_keepalive": True,
        "health_check_interval": health_check,
        "visibility_timeout": 3600,
    }


# --- the application's own Celery app -----------------------------------------------------------


def broker_of(celery: Celery[Any] | None) -> str | None:
    """Return the broker URL of the application's own Celery app, or None.

    Several are joined by ';'.
    """
    if celery is None:
        return None
    given = celery.conf.broker_write_url
    url = ";".join(given) if isinstance(given, (list, tuple)) else given
    return _add_tls(url, celery.conf.broker_use_ssl) if url and "://" in url else None


def _add_tls(url: str, options: object) -> str:
    """Write the options of `broker_use_ssl` into the URL of a Redis: its client gets only the URL.

    Leave out the options that Celery ignores: all but those of a dict, and these as well if the URL
    has such options itself.
    """
    scheme, _, rest = url.partition("://")
    place, _, query = rest.partition("?")
    is_one_redis = scheme in ("redis", "rediss") and ";" not in url
    if not (is_one_redis and options and isinstance(options, Mapping)) or "ssl_" in query:
        return url
    given = {name: value for name, value in options.items() if name.startswith("ssl_")}
    if "ssl_cert_reqs" in given:
        given["ssl_cert_reqs"] = _word_for(given["ssl_cert_reqs"])
    known = urlencode({name: value for name, value in given.items() if value is not None})
    return f"rediss://{place}?{'&'.join(filter(None, [query, known]))}"


def _word_for(cert_reqs: object) -> object:
    if isinstance(cert_reqs, int):
        return ssl.VerifyMode(cert_reqs).name.removeprefix("CERT_").lower()
    return cert_reqs or "none"


# --- Mailer in a Celery app ---------------------------------------------------------------------


class _Installed:
    """The Flask apps that have a Celery app, the oldest first.

    Of those with one id, as a factory makes them in tests, only the newest is kept alive.
    """

    def __init__(self) -> None:
        self._known: list[weakref.ref[Outbound]] = []
        self._kept: dict[str, Outbound] = {}

    def add(self, outbound: Outbound) -> None:
        self._known.append(weakref.ref(outbound, self._known.remove))
        self._kept[app_id_of(outbound)] = outbound

    def outbounds(self) -> Sequence[Outbound]:
        return [outbound for one in list(self._known) if (outbound := one()) is not None]


def app_id_of(outbound: Outbound) -> str:
    """Return the name of a Flask app for other processes: several may share a Celery app."""
    return f"{outbound.app.name} {outbound.settings.installation}"


def install(celery: Celery[Any], outbound: Outbound) -> None:
    """Make the tasks and the workers of this Celery app deliver the mail of a Flask app."""
    vars(celery).setdefault(_INSTALLED, _Installed()).add(outbound)
    # By name: only a worker imports it.
    celery.steps["worker"].add("mailer.celery.maintenance:MailerStep")
    celery.on_after_finalize.connect(_set_own_options)
    if vars(celery)["finalized"]:  # already, by the application
        _set_own_options(celery)
    if not outbound.settings.log_addresses:
        logging.getLogger("celery.app.trace").addFilter(_TASK_MASK)


def installed(celery: Celery[Any]) -> Sequence[Outbound]:
    """Return the outbound side of each Flask app that has this Celery app, the oldest first."""
    known: _Installed = vars(celery).get(_INSTALLED) or _Installed()
    if not (found := known.outbounds()):
        raise ConfigurationError(
            f"The Celery app {celery.main!r} delivers no mail: no Mailer knows it. Set"
            " app.extensions['celery'] to it before Mailer(app) or init_app()."
        )
    return found


def _set_own_options(sender: Celery[Any], **_signal: Any) -> None:
    """Give our tasks options of their own, whatever the application says of tasks in general."""
    settings = [outbound.settings for outbound in installed(sender)]
    longest = sum(len(one.relays) * one.transmit_lease + TASK_SECONDS for one in settings)
    limit = max(_TIME_LIMIT, int(2 * longest))
    for name in TASKS:
        task = sender.tasks[name]
        task.time_limit, task.soft_time_limit = limit + _GRACE, limit
        task.acks_late = False


@contextmanager
def ending_delayed() -> Iterator[None]:
    """Delay signals that would end a child of a prefork pool: never in the middle of a mail."""
    if current_process().name == "MainProcess":
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
