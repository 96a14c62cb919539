"""The Celery side: the tasks, the bell that calls them, and the chores that run inside every worker.

A task carries no mail, only "there is mail": a ring may come late, twice or never, and nothing else does.
"""

import logging
import threading
import time
from typing import Any

import redis
from celery import Celery, Task, bootsteps, signals
from flask import Flask
from kombu.exceptions import OperationalError
from redis.backoff import NoBackoff
from redis.retry import Retry

from mailer.delivery import Courier
from mailer.errors import MailerError, StoreError, StoreUnavailable
from mailer.intake import Bell
from mailer.settings import Settings
from mailer.store import Store

SEND, SWEEP, PURGE = "mailer.send_email", "mailer.sweep", "mailer.purge"

# How long a task goes on while more is due, before other tasks of the worker get their turn.
_TASK_SECONDS = 10.0
_TICK_SECONDS = 0.5
_SWEEP_SECONDS = 1.0
_LEAST_WAIT_SECONDS = 0.05  # so that mails which get due one by one do not make a ring each
_PURGE_SECONDS = 3600.0
# A clock that was set back by more than this was set by somebody: the rest is drift. And what is stored by now may have been
# given its time before.
_SET_BACK_SECONDS, _BETWEEN_SECONDS = 5.0, 1.0
# While the broker is away, a process tries again this seldom: the sweep finds the mail.
_QUIET_SECONDS = 10.0
# A ring that nobody answers is repeated by enqueuers this seldom, so that Redis stays small while no worker runs.
_FLAG_MILLISECONDS = 60_000
_FLAG = "mailer:ring"
# Without a flag that all can see, a process rings this seldom.
_OWN_FLAG_SECONDS = 0.02
# One try. (retry=False would be slower: it waits for a connection at intervals of its own.)
_ONE_TRY = {"max_retries": 0, "interval_start": 0, "interval_step": 0, "interval_max": 0}

log = logging.getLogger(__name__)


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
        broker_transport_options=_transport_options(connect=1, answer=2),
        task_publish_retry=True,
        task_publish_retry_policy=_ONE_TRY,
        broker_pool_acquire_timeout=2,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
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


class PatientWorker(bootsteps.Step):
    """A worker can wait longer for the broker than a request does: for BRPOP it has to."""

    def __init__(self, worker: Any, **options: Any) -> None:
        super().__init__(worker, **options)
        worker.app.conf.broker_transport_options = _transport_options(connect=2, answer=10)


def _transport_options(connect: float, answer: float) -> dict[str, Any]:
    """Without time-outs a frozen Redis blocks for ever. Never retry_on_timeout: it publishes twice."""
    return {
        "socket_connect_timeout": connect,
        "socket_timeout": answer,
        "socket_keepalive": True,
        "health_check_interval": 25,
        "visibility_timeout": 3600,
    }


def install(celery: Celery[Any], app: Flask, store: Store, courier: Courier, bell: Bell) -> None:
    """Make every worker of this Celery app deliver the mail of this Flask app."""

    def send_email() -> None:
        with app.app_context():
            bell.answer()  # before the claim: whoever commits after it rings again
            try:
                courier.deliver(at_most=_TASK_SECONDS)
            except StoreError as error:
                log.warning("Delivery waits, the sweep rings again: %s", error)

    def sweep() -> None:
        with app.app_context():
            courier.sweep()

    def purge() -> None:
        with app.app_context():
            courier.purge()

    for name, task in ((SEND, send_email), (SWEEP, sweep), (PURGE, purge)):
        celery.task(name=name, ignore_result=True, acks_late=False, shared=False)(task)
    celery.steps["worker"].add(_chores_step(app, store, courier, bell))

    def no_more(**_signal: Any) -> None:
        courier.stop()

    def goodbye(**_signal: Any) -> None:
        courier.hang_up()

    signals.worker_shutting_down.connect(no_more, weak=False)
    signals.worker_process_shutdown.connect(goodbye, weak=False)
    signals.worker_shutdown.connect(goodbye, weak=False)


# --- the bell ---------------------------------------------------------------------------------------------------------


