"""The heartbeat of a worker: a row that a thread in its main process renews every few seconds.

The thread is not that of the maintenance, which may wait for a slow relay.
"""

import os
import platform
import threading
from importlib.metadata import PackageNotFoundError, version
from logging import Logger
from uuid import uuid4

from mailer.attendance import BEAT_SECONDS
from mailer.errors import StoreError
from mailer.logs import addresses_shown, get_logger
from mailer.message import Lane
from mailer.outbound import Outbound
from mailer.steps import Steps
from mailer.store.workers import Worker
from mailer.threads import OwnThread

# A worker that stops waits for the thread no longer: it is a daemon, and its row gets old.
_STOP_SECONDS = 5.0

log: Logger = get_logger(__name__)


class Heartbeat:
    """The row of this worker, from its start to its end."""

    def __init__(self, outbound: Outbound) -> None:
        self._settings = outbound.settings
        self._store = outbound.store
        self._clock = outbound.clock
        self._flags = outbound.dispatcher.flags
        self._id = uuid4().hex
        self._started_at = self._clock.time()
        self._stopping = threading.Event()
        self._steps = Steps()
        self._thread = OwnThread(self._run, "mailer-heartbeat")

    def start(self) -> None:
        """Write the row at once, then every few seconds."""
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
                log.info("The heartbeat of this worker stays, and gets old: error=%s", error)

    def _beat(self) -> None:
        worker = Worker(
            id=self._id,
            machine=platform.node(),
            pid=os.getpid(),
            version=_version(),
            lanes=",".join(lane.name.lower() for lane in Lane if self._serves(lane)),
            started_at=self._started_at,
            seen_at=self._clock.time(),
            delivered_at=self._flags.delivered_at,
        )
        self._store.beat(worker)

    def _serves(self, lane: Lane) -> bool:
        is_carried = any(relay.accepts(lane) for relay in self._settings.relays)
        return is_carried and lane in self._settings.served_lanes


def _version() -> str:
    try:
        return version("flask-mailer-queue")
    except PackageNotFoundError:  # a checkout
        return "unknown"
