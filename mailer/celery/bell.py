"""The doorbell: a ring is a task. While one is pending in its queue, only `urge` sends another."""

import math
import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from logging import Logger
from typing import Any

# Celery would import the first two at the first ring, while a request waits.
import celery.app.amqp  # noqa: F401
import kombu.transport.redis  # noqa: F401
import redis
from celery import Celery
from celery.exceptions import SoftTimeLimitExceeded
from kombu import Queue
from redis.backoff import NoBackoff
from redis.retry import Retry

from mailer.celery.app import ONE_TRY, SEND
from mailer.celery.lanes import queue_of
from mailer.forks import notice_fork, survive_forks
from mailer.logs import addresses_shown, get_logger
from mailer.message import Lane
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


@dataclass(slots=True)
class _RingQueue:
    """A queue of rings, which some lanes share, and its flag."""

    kombu: Queue | None  #: None: the queue to which Celery routes the task
    flag: "_SharedFlag | _OwnFlag"
    urged_at: float = -math.inf


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
        self._flags = _Flags(settings, clock)
        self._common = _RingQueue(None, self._flags.make(""))
        # The configuration of an application's own Celery app may change until the first ring.
        self._queues: dict[Lane, _RingQueue] = {}
        self._probe: threading.Thread | None = None
        survive_forks(self)

    def ring(
        self,
        mails: Collection[str] = (),
        *,
        lanes: Collection[Lane] = (Lane.NORMAL,),
        urge: bool = False,
    ) -> bool:
        """Call a worker for these lanes. The mail is committed.

        Return False if the broker does not answer or, with `urge`, if no ring is sent, since
        earlier ones are unanswered.
        """
        if self._inline is not None and self._is_eager:
            return self._inline.ring(mails, lanes=lanes, urge=urge)
        notice_fork()
        if self._broker_is_down:
            return False
        try:
            return self._ring(lanes, urge=urge)
        except SoftTimeLimitExceeded:
            raise  # the limit of the task that queues the mail
        except Exception as error:  # noqa: BLE001 -- else the caller thinks that there is no mail
            self._start_probe(error, lanes)
            return False

    def answer(self, queue: str = "") -> None:
        """Clear the flag of a queue: the next process that has mail may ring there."""
        if self._broker_is_down or self._is_eager:
            return
        try:
            self._queue_named(queue).flag.clear()
        except (redis.RedisError, OSError) as error:
            self._start_probe(error, tuple(Lane))

    @property
    def _is_eager(self) -> bool:
        """True if tasks run in the calling thread. A test may set that at any time."""
        return bool(self._celery.conf.task_always_eager)

    def _ring(self, lanes: Collection[Lane], *, urge: bool) -> bool:
        """Ring once in each queue of these lanes."""
        queues = {id(queue): queue for queue in map(self._queue_for, lanes)}
        rung = [self._ring_in(queue, urge=urge) for queue in queues.values()]
        return all(rung)

    def _ring_in(self, queue: _RingQueue, *, urge: bool) -> bool:
        is_first, now = queue.flag.set(), self._clock.monotonic()
        if urge:
            has_urged = now - queue.urged_at < _UNANSWERED_SECONDS
            if has_urged and not is_first and queue.flag.age() >= _UNANSWERED_SECONDS:
                return False
            queue.urged_at = now
        if urge or is_first:
            options: dict[str, Any] = {"retry": True, "retry_policy": dict(ONE_TRY), **_NO_LIMITS}
            if queue.kombu is not None:
                options["queue"] = queue.kombu
            self._celery.send_task(SEND, ignore_result=True, **options)
        return True

    def _queue_for(self, lane: Lane) -> _RingQueue:
        """Return the queue of a lane. If two threads make it, the first one is used."""
        if (found := self._queues.get(lane)) is None:
            queue = queue_of(self._celery, lane)
            made = self._common if queue is None else _RingQueue(queue, self._flags.make(lane.name))
            found = self._queues.setdefault(lane, made)
        return found

    def _queue_named(self, name: str) -> _RingQueue:
        for queue in map(self._queue_for, Lane):
            if queue.kombu is not None and queue.kombu.name == name:
                return queue
        return self._common

    # --- while the broker is down ----------------------------------------------------------------

    @property
    def _broker_is_down(self) -> bool:
        return self._probe is not None and self._probe.is_alive()

    def after_fork_in_child(self) -> None:
        """Forget the probe, a thread of the parent: the child's first ring tries the broker."""
        self._probe = None
        self._flags.forget_connections()

    def _start_probe(self, error: Exception, lanes: Collection[Lane]) -> None:
        """Let a thread try the broker, so that no other request waits for a time-out."""
        if not self._broker_is_down:  # two probes, of two threads that are here at once, do no harm
            self._probe = start_daemon(partial(self._ring_again, lanes), "mailer-bell")
            with addresses_shown(self._shows_addresses):
                log.warning(
                    "The broker does not answer; mail is stored, and the sweep finds it: error=%s",
                    error,
                )

    def _ring_again(self, lanes: Collection[Lane]) -> None:
        """Ring until the broker answers."""
        while True:
            self._clock.sleep(_PAUSE_SECONDS)
            try:
                self._ring(lanes, urge=True)
            except Exception as error:  # noqa: BLE001 -- as in ring()
                with addresses_shown(self._shows_addresses):
                    log.debug("The broker still does not answer: error=%s", error)
            else:
                log.warning("The broker answers again.")
                return


