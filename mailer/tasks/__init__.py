"""The Celery side: the tasks, the bell that calls them, and the chores that run inside every worker.

A task carries no mail, only "there is mail": a ring may come late, twice or never, and nothing else does.
"""

import gc
import logging
import signal
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlencode
from weakref import WeakSet

from billiard import current_process
from celery import Celery, Task, bootsteps, signals
from flask import Flask

from mailer.delivery import Dispatcher, Maintenance
from mailer.errors import StoreError, StoreUnavailable
from mailer.logs import TaskMask, addresses_shown, get_logger
from mailer.message.ports import Bell
from mailer.settings import Settings
from mailer.steps import Steps
from mailer.store import Store
from mailer.store.workers import SWEEP
from mailer.tasks.bell import ONE_TRY, SEND, CeleryBell
from mailer.tasks.consumer import PatientWorker, transport_options
from mailer.tasks.heartbeat import heartbeat_step

PURGE = "mailer.purge"

# How long a task goes on while more is due, before other tasks of the worker get their turn.
_TASK_SECONDS = 10.0
_TICK_SECONDS = 0.5
_SWEEP_SECONDS = 1.0
_LEAST_WAIT_SECONDS = 0.05  # so that mails which get due one by one do not make a ring each
_PURGE_SECONDS = 3600.0
# Explicit limits keep those of the worker and of the application away: a task that is killed leaves mail in doubt. This is
# longer than any delivery, and there for what hangs all the same. What is deleted in the middle of a purge stays deleted.
_TIME_LIMIT, _GRACE = 86400.0, 60.0
# A clock that was set back by more than this was set by somebody: the rest is drift. And what is stored by now may have been
# given its time before.
_SET_BACK_SECONDS, _BETWEEN_SECONDS = 5.0, 1.0
# What ends a child of a prefork pool, sent to its process group or by a cold shutdown.
_ENDS = (signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP)

__all__ = ["SEND", "SWEEP", "CeleryBell", "broker_of", "install", "make_celery"]

_TASK_MASK = TaskMask(SEND, SWEEP, PURGE)  # one for all apps

log = get_logger(__name__)


# --- the Celery app ---------------------------------------------------------------------------------------------------


def make_celery(app: Flask, settings: Settings) -> Celery[Any]:
    """The Celery app of a Flask app, as in Flask's documentation, with the settings that were measured to be safe."""

    class FlaskTask(Task):  # type: ignore[type-arg]
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            with app.app_context():
                return self.run(*args, **kwargs)

    celery: Celery[Any] = Celery(app.import_name, task_cls=FlaskTask)
    celery.conf.update(
        broker_url=settings.broker_url,
        task_default_queue=settings.queue_name,  # an installation with the same Redis has another one
        broker_transport_options=transport_options(connect=1, answer=2),
        task_publish_retry=True,
        task_publish_retry_policy=ONE_TRY,
        broker_pool_acquire_timeout=2,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_channel_error_retry=True,  # a Redis that is full may have room again
        worker_consumer="mailer.tasks.consumer:PatientConsumer",
        task_ignore_result=True,
        result_backend=None,
        task_serializer="json",
        accept_content=["json"],
        # SQL recovers what a dead worker held; acknowledging late would only add duplicates and hot loops.
        task_acks_late=False,
        task_reject_on_worker_lost=False,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        # Never worker_disable_prefetch: after a burst, the worker would look for the next ring only once a second.
        worker_prefetch_multiplier=1,
        worker_send_task_events=False,
        worker_eta_task_limit=100,
    )
    celery.steps["worker"].add(PatientWorker)
    celery.set_default()
    return celery


def broker_of(celery: Celery[Any] | None) -> str | None:
    """Return the URL of the broker that the application has given to a Celery app of its own; several are separated by ';'."""
    if celery is None:
        return None
    given = celery.conf.broker_write_url
    url = ";".join(given) if isinstance(given, (list, tuple)) else given
    return _over_tls(url, celery.conf.broker_use_ssl) if url and "://" in url else None


