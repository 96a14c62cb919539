"""Mailer's part of a worker: a thread in its main process that settles, sweeps and purges.

The sweep finds mail whose ring was lost, mail that is scheduled or tried again, and mail of a dead
worker. It needs no beat, and nobody can forget to start it.
"""

import gc
import os
import threading
from logging import Logger
from typing import Any
from weakref import WeakSet

from celery import bootsteps, signals

from mailer.celery.app import PURGE, installed
from mailer.celery.heartbeat import Heartbeat
from mailer.celery.lanes import choose_queues
from mailer.errors import StoreUnavailable
from mailer.logs import addresses_shown, get_logger
from mailer.message import Lane
from mailer.outbound import Outbound
from mailer.settings import database
from mailer.signals import drain_outlets
from mailer.steps import Steps
from mailer.store.workers import SWEEP
from mailer.threads import OwnThread

_TICK_SECONDS = 0.5
_SWEEP_SECONDS = 1.0
_PURGE_SECONDS = 3600.0
_SHORTEST_WAIT_SECONDS = 0.05  # so that mails that get due one by one do not ring each by itself
# A clock that was set back by more than this was set by somebody: less is drift. What is stored by
# now may have been given its time a moment before.
_SET_BACK_SECONDS, _BETWEEN_SECONDS = 5.0, 1.0
# A call that took the time before the clock was set back may store its mail so much later.
_LATE_SECONDS = 30.0

log: Logger = get_logger(__name__)


class MaintenanceThread:
    """The maintenance of one Flask app, in the main process of a worker."""

    def __init__(self, outbound: Outbound, worker: Any) -> None:
        self.worker = worker
        self._outbound = outbound
        self._store = outbound.store
        self._bell = outbound.bell
        self._clock = outbound.clock
        self._dispatcher = outbound.dispatcher  # builds it, before the pool forks
        self._maintenance = outbound.maintenance
        self._clock_offset = self._offset()
        self._set_back = 0.0  # by so many seconds, a short time ago
        self._late_until = 0.0  # on the monotonic clock
        self._is_purging = False
        self._stopping = threading.Event()
        self._steps = Steps()
        self._thread = OwnThread(self._run, "mailer-maintenance")

    def start(self) -> None:
        """Start the thread. Raise `SchemaMismatch`, which stops the worker.

        Log the database again: when the app was made, a worker had not set up its log yet.
        """
        url = self._outbound.settings.database_url
        log.info(
            "Mail is kept in %s", database.described(url, self._outbound.app.config, os.environ)
        )
        try:
            self._store.check_schema()
        except StoreUnavailable as error:
            log.warning("Maintenance waits for the database: error=%s", error)
        self._dispatcher.flags.start()
        self._thread.start()

    def stop(self) -> None:
        """Wait for the step at hand, which may be delivering a mail."""
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
        with addresses_shown(self._outbound.settings.log_addresses):
            while not self._stopping.wait(_TICK_SECONDS):
                self._steps.take("tick", self._tick_in_context)

    def _tick_in_context(self) -> None:
        with self._outbound.context():
            self._tick()

    def _tick(self) -> None:
        """Take each step, even if others fail.

        Of all workers, one sweeps and purges when that is due: a row in the database decides which.
        """
        self._steps.take("clock", self._check_clock)
        self._steps.take("settle", self._maintenance.settle)
        self._steps.take("sweep", self._sweep)
        self._steps.take("purge", self._purge)

    def _sweep(self) -> None:
        """Sweep. If another worker does, have due mail delivered that it may not serve."""
        now, lanes = self._clock.time(), self._outbound.settings.served_lanes
        if self._store.take_chore(SWEEP, now=now, every=_SWEEP_SECONDS):
            self._maintenance.sweep()
            self._ring_in_time()
        elif len(lanes) < len(Lane) and self._store.take_chore(
            ".".join([SWEEP, *(lane.name.lower() for lane in lanes)]), now=now, every=_SWEEP_SECONDS
        ):
            self._maintenance.deliver_due(now, lanes)

    def _purge(self) -> None:
        """Purge for half a second: the sweep does not wait for the end of a long purge."""
        now = self._clock.time()
        if self._is_purging or self._store.take_chore(PURGE, now=now, every=_PURGE_SECONDS):
            self._is_purging = not self._maintenance.purge(at_most=_TICK_SECONDS)

    def _check_clock(self) -> None:
        """Make mail due again that was due before the clock was set back."""
        now, offset = self._clock.time(), self._offset()
        back = self._clock_offset - offset
        if back > _SET_BACK_SECONDS:
            recalled = self._store.recall_queued(now, was=now + back + _BETWEEN_SECONDS)
            self._store.shorten_relay_pauses(now)
            log.warning("The clock was set back: seconds=%.0f due_again=%d", back, recalled)
            self._set_back += back
            self._late_until = self._clock.monotonic() + _LATE_SECONDS
        elif self._set_back:
            was = now + self._set_back + _BETWEEN_SECONDS
            self._store.recall_queued(now, was=was, made_after=now + _SET_BACK_SECONDS)
            if self._clock.monotonic() > self._late_until:
                self._set_back = 0.0
        self._clock_offset = offset

    def _offset(self) -> float:
        """Return how far the time is from the monotonic clock: it changes if the time is set."""
        return self._clock.time() - self._clock.monotonic()

    def _ring_in_time(self) -> None:
        """Ring at the moment when a mail gets due, until the next sweep.

        The end is on the monotonic clock: the time may be set back meanwhile.
        """
        clock = self._clock
        ends = clock.monotonic() + _SWEEP_SECONDS - _TICK_SECONDS
        while (left := ends - clock.monotonic()) > 0:
            now = clock.time()
            due_at = self._store.next_due(now, before=now + left)
            if due_at is None or self._stopping.wait(max(_SHORTEST_WAIT_SECONDS, due_at - now)):
                return
            now = clock.time()
            self._bell.ring(lanes=[lane for lane in Lane if self._store.is_due(now, [lane])])


