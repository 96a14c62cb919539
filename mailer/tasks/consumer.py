"""How a worker listens to the broker: nothing that happens to the broker, and nothing that somebody puts into it, ends it.

What makes no sense is refused and counted: it is taken out of the queue, it runs nothing, and the log gets a short line.
"""

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import redis
from celery import bootsteps
from celery.bootsteps import RUN  # type: ignore[attr-defined]  # the stub forgot it
from celery.worker import state
from celery.worker.consumer import Consumer
from kombu.asynchronous import timer
from kombu.exceptions import ContentDisallowed, DecodeError

from mailer.logs import get_logger

# Celery would wait for up to half a minute between two tries, and nobody would hear a ring meanwhile.
_LONGEST_PAUSE_SECONDS = 3.0
# After a broker that answers has refused to work, such as a Redis that is full.
_PAUSE_SECONDS = 1.0
_LONGEST_ID = 255
_LONGEST_OBJECTION = 200

# What is raised by code that trusted a message.
_NONSENSE = (ContentDisallowed, DecodeError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError)
# Mailer's own tasks are called with nothing at all, and these headers make something else of a call.
_OWN = "mailer."
_BAGGAGE = ("eta", "expires", "group", "retries", "shadow", "stamped_headers")

log = get_logger(__name__)


def transport_options(connect: float, answer: float, health_check: float = 25) -> dict[str, Any]:
    """Without time-outs a frozen Redis blocks for ever. Never retry_on_timeout: it publishes twice."""
    return {
        "socket_connect_timeout": connect,
        "socket_timeout": answer,
        "socket_keepalive": True,
        "health_check_interval": health_check,
        "visibility_timeout": 3600,
    }


class PatientWorker(bootsteps.Step):
    """A worker can wait longer for the broker than a request does: for BRPOP it has to. If no answer comes, it dials again."""

    def __init__(self, worker: Any, **options: Any) -> None:
        super().__init__(worker, **options)
        worker.app.conf.broker_transport_options = transport_options(connect=2, answer=3, health_check=5)


class PatientConsumer(Consumer):
    """Celery's own, which comes back within seconds, and survives every message."""

    controller: Any
    channel_errors: tuple[type[Exception], ...]
    connection_errors: tuple[type[Exception], ...]

    def __init__(self, *args: Any, **options: Any) -> None:
        self._refused = 0
        self.leave_lost: Callable[[], None] = lambda: None  #: the connection before the present one
        super().__init__(*args, **options)

    # --- the broker ---------------------------------------------------------------------------------------------------

    def ensure_connected(self, conn: Any) -> Any:
        """Wait until it answers."""
        pauses = {"interval_start": 1, "interval_step": 1, "interval_max": _LONGEST_PAUSE_SECONDS}
        conn.ensure_connection = partial(conn.ensure_connection, **pauses)
        transport = conn.get_transport_cls()
        if transport.driver_type == "redis":
            conn.info = partial(_info, conn, conn.transport_cls)
            conn.transport_cls = careful_transport(transport, self)
        return super().ensure_connected(conn)

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        """It is dialled again after this."""
        super().on_connection_error_after_connected(exc)
        if isinstance(exc, self.channel_errors):
            time.sleep(_PAUSE_SECONDS)

    # --- its messages -------------------------------------------------------------------------------------------------

    def create_task_handler(self, *args: Any) -> Callable[[Any], None]:
        handle = super().create_task_handler(*args)

        def receive(message: Any) -> None:
            try:
                if objection := _objection(message, self.app.tasks):
                    self.refuse(objection, message)
                else:
                    handle(message)
            except _NONSENSE as error:
                self.refuse(error, message)

        return receive

    def on_decode_error(self, message: Any, exc: Exception) -> None:
        self.refuse(exc, message)

    def on_invalid_task(self, body: Any, message: Any, exc: Exception) -> None:
        self.refuse(exc, message)

    def refuse(self, objection: object, message: Any = None) -> None:
        """Of what it says, the log gets a few letters, and nothing that a terminal obeys."""
        self._refused += 1
        said = ascii(str(objection)[:_LONGEST_OBJECTION])
        log.error("A message was refused, the %d. since this worker started: %s", self._refused, said)
        if message is not None:
            message.reject_log_error(log, self.connection_errors)