def _over_tls(url: str, options: object) -> str:
    """Say in the URL of a Redis what `broker_use_ssl` says beside it: the client of Redis gets only the URL.

    What Celery ignores is left out: anything but a dict, and all of it if the URL itself says such things.
    """
    scheme, _, rest = url.partition("://")
    place, _, query = rest.partition("?")
    is_one_redis = scheme in ("redis", "rediss") and ";" not in url
    if not (is_one_redis and options and isinstance(options, Mapping)) or "ssl_" in query:
        return url
    said = {name: value for name, value in options.items() if name.startswith("ssl_")}
    if "ssl_cert_reqs" in said:
        said["ssl_cert_reqs"] = _word_for(said["ssl_cert_reqs"])
    known = urlencode({name: value for name, value in said.items() if value is not None})
    return f"rediss://{place}?{'&'.join(filter(None, [query, known]))}"


def _word_for(cert_reqs: object) -> object:
    if isinstance(cert_reqs, int):
        return ssl.VerifyMode(cert_reqs).name.removeprefix("CERT_").lower()
    return cert_reqs or "none"


def install(
    celery: Celery[Any],
    app: Flask,
    settings: Settings,
    store: Store,
    dispatcher: Dispatcher,
    maintenance: Maintenance,
    bell: Bell,
) -> None:
    """Make every worker of this Celery app deliver the mail of this Flask app."""
    shown = settings.log_addresses

    def send_email() -> None:
        with app.app_context(), addresses_shown(shown), _to_its_end():
            bell.answer()  # before the claim: whoever commits after it rings again
            try:
                dispatcher.deliver(at_most=_TASK_SECONDS)
            except StoreError as error:
                log.warning("Delivery waits, the sweep rings again: %s", error)

    def sweep() -> None:
        with app.app_context(), addresses_shown(shown), _to_its_end():
            maintenance.sweep()

    def purge() -> None:
        with app.app_context(), addresses_shown(shown):
            maintenance.purge()

    # Nobody rings for the last two, which the chores do; an operator may send them by hand.
    options = own_options(settings)
    for name, task in ((SEND, send_email), (SWEEP, sweep), (PURGE, purge)):
        celery.task(name=name, ignore_result=True, shared=False, **options)(task)  # type: ignore[no-untyped-call]
    celery.steps["worker"].add(heartbeat_step(settings, store, dispatcher.flags))
    celery.steps["worker"].add(_chores_step(app, settings, store, dispatcher, maintenance, bell))
    if not settings.log_addresses:
        logging.getLogger("celery.app.trace").addFilter(_TASK_MASK)


def own_options(settings: Settings) -> dict[str, Any]:
    """Return what our tasks have for themselves, whatever the worker or the application says of tasks in general."""
    longest = len(settings.relays) * settings.transmit_lease + _TASK_SECONDS
    limit = max(_TIME_LIMIT, 2 * longest)
    return {"time_limit": limit + _GRACE, "soft_time_limit": limit, "acks_late": False}


def _share_memory(**_signal: Any) -> None:
    """With the children of a prefork pool: a collector that looked at all there was before the fork would copy it for each."""
    gc.freeze()


@contextmanager
def _to_its_end() -> Iterator[None]:
    """In a child of a prefork pool, a signal to end is heard after the task, never in the middle of a mail."""
    if current_process().name == "MainProcess":
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# --- the chores -------------------------------------------------------------------------------------------------------


