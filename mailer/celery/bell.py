"""The doorbell: a ring is a task. While one is pending, only `urge` sends another."""

import math
import threading
from collections.abc import Callable, Collection
from functools import partial
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

# While the broker is down, a thread of the process tries again after each pause.
_PAUSE_SECONDS = 1.0
# While no worker answers, the processes that queue ring once in this time, so that Redis does not
# fill.
_FLAG_MILLISECONDS = 60_000
# A worker that is only busy answers sooner. If a ring is unanswered for this long, the sweep of
# each worker still rings, but only once in this time: the worker that should answer may be frozen.
_UNANSWERED_SECONDS = 10.0
# The limits of the task in the worker hold: it refuses a message with others.
_NO_LIMITS: dict[str, Any] = {"time_limit": None, "soft_time_limit": None}
# Without a flag that all processes share, a process rings at most once in this time.
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
        self._probe: threading.Thread | None = None
        self._urged_at = -math.inf
        survive_forks(self)

    def ring(self, mails: Collection[str] = (), *, urge: bool = False) -> bool:
        """Call a worker. The mail is committed.

        Return False if the broker does not answer or, with `urge`, if no ring is sent, since
        earlier ones are unanswered.
        """
        if self._inline is not None and self._is_eager:
            return self._inline.ring(mails, urge=urge)
        notice_fork()
        if self._broker_is_down:
            return False
        try:
            return self._ring(urge)
        except SoftTimeLimitExceeded:
            raise  # the limit of the task that queues the mail
        except Exception as error:  # noqa: BLE001 -- else the caller thinks that there is no mail
            self._start_probe(error)
            return False

    def answer(self) -> None:
        """Clear the flag: the next process that has mail may ring."""
        if self._broker_is_down or self._is_eager:
            return
        try:
            self._flag.clear()
        except (redis.RedisError, OSError) as error:
            self._start_probe(error)

    @property
    def _is_eager(self) -> bool:
        """True if tasks run in the calling thread. A test may set that at any time."""
        return bool(self._celery.conf.task_always_eager)

    def _ring(self, urge: bool) -> bool:
        is_first, now = self._flag.set(), self._clock.monotonic()
        if urge:
            has_urged = now - self._urged_at < _UNANSWERED_SECONDS
            if has_urged and not is_first and self._flag.age() >= _UNANSWERED_SECONDS:
                return False
            self._urged_at = now
        if urge or is_first:
            policy: dict[str, Any] = {"retry": True, "retry_policy": dict(ONE_TRY)}
            self._celery.send_task(SEND, ignore_result=True, **policy, **_NO_LIMITS)
        return True

    # --- while the broker is down ----------------------------------------------------------------

    @property
    def _broker_is_down(self) -> bool:
        return self._probe is not None and self._probe.is_alive()

    def after_fork_in_child(self) -> None:
        """Forget the probe, a thread of the parent: the child's first ring tries the broker."""
        self._probe = None
        self._flag.forget_connections()

    def _start_probe(self, error: Exception) -> None:
        """Let a thread try the broker, so that no other request waits for a time-out."""
        if not self._broker_is_down:  # two probes, of two threads that are here at once, do no harm
            self._probe = start_daemon(self._ring_again, "mailer-bell")
            with addresses_shown(self._shows_addresses):
                log.warning(
                    "The broker does not answer; mail is stored, and the sweep finds it: error=%s",
                    error,
                )

    def _ring_again(self) -> None:
        """Ring until the broker answers."""
        while True:
            self._clock.sleep(_PAUSE_SECONDS)
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

    Requests wait for it, so its commands are packed once, and its connections are its own: the
    client's commands and pool take twice as long.
    """

    def __init__(self, url: str, name: str) -> None:
        once = Retry(NoBackoff(), 0)
        pool = redis.ConnectionPool.from_url(
            url,
            socket_connect_timeout=1,
            socket_timeout=2,
            retry=once,
        )
        self._connect: Callable[[], Any] = partial(pool.connection_class, **pool.connection_kwargs)
        self._idle: list[Any] = []  # connections
        unconnected: Any = redis.Connection()  # type: ignore[no-untyped-call]  # of redis
        pack = unconnected.pack_command
        self._set = pack("SET", name, 1, "PX", _FLAG_MILLISECONDS, "NX")
        self._time_left = pack("PTTL", name)
        self._delete = pack("DEL", name)

    def set(self) -> bool:
        """Set the flag. Return False if it was set already."""
        return bool(self._ask(self._set))

    def age(self) -> float:
        """Return the seconds since the flag was set."""
        left = self._ask(self._time_left)
        return (_FLAG_MILLISECONDS - left) / 1000 if left > 0 else 0.0

    def clear(self) -> None:
        self._ask(self._delete)

    def forget_connections(self) -> None:
        """Leave the connections to the parent of a forked process."""
        self._idle = []

    def _ask(self, command: Any) -> Any:
        """Return the reply. Connect again if Redis has closed an idle connection."""
        try:
            connection = self._idle.pop()
        except IndexError:
            return self._ask_over(self._connect(), command)
        try:
            return self._ask_over(connection, command)
        except redis.ConnectionError:
            self._idle.clear()
            reply = self._ask_over(self._connect(), command)
            # The first SET may have been done, so better ring twice than not at all.
            return reply or command is self._set

    def _ask_over(self, connection: Any, command: Any) -> Any:
        try:
            connection.send_packed_command(command)
            reply = connection.read_response()
        except BaseException:
            connection.disconnect()  # the reply to this command must not answer the next one
            raise
        self._idle.append(connection)
        return reply


class _OwnFlag:
    """The flag of one process, if the broker is not a plain Redis.

    Whether a worker has answered is unknown then, so its age is always 0.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._set_at = 0.0

    def set(self) -> bool:
        now = self._clock.monotonic()
        if now - self._set_at < _OWN_FLAG_SECONDS:
            return False
        self._set_at = now
        return True

    def age(self) -> float:
        return 0.0

    def clear(self) -> None:
        self._set_at = 0.0

    def forget_connections(self) -> None:
        """Do nothing: it has none."""
