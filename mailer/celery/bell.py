"""The doorbell: a ring is a task, and only an urge sends another while one is pending."""

import math
import threading
from collections.abc import Collection
from logging import Logger
from typing import Any

# Celery would import the first two at the first ring, while a request waits.
import celery.app.amqp  # noqa: F401
import kombu.transport.redis  # noqa: F401
import redis
from celery import Celery
from celery.exceptions import SoftTimeLimitExceeded
from redis.backoff import NoBackoff
from redis.retry import Retry

from mailer.celery.app import ONE_TRY, SEND
from mailer.forks import notice_fork, survive_forks
from mailer.logs import addresses_shown, get_logger
from mailer.message.ports import Bell, Clock
from mailer.settings import Settings
from mailer.threads import start_daemon

# While the broker is away, a thread of the process tries again so often.
_TRY_AGAIN_SECONDS = 1.0
# Processes that queue repeat a ring that nobody answers this seldom: Redis stays small while no
# worker runs.
_FLAG_MILLISECONDS = 60_000
# A worker that is only busy answers sooner, since no task keeps the others waiting for longer. From
# then on the sweep of each worker rings this seldom: the worker that took the rings before may be
# frozen, or was never there, while others hear.
_DEAF_AFTER_SECONDS = 10.0
# The limits of the task in the worker hold: it refuses a message with others.
_BARE: dict[str, Any] = {"time_limit": None, "soft_time_limit": None}
# Without a flag that all processes share, a process rings this seldom.
_OWN_FLAG_SECONDS = 0.02

log: Logger = get_logger(__name__)


class CeleryBell:
    """The bell that publishes a task for each ring.

    It raises nothing: when it rings, the mail is stored already. If Celery is in eager mode, which
    has no workers and no broker, the `inline` bell rings instead.
    """

    def __init__(
        self,
        celery: Celery[Any],
        settings: Settings,
        clock: Clock,
        inline: Bell | None = None,
    ) -> None:
        self._celery = celery
        self._clock = clock
        self._inline = inline
        self._shows_addresses = settings.log_addresses
        self._flag = _flag(settings, clock)
        self._searching: threading.Thread | None = None  # for the broker
        self._urged_at = -math.inf
        survive_forks(self)

    def ring(self, mails: Collection[str] = (), *, urge: bool = False) -> bool:
        """Call a worker. The mail is committed.

        Return False if the broker does not answer or, with `urge`, if no worker seems to hear.
        """
        if self._inline is not None and self._is_eager:
            return self._inline.ring(mails, urge=urge)
        notice_fork()
        if self._is_away:
            return False
        try:
            return self._ring(urge)
        except SoftTimeLimitExceeded:
            raise  # the limit of the task that queues the mail
        except Exception as error:  # noqa: BLE001 -- else the caller thinks that there is no mail
            self._search_broker(error)
            return False

    def answer(self) -> None:
        """Take the flag down: the next process that has mail may ring."""
        if self._is_away or self._is_eager:
            return
        try:
            self._flag.lower_it()
        except (redis.RedisError, OSError) as error:
            self._search_broker(error)

    @property
    def _is_eager(self) -> bool:
        """True if tasks run in the calling thread. A test may set that at any time."""
        return bool(self._celery.conf.task_always_eager)

    def _ring(self, urge: bool) -> bool:
        is_first, now = self._flag.raise_it(), self._clock.monotonic()
        if urge:
            has_urged = now - self._urged_at < _DEAF_AFTER_SECONDS
            if has_urged and not is_first and self._flag.seconds_up() >= _DEAF_AFTER_SECONDS:
                return False  # no worker hears
            self._urged_at = now
        if urge or is_first:
            options = {"ignore_result": True, "retry": True, "retry_policy": dict(ONE_TRY), **_BARE}
            self._celery.send_task(SEND, **options)
        return True

    # --- while the broker is away ----------------------------------------------------------------

    @property
    def _is_away(self) -> bool:
        return self._searching is not None and self._searching.is_alive()

    def after_fork_in_child(self) -> None:
        """Forget the search: no thread of a child goes on with it, and its first ring asks."""
        self._searching = None

    def _search_broker(self, error: Exception) -> None:
        """Let a thread find the broker again, so that no other request waits for a time-out."""
        if not self._is_away:  # two threads that are here at once both search, which does no harm
            self._searching = start_daemon(self._search, "mailer-bell")
            with addresses_shown(self._shows_addresses):
                log.warning(
                    "The broker does not answer; mail is stored, and the sweep finds it: error=%s",
                    error,
                )

    def _search(self) -> None:
        while True:
            self._clock.sleep(_TRY_AGAIN_SECONDS)
            try:
                self._ring(urge=True)
            except Exception as error:  # noqa: BLE001 -- as in ring()
                with addresses_shown(self._shows_addresses):
                    log.debug("The broker still does not answer: error=%s", error)
            else:
                log.warning("The broker answers again.")
                return


def _flag(settings: Settings, clock: Clock) -> "_SharedFlag | _OwnFlag":
    if settings.flag_url is None:
        return _OwnFlag(clock)
    return _SharedFlag(settings.flag_url, f"mailer:{settings.installation}:ring")


class _SharedFlag:
    """A key in Redis that says "a ring is pending".

    Its commands are packed once, since requests wait for them: the client's own take half as long
    again.
    """

    def __init__(self, url: str, name: str) -> None:
        once = Retry(NoBackoff(), 0)
        self._pool = redis.ConnectionPool.from_url(
            url,
            socket_connect_timeout=1,
            socket_timeout=2,
            retry=once,
        )
        unconnected: Any = redis.Connection()  # type: ignore[no-untyped-call]  # of redis
        pack = unconnected.pack_command
        self._raise = pack("SET", name, 1, "PX", _FLAG_MILLISECONDS, "NX")
        self._left = pack("PTTL", name)
        self._lower = pack("DEL", name)

    def raise_it(self) -> bool:
        """Raise the flag, and return whether it was down."""
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
    """The flag of one process, where the broker is no plain Redis.

    Nobody can tell then whether a worker hears.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._raised_at = 0.0

    def raise_it(self) -> bool:
        now = self._clock.monotonic()
        if now - self._raised_at < _OWN_FLAG_SECONDS:
            return False
        self._raised_at = now
        return True

    def seconds_up(self) -> float:
        return 0.0

    def lower_it(self) -> None:
        self._raised_at = 0.0