class Chores:
    """A thread in the main process of each worker: the sweep can't be forgotten, and nothing else can stop it."""

    def __init__(
        self,
        app: Flask,
        store: Store,
        dispatcher: Dispatcher,
        maintenance: Maintenance,
        bell: Bell,
        *,
        shown: bool = False,
        worker: Any = None,
    ) -> None:
        self._app = app
        self._shows_addresses = shown
        self._store = store
        self._dispatcher = dispatcher
        self._maintenance = maintenance
        self._bell = bell
        self._ahead = time.time() - time.monotonic()
        self._stopping = threading.Event()
        self._is_purging = False
        self._steps = Steps()
        self.worker = worker
        self._thread = threading.Thread(target=self._run, name="mailer-chores", daemon=True)

    def start(self) -> None:
        """Tables that do not fit stop the worker; a database that is away is waited for."""
        try:
            self._store.check_schema()
        except StoreUnavailable as error:
            log.warning("The chores wait: %s", error)
        self._dispatcher.flags.start()
        self._thread.start()

    def stop(self) -> None:
        """End the chore at hand, which may be a mail on the wire."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    def stop_delivery(self) -> None:
        """Let the worker's tasks end after the batch at hand."""
        self._dispatcher.flags.stop()

    def hang_up(self) -> None:
        """Close the connections to relays that nobody uses."""
        self._dispatcher.hang_up()

    def _run(self) -> None:
        with addresses_shown(self._shows_addresses):
            self._tick_until_stopped()

    def _tick_until_stopped(self) -> None:
        while not self._stopping.wait(_TICK_SECONDS):
            self._steps.take("tick", self._tick_in_app)

    def _tick_in_app(self) -> None:
        with self._app.app_context():
            self._tick()

    def _tick(self) -> None:
        """Take every step, whatever becomes of the others.

        One worker of all sweeps and purges when that is due: a row in the database says who.
        """
        self._steps.take("clock", self._notice_a_clock_set_back)
        self._steps.take("settle", self._maintenance.settle)
        self._steps.take("sweep", self._sweep)
        self._steps.take("purge", self._purge)

    def _sweep(self) -> None:
        if self._store.take_chore(SWEEP, now=time.time(), every=_SWEEP_SECONDS):
            self._maintenance.sweep()
            self._watch_the_clock()

    def _purge(self) -> None:
        """Purge for half a second: the sweep does not wait for the end of it."""
        if self._is_purging or self._store.take_chore(PURGE, now=time.time(), every=_PURGE_SECONDS):
            self._is_purging = not self._maintenance.purge(at_most=_TICK_SECONDS)

    def _notice_a_clock_set_back(self) -> None:
        """Else all that waits would wait until the clock is where it was."""
        ahead = time.time() - time.monotonic()
        back = self._ahead - ahead
        if back > _SET_BACK_SECONDS:
            now = time.time()
            recalled = self._store.recall_queued(now, was=now + back + _BETWEEN_SECONDS)
            log.warning("The clock was set back by %.0f s; %d deliveries that were due are due again.", back, recalled)
        self._ahead = ahead

    def _watch_the_clock(self) -> None:
        """Until the next sweep, ring at the very moment when a mail gets due: scheduled, tried again, or held up by a limit."""
        ends = time.time() + _SWEEP_SECONDS - _TICK_SECONDS
        while (due_at := self._store.next_due(time.time(), before=ends)) is not None:
            if self._stopping.wait(max(_LEAST_WAIT_SECONDS, due_at - time.time())):
                return
            self._bell.ring()


_running: WeakSet[Chores] = WeakSet()  # in this process: those of its workers, or in a child of a pool those of its worker


def _on_shutting_down(sender: object, **_signal: Any) -> None:
    """Stop the deliveries of the worker that was told to stop, which is known by its name."""
    for chores in list(_running):
        if chores.worker.hostname == sender:
            chores.stop_delivery()


def _on_shutdown(sender: object, **_signal: Any) -> None:
    for chores in list(_running):
        if chores.worker is sender:
            chores.hang_up()


def _on_process_shutdown(**_signal: Any) -> None:
    """In a child of a pool, whose connections are its own: those of another worker were left to the parent."""
    for chores in list(_running):
        chores.hang_up()


# Functions of this module, which keep no app alive.
signals.worker_before_create_process.connect(_share_memory)
signals.worker_shutting_down.connect(_on_shutting_down)
signals.worker_shutdown.connect(_on_shutdown)
signals.worker_process_shutdown.connect(_on_process_shutdown)


def _chores_step(
    app: Flask,
    settings: Settings,
    store: Store,
    dispatcher: Dispatcher,
    maintenance: Maintenance,
    bell: Bell,
) -> type[bootsteps.StartStopStep]:
    class ChoresStep(bootsteps.StartStopStep):
        # After the pool: its processes are forked before the thread exists. Before the broker is reached.
        requires = ("celery.worker.components:Pool",)

        def create(self, worker: Any) -> Chores:  # type: ignore[override]  # the stub forgot that Celery keeps what it returns
            for name in (SEND, SWEEP, PURGE):  # task_annotations of the application may have changed them
                for option, value in own_options(settings).items():
                    setattr(worker.app.tasks[name], option, value)
            chores = Chores(app, store, dispatcher, maintenance, bell, shown=settings.log_addresses, worker=worker)
            _running.add(chores)
            return chores

    return ChoresStep