def _info(connection: Any, transport: str) -> dict[str, Any]:
    """As `celery inspect stats` tells it, in JSON: by name."""
    return {**type(connection).info(connection), "transport": transport}


def _objection(message: Any, tasks: Mapping[str, Any]) -> str:
    """Why it is nothing for a worker; nothing, if it is."""
    name, number = message.headers.get("task"), message.headers.get("id")
    if not isinstance(name, str) or name not in tasks:
        return f"no task has the name {str(name)[:_LONGEST_OBJECTION]}"
    if not isinstance(number, str) or len(number) > _LONGEST_ID or not number.isprintable():
        return f"{name}: its id is no id"
    if name.startswith(_OWN) and not _is_bare(message):
        return f"{name}: it is called with nothing, and this call has something"
    return ""


def _is_bare(message: Any) -> bool:
    args, kwargs, more = message.payload
    carries = (args, kwargs, any(more.values()), any(message.headers.get("timelimit") or ()))
    return not any(carries) and not any(message.headers.get(name) for name in _BAGGAGE)


def careful_transport(transport: type[Any], consumer: PatientConsumer) -> type[Any]:
    """The same way to Redis, which brings down no worker."""
    message = type("CarefulMessage", (_CarefulMessage, transport.Channel.Message), {"consumer": consumer})
    channel = type("CarefulChannel", (_CarefulChannel, transport.Channel), {"consumer": consumer, "Message": message})
    return type("CarefulTransport", (_CarefulTransport, transport), {"consumer": consumer, "Channel": channel})


_Of: Any = object  # of the transport, whose classes these go before


class _CarefulMessage(_Of):  # type: ignore[misc]  # see there
    """One that is not unpacked before it is known what it is."""

    consumer: PatientConsumer

    def __init__(self, payload: Any, **options: Any) -> None:
        if payload["headers"].get("compression") and not self.consumer.app.conf.task_compression:
            raise ValueError("it is compressed, and may be of any size")
        super().__init__(payload, **options)


class _CarefulTransport(_Of):  # type: ignore[misc]  # see there
    """One that takes the place of the one before: kombu would look after each lost connection until the worker ends."""

    consumer: PatientConsumer

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:
        self.consumer.leave_lost()
        before = set(loop.on_tick)
        super().register_with_event_loop(connection, loop)
        self.consumer.leave_lost = partial(_leave, loop, loop.on_tick - before, self.cycle)


def _leave(loop: Any, ticks: set[Any], cycle: Any) -> None:
    loop.on_tick -= ticks
    for entry in vars(cycle).values():
        if isinstance(entry, timer.Entry):
            entry.cancel()


class _CarefulChannel(_Of):  # type: ignore[misc]  # see there
    """One that drops what is no message: Celery would end, or have it delivered for ever."""

    consumer: PatientConsumer

    def __init__(self, *args: Any, **options: Any) -> None:
        if self.consumer.controller.blueprint.state == RUN:
            state.maybe_shutdown()  # Celery dials for ever to say that it is alive, and does not hear that it is to stop
        super().__init__(*args, **options)

    def _connparams(self, **options: Any) -> Any:
        """Asked for once more when the connection was given up: what is lost is the connection, and not the worker."""
        if self.connection is None or self.connection.client is None:
            raise redis.ConnectionError("the connection to the broker was given up")
        return super()._connparams(**options)

    def _brpop_read(self, **options: Any) -> Any:
        return self._guarded(super()._brpop_read, **options)

    def _receive(self) -> Any:
        return self._guarded(super()._receive)

    def _guarded(self, read: Callable[..., Any], **options: Any) -> Any:
        try:
            return read(**options)
        except OSError:
            raise  # of TLS, some are ValueErrors as well
        except _NONSENSE as error:
            self.consumer.refuse(f"{type(error).__name__}: {error}")
            return True