class _Flags:
    """The flags of the queues. They share connections."""

    def __init__(self, settings: Settings, clock: Clock) -> None:
        self._clock = clock
        self._name = f"mailer:{settings.installation}:ring"
        url = settings.flag_url
        self._connections: _Connections | None = None if url is None else _Connections(url)

    def make(self, queue: str) -> "_SharedFlag | _OwnFlag":
        if self._connections is None:
            return _OwnFlag(self._clock)
        name = f"{self._name}:{queue.lower()}" if queue else self._name
        return _SharedFlag(self._connections, name)

    def forget_connections(self) -> None:
        """Leave the connections to the parent of a forked process."""
        if self._connections is not None:
            self._connections.forget()


class _Connections:
    """Connections to Redis. Requests wait for them: the client's own pool takes twice as long."""

    def __init__(self, url: str) -> None:
        once = Retry(NoBackoff(), 0)
        pool = redis.ConnectionPool.from_url(
            url, socket_connect_timeout=1, socket_timeout=2, retry=once
        )
        self._connect: Callable[[], Any] = partial(pool.connection_class, **pool.connection_kwargs)
        self._idle: list[Any] = []

    def forget(self) -> None:
        self._idle = []

    def ask(self, command: Any, *, if_repeated: Any = None) -> Any:
        """Return the reply. Connect again if Redis has closed an idle connection.

        Then, the command may have been done twice: return `if_repeated` if there is no reply.
        """
        try:
            connection = self._idle.pop()
        except IndexError:
            return self._ask_over(self._connect(), command)
        try:
            return self._ask_over(connection, command)
        except redis.ConnectionError:
            self._idle.clear()
            return self._ask_over(self._connect(), command) or if_repeated

    def _ask_over(self, connection: Any, command: Any) -> Any:
        try:
            connection.send_packed_command(command)
            reply = connection.read_response()
        except BaseException:
            connection.disconnect()  # the reply to this command must not answer the next one
            raise
        self._idle.append(connection)
        return reply


class _SharedFlag:
    """A key in Redis that says "a ring is pending". Its commands are packed once."""

    def __init__(self, connections: _Connections, name: str) -> None:
        self._connections = connections
        unconnected: Any = redis.Connection()  # type: ignore[no-untyped-call]  # of redis
        pack = unconnected.pack_command
        self._set = pack("SET", name, 1, "PX", _FLAG_MILLISECONDS, "NX")
        self._time_left = pack("PTTL", name)
        self._delete = pack("DEL", name)

    def set(self) -> bool:
        """Set the flag. Return False if it was set already.

        If that was asked twice, better ring twice than not at all.
        """
        return bool(self._connections.ask(self._set, if_repeated=True))

    def age(self) -> float:
        """Return the seconds since the flag was set."""
        left = self._connections.ask(self._time_left)
        return (_FLAG_MILLISECONDS - left) / 1000 if left > 0 else 0.0

    def clear(self) -> None:
        self._connections.ask(self._delete)


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