class CeleryBell:
    """Rings by publishing a task; while a ring is pending nobody publishes another."""

    def __init__(self, celery: Celery[Any], settings: Settings) -> None:
        self._celery = celery
        self._flag = _SharedFlag(settings.flag_url) if settings.flag_url else _OwnFlag()
        self._quiet_until = 0.0

    def ring(self, *, urge: bool = False) -> bool:
        """Call a worker. The enqueuer has committed before; `urge` is the sweep's, which trusts neither flag nor silence."""
        is_quiet = time.monotonic() < self._quiet_until
        if is_quiet and not urge:
            return False
        try:
            if self._flag.raise_it(urge):
                self._celery.send_task(SEND, ignore_result=True, retry=True, retry_policy=dict(_ONE_TRY))
        except (OperationalError, redis.RedisError, OSError) as error:
            self._quiet_until = time.monotonic() + _QUIET_SECONDS
            if not is_quiet:
                log.warning("The broker does not answer (%s); mail is stored, and the sweep of the workers finds it.", error)
            return False
        self._quiet_until = 0.0
        return True

    def answer(self) -> None:
        """A worker is up: the next one who has mail may ring."""
        try:
            self._flag.lower_it()
        except (redis.RedisError, OSError) as error:
            log.warning("The broker does not answer (%s); the next mail may wait for the sweep.", error)


class _SharedFlag:
    """A key in Redis that says "a ring is pending". Requests wait for it: the client's own commands take half as long again."""

    def __init__(self, url: str) -> None:
        self._pool = redis.ConnectionPool.from_url(url, socket_connect_timeout=1, socket_timeout=2, retry=Retry(NoBackoff(), 0))
        unconnected: Any = redis.Connection()  # type: ignore[no-untyped-call]  # redis does not say what it takes
        pack = unconnected.pack_command
        self._raise = pack("SET", _FLAG, 1, "PX", _FLAG_MILLISECONDS)
        self._raise_first = pack("SET", _FLAG, 1, "PX", _FLAG_MILLISECONDS, "NX")
        self._lower = pack("DEL", _FLAG)

    def raise_it(self, urge: bool) -> bool:
        return bool(self._ask(self._raise if urge else self._raise_first))

    def lower_it(self) -> None:
        self._ask(self._lower)

    def _ask(self, command: Any) -> Any:
        connection: Any = self._pool.get_connection()
        try:
            connection.send_packed_command(command)
            return connection.read_response()
        finally:
            self._pool.release(connection)


class _OwnFlag:
    """Where the broker is no plain Redis: each process rings seldom enough by itself."""

    def __init__(self) -> None:
        self._raised_at = 0.0

    def raise_it(self, urge: bool) -> bool:
        now = time.monotonic()
        if not urge and now - self._raised_at < _OWN_FLAG_SECONDS:
            return False
        self._raised_at = now
        return True

    def lower_it(self) -> None:
        self._raised_at = 0.0


# --- the chores -------------------------------------------------------------------------------------------------------


class Chores:
    """A thread in the main process of each worker: the sweep can't be forgotten, and nothing else can stop it."""

    def __init__(self, app: Flask, store: Store, courier: Courier, bell: Bell) -> None:
        self._app = app
        self._store = store
        self._courier = courier
        self._bell = bell
        self._ahead = time.time() - time.monotonic()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="mailer-chores", daemon=True)

    def start(self) -> None:
        """Tables that do not fit stop the worker; a database that is away is waited for."""
        try:
            self._store.check_schema()
        except StoreUnavailable as error:
            log.warning("The chores wait: %s", error)
        self._thread.start()

    def stop(self) -> None:
        """End the chore at hand, which may be a mail on the wire."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._stopping.wait(_TICK_SECONDS):
            try:
                with self._app.app_context():
                    self._tick()
            except MailerError as error:
                log.warning("The chores wait: %s", error)
            except Exception:
                log.exception("The chores failed, and go on")

    def _tick(self) -> None:
        """One worker of all does a chore that is due; a row in the database says who."""
        self._notice_a_clock_set_back()
        if self._store.take_chore(SWEEP, now=time.time(), every=_SWEEP_SECONDS):
            self._courier.sweep()
            self._watch_the_clock()
        if self._store.take_chore(PURGE, now=time.time(), every=_PURGE_SECONDS):
            self._courier.purge()

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


def _chores_step(app: Flask, store: Store, courier: Courier, bell: Bell) -> type[bootsteps.StartStopStep]:
    class ChoresStep(bootsteps.StartStopStep):
        # After the pool: its processes are forked before the thread exists. Before the broker is reached.
        requires = ("celery.worker.components:Pool",)

        def create(self, worker: Any) -> Chores:  # type: ignore[override]  # the stub forgot that Celery keeps what it returns
            return Chores(app, store, courier, bell)

    return ChoresStep
