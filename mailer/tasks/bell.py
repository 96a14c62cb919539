"""The bell of who has Celery: a ring is a task that is published, and while one is pending nobody publishes another."""

import math
import threading
import time
from contextlib import suppress
from typing import Any

import redis
from celery import Celery
from redis.backoff import NoBackoff
from redis.retry import Retry

from mailer.forks import notice_fork, survive_forks
from mailer.logs import addresses_shown, get_logger
from mailer.settings import Settings

SEND = "mailer.send_email"

# One try. (retry=False would be slower: it waits for a connection at intervals of its own.)
ONE_TRY = {"max_retries": 0, "interval_start": 0, "interval_step": 0, "interval_max": 0}

# While the broker is away, a thread of the process tries again so often.
_TRY_AGAIN_SECONDS = 1.0
# A ring that nobody answers is repeated by enqueuers this seldom, so that Redis stays small while no worker runs.
_FLAG_MILLISECONDS = 60_000
# Workers that are only busy answer sooner: a task does not keep the others waiting for longer than that. From then on the sweep
# of each worker rings this seldom: whoever took the rings before may be frozen, or was never there, while others hear.
_DEAF_AFTER_SECONDS = 10.0
# The limits are those of the task in the worker: a message that brings its own is refused.
_BARE: dict[str, Any] = {"time_limit": None, "soft_time_limit": None}
# Without a flag that all can see, a process rings this seldom.
_OWN_FLAG_SECONDS = 0.02

log = get_logger(__name__)


class CeleryBell:
    """Rings by publishing a task. Whatever is wrong with the broker, the mail is stored by then: it raises nothing."""

    def __init__(self, celery: Celery[Any], settings: Settings) -> None:
        self._celery = celery
        self._shows_addresses = settings.log_addresses
        self._flag = _SharedFlag(settings.flag_url, f"mailer:{settings.installation}:ring") if settings.flag_url else _OwnFlag()
        self._search: threading.Thread | None = None  # for the broker
        self._urged_at = -math.inf
        survive_forks(self)

    def ring(self, *, urge: bool = False) -> bool:
        """Call a worker. The enqueuer has committed before; `urge` is the sweep's, which needs to know whether somebody hears."""
        notice_fork()
        if self._is_away:
            return False
        try:
            return self._ring(urge)
        except Exception as error:  # noqa: BLE001 -- raised here, it would tell the caller that there is no mail
            self._look_for_it(error)
            return False

    def answer(self) -> None:
        """A worker is up: the next one who has mail may ring."""
        if self._is_away:
            return
        try:
            self._flag.lower_it()
        except (redis.RedisError, OSError) as error:
            self._look_for_it(error)

    def _ring(self, urge: bool) -> bool:
        is_first, now = self._flag.raise_it(), time.monotonic()
        if urge:
            has_urged = now - self._urged_at < _DEAF_AFTER_SECONDS
            if has_urged and not is_first and self._flag.seconds_up() >= _DEAF_AFTER_SECONDS:
                return False  # nobody hears
            self._urged_at = now
        if urge or is_first:
            self._celery.send_task(SEND, ignore_result=True, retry=True, retry_policy=dict(ONE_TRY), **_BARE)
        return True

    # --- while it is away ---------------------------------------------------------------------------------------------

    @property
    def _is_away(self) -> bool:
        return self._search is not None and self._search.is_alive()

    def after_fork_in_child(self) -> None:
        """In a child nobody looks for the broker: its first ring asks for itself."""
        self._search = None

    def _look_for_it(self, error: Exception) -> None:
        """So that no request waits for a time-out again."""
        if not self._is_away:  # two that are here at the same moment both look for it, which does no harm
            search = threading.Thread(target=self._until_it_answers, name="mailer-bell", daemon=True)
            with suppress(RuntimeError):  # no thread can be started, at the end of a process for one: the next ring asks again
                search.start()
                self._search = search
            with addresses_shown(self._shows_addresses):
                log.warning("The broker does not answer (%s); mail is stored, and the sweep of the workers finds it.", error)

    def _until_it_answers(self) -> None:
        while True:
            time.sleep(_TRY_AGAIN_SECONDS)
            try:
                self._ring(urge=True)
            except Exception as error:  # noqa: BLE001 -- as in ring()
                with addresses_shown(self._shows_addresses):
                    log.debug("The broker still does not answer: %s", error)
            else:
                log.warning("The broker answers again.")
                return


class _SharedFlag:
    """A key in Redis that says "a ring is pending". Requests wait for it: the client's own commands take half as long again."""

    def __init__(self, url: str, name: str) -> None:
        self._pool = redis.ConnectionPool.from_url(url, socket_connect_timeout=1, socket_timeout=2, retry=Retry(NoBackoff(), 0))
        unconnected: Any = redis.Connection()  # type: ignore[no-untyped-call]  # redis does not say what it takes
        pack = unconnected.pack_command
        self._raise = pack("SET", name, 1, "PX", _FLAG_MILLISECONDS, "NX")
        self._left = pack("PTTL", name)
        self._lower = pack("DEL", name)

    def raise_it(self) -> bool:
        """Whether it was down."""
        return bool(self._ask(self._raise))

    def seconds_up(self) -> float:
        left = self._ask(self._left)
        return (_FLAG_MILLISECONDS - left) / 1000 if left > 0 else 0.0

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
    """Where the broker is no plain Redis: each process rings seldom enough by itself, and nobody knows who hears."""

    def __init__(self) -> None:
        self._raised_at = 0.0

    def raise_it(self) -> bool:
        now = time.monotonic()
        if now - self._raised_at < _OWN_FLAG_SECONDS:
            return False
        self._raised_at = now
        return True

    def seconds_up(self) -> float:
        return 0.0

    def lower_it(self) -> None:
        self._raised_at = 0.0
