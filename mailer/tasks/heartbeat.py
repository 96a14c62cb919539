"""The heartbeat of a worker: a thread in its main process writes every few seconds that it is there.

It has a thread of its own, since the chores may wait for a slow relay.
"""

import os
import platform
import threading
import time
from importlib.metadata import PackageNotFoundError, version
from typing import Any
from uuid import uuid4

from celery import bootsteps

from mailer.attendance import BEAT_SECONDS
from mailer.delivery.flags import WorkerFlags
from mailer.errors import StoreError
from mailer.logs import addresses_shown, get_logger
from mailer.message import Lane
from mailer.settings import Settings
from mailer.steps import Steps
from mailer.store import Store
from mailer.store.workers import Worker

# The thread is not waited for longer when the worker stops: it is a daemon, and its row gets old.
_STOP_SECONDS = 5.0

log = get_logger(__name__)


class Heartbeat:
    """The row of this worker, from its start to its end."""

    def __init__(self, settings: Settings, store: Store, flags: WorkerFlags) -> None:
        self._settings = settings
        self._store = store
        self._flags = flags
        self._id = uuid4().hex
        self._started_at = time.time()
        self._stopping = threading.Event()
        self._steps = Steps()
        self._thread = threading.Thread(target=self._run, name="mailer-heartbeat", daemon=True)

    def start(self) -> None:
        """Write the row at once, and then again and again."""
        self._thread.start()

    def stop(self) -> None:
        """Remove the row."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(_STOP_SECONDS)

    def _run(self) -> None:
        with addresses_shown(self._settings.log_addresses):
            while True:
                self._steps.take("heartbeat", self._beat)
                if self._stopping.wait(BEAT_SECONDS):
                    break
            try:
                self._store.leave(self._id)
            except StoreError as error:
                log.info("The row of this worker stays, and gets old: %s", error)

    def _beat(self) -> None:
        worker = Worker(
            id=self._id,
            machine=platform.node(),
            pid=os.getpid(),
            version=_version(),
            lanes=",".join(lane.name.lower() for lane in Lane if self._carries(lane)),
            started_at=self._started_at,
            seen_at=time.time(),
            delivered_at=self._flags.delivered_at,
        )
        self._store.beat(worker)

    def _carries(self, lane: Lane) -> bool:
        return any(not relay.lanes or lane in relay.lanes for relay in self._settings.relays)


def _version() -> str:
    try:
        return version("flask-mailer-queue")
    except PackageNotFoundError:  # it is run from a checkout
        return "unknown"


def heartbeat_step(settings: Settings, store: Store, flags: WorkerFlags) -> type[bootsteps.StartStopStep]:
    """Return the part of a worker that starts and stops its heartbeat."""

    class HeartbeatStep(bootsteps.StartStopStep):
        requires = ("celery.worker.components:Pool",)  # after it: its processes are forked before the thread exists

        def create(self, worker: Any) -> Heartbeat:  # type: ignore[override]  # the stub forgot that Celery keeps what it returns
            return Heartbeat(settings, store, flags)

    return HeartbeatStep