# --- the worker ---------------------------------------------------------------------------------


class MailerStep(bootsteps.StartStopStep):
    """The bootstep that starts and stops maintenance and heartbeat.

    Several Flask apps may share a Celery app: each has its own. They are created before the pool
    forks its processes, and started after that, since no thread survives a fork.
    """

    requires: tuple[str, ...] = ("celery.worker.components:Pool",)

    def create(self, worker: Any) -> None:
        served = [outbound.settings.served_lanes for outbound in installed(worker.app)]
        choose_queues(worker.app, {lane for lanes in served for lane in lanes})
        threads = [MaintenanceThread(outbound, worker) for outbound in installed(worker.app)]
        heartbeats = [Heartbeat(outbound) for outbound in installed(worker.app)]
        self._parts: list[MaintenanceThread | Heartbeat] = [*threads, *heartbeats]
        _running.update(threads)

    def start(self, worker: Any) -> None:
        for part in self._parts:
            part.start()

    def stop(self, worker: Any) -> None:
        for part in self._parts:
            part.stop()

    def terminate(self, worker: Any) -> None:
        self.stop(worker)


# In a process of a pool: those of its worker.
_running: WeakSet[MaintenanceThread] = WeakSet()


def _share_memory(**_signal: Any) -> None:
    """Share memory with the processes of a prefork pool.

    The garbage collector would write to each object in its first run, and so copy it.
    """
    gc.freeze()


def _on_shutting_down(sender: object, **_signal: Any) -> None:
    """Stop the deliveries of the worker that is shutting down. The sender is its name."""
    for thread in list(_running):
        if thread.worker.hostname == sender:
            thread.stop_delivery()


def _on_shutdown(sender: object, **_signal: Any) -> None:
    for thread in list(_running):
        if thread.worker is sender:
            thread.hang_up()


def _on_process_shutdown(**_signal: Any) -> None:
    """Close the connections of this process of a pool: it has none of another worker."""
    for thread in list(_running):
        thread.hang_up()
    drain_outlets()  # such a process ends without `atexit`


# Functions of this module, which keep no app alive.
signals.worker_before_create_process.connect(_share_memory)
signals.worker_shutting_down.connect(_on_shutting_down)
signals.worker_shutdown.connect(_on_shutdown)
signals.worker_process_shutdown.connect(_on_process_shutdown)
