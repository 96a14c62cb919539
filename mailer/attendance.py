"""The absence of workers: a warning in the log, in `flask mail queue` and in health checks."""

import math
import threading
from collections.abc import Callable, Sequence
from logging import Logger

from mailer.errors import MailerError
from mailer.forks import survive_forks
from mailer.logs import addresses_shown, get_logger
from mailer.message import Lane
from mailer.message.ports import Clock
from mailer.message.text import span
from mailer.store import Store
from mailer.store.workers import Due, Worker
from mailer.threads import start_daemon

#: A worker reports every so many seconds that it is there.
BEAT_SECONDS = 10.0
#: A worker that was silent for so long is not there: stopped, killed, or at another database.
SILENT_SECONDS = 60.0
_LOOK_SECONDS = 60.0
_REMEDY = "Start one, with the same MAILER_DATABASE_URL as this process."
_ONLY = " (those that are there have other lanes in MAILER_WORKER_LANES)"

log: Logger = get_logger(__name__)


def absence(store: Store, now: float) -> str | None:
    """Return a sentence if mail is due that no worker delivers, else None."""
    seen_at = store.worker_seen_at(now)
    if seen_at is None or now - seen_at > SILENT_SECONDS:
        due = store.due(now)
        return f"{_mails(due)} due and {silence(seen_at, now)}." if due.mails else None
    for lane in unserved_lanes(store.present_workers(now, silent=SILENT_SECONDS)):
        if (due := store.due(now, [lane])).mails:
            name = lane.name.lower()
            return f"{_mails(due)} due in the lane {name}, which no worker serves{_ONLY}."
    return None


def unserved_lanes(present: Sequence[Worker]) -> list[Lane]:
    """Return the lanes that none of these workers serves. No workers: nothing is known."""
    served = {name for worker in present for name in worker.lanes.split(",")}
    return [lane for lane in Lane if present and lane.name.lower() not in served]


def silence(seen_at: float | None, now: float) -> str:
    """Return the time since a worker was seen, in words."""
    if seen_at is None:
        return "no worker has ever been seen"
    return f"no worker has been seen for {span(now - seen_at)}"


def _mails(due: Due) -> str:
    if not due.is_all:
        return f"{due.mails:,} or more mails are"
    return "1 mail is" if due.mails == 1 else f"{due.mails:,} mails are"


class Watch:
    """The watch of a process that queues: it warns if mail is due and no worker is there.

    It looks once a minute at most, in a thread of its own.
    """

    def __init__(
        self, store: Store, objection: Callable[[], str | None], clock: Clock, *, shown: bool
    ) -> None:
        self._store = store
        self._objection = objection
        self._clock = clock
        self._shows_addresses = shown
        self._next_at = -math.inf
        self._lock = threading.Lock()
        survive_forks(self)

    def notice(self) -> None:
        """Look for workers, unless that was done a moment ago. Return at once."""
        if self._clock.monotonic() < self._next_at:
            return
        if not self._lock.acquire(blocking=False):
            return  # another thread is about to look
        try:
            if self._clock.monotonic() < self._next_at:
                return
            self._next_at = self._clock.monotonic() + _LOOK_SECONDS
        finally:
            self._lock.release()
        start_daemon(self._look, "mailer-watch")

    def after_fork_in_child(self) -> None:
        """Take a new lock: another thread of the parent may have held it."""
        self._lock = threading.Lock()

    def _look(self) -> None:
        with addresses_shown(self._shows_addresses):
            try:
                absent = absence(self._store, self._clock.time())
                objection = self._objection()
                if absent or objection:
                    log.warning("%s", " ".join(filter(None, [absent, objection or _REMEDY])))
            except MailerError as error:
                log.debug("Nobody could look for workers: %s", error)
            except Exception:
                log.exception("Nobody could look for workers")
