"""A consumer that no outage of the broker ends, and no message that anybody puts into the queue.

A message that makes no sense is refused and counted: it leaves the queue, runs nothing, and gets a
short line in the log.
"""

import time
from collections.abc import Callable, Mapping
from functools import partial
from logging import Logger
from typing import Any

import redis
from celery import bootsteps
from celery.bootsteps import RUN  # type: ignore[attr-defined]  # the stub forgot it
from celery.worker import state
from celery.worker.consumer import Consumer
from kombu.asynchronous import timer
from kombu.exceptions import ContentDisallowed, DecodeError

from mailer.celery.app import transport_options
from mailer.logs import get_logger

# Celery would wait for up to half a minute between two tries, and no ring would be heard meanwhile.
_LONGEST_PAUSE_SECONDS = 3.0
# After a broker that answers has refused to work, such as a Redis that is full.
_PAUSE_SECONDS = 1.0
_LONGEST_ID = 255
_LONGEST_OBJECTION = 300
_LONGEST_NAME = 120

# Exceptions of code that trusted a message.
_NONSENSE = (
    ContentDisallowed,
    DecodeError,
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RecursionError,
)
# Our own tasks take no arguments. These headers would change what a call does.
_OWN = "mailer."
_EXTRAS = ("eta", "expires", "group", "retries", "shadow", "stamped_headers")

log: Logger = get_logger(__name__)


class PatientWorker(bootsteps.Step):
    """The time-outs of a worker: it may wait longer for the broker than a request may."""

    def __init__(self, worker: Any, **options: Any) -> None:
        super().__init__(worker, **options)
        conf, limits = worker.app.conf, transport_options(connect=2, answer=3, health_check=5)
        # The application may have added others, such as the name of the master behind Sentinel.
        conf.broker_transport_options = {**conf.broker_transport_options, **limits}


class PatientConsumer(Consumer):
    """Celery's consumer, but it reconnects within seconds and survives every message."""

    controller: Any
    channel_errors: tuple[type[Exception], ...]
    connection_errors: tuple[type[Exception], ...]

    def __init__(self, *args: Any, **options: Any) -> None:
        self._refused = 0
        #: Forgets the connection before this one.
        self.leave_lost: Callable[[], None] = lambda: None
        super().__init__(*args, **options)

    # --- the broker ------------------------------------------------------------------------------

    def ensure_connected(self, conn: Any) -> Any:
        """Wait until the broker answers."""
        pauses = {"interval_start": 1, "interval_step": 1, "interval_max": _LONGEST_PAUSE_SECONDS}
        conn.ensure_connection = partial(conn.ensure_connection, **pauses)
        transport = conn.get_transport_cls()
        if transport.driver_type == "redis":
            conn.info = partial(_info, conn, conn.transport_cls)
            conn.transport_cls = careful_transport(transport, self)
        return super().ensure_connected(conn)

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        """Pause before the next connection if the broker answered with an error."""
        super().on_connection_error_after_connected(exc)
        if isinstance(exc, self.channel_errors):
            time.sleep(_PAUSE_SECONDS)

    # --- messages --------------------------------------------------------------------------------

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
        """Count and log a message, and take it out of the queue.

        The log gets a few letters of the reason, and none that a terminal obeys.
        """
        self._refused += 1
        reason = ascii(str(objection)[:_LONGEST_OBJECTION])
        log.error(
            "A message was refused (no. %d since this worker started): %s",
            self._refused,
            reason,
        )
        if message is not None:
            message.reject_log_error(log, self.connection_errors)


def _info(connection: Any, transport: str) -> dict[str, Any]:
    """Return the description for `celery inspect stats`, with the name of the transport."""
    return {**type(connection).info(connection), "transport": transport}


def _objection(message: Any, tasks: Mapping[str, Any]) -> str:
    """Return the reason to refuse a message, or an empty string."""
    name, number = message.headers.get("task"), message.headers.get("id")
    if not isinstance(name, str) or name not in tasks:
        return f"no task has the name {str(name)[:_LONGEST_NAME]}{_import_hint(name)}"
    if not isinstance(number, str) or len(number) > _LONGEST_ID or not number.isprintable():
        return f"{name}: its id is no id"
    if name.startswith(_OWN) and not _is_bare(message, tasks[name]):
        return f"{name}: it is called with nothing, and this call has something"
    return ""


def _import_hint(name: object) -> str:
    """Return the remedy if the name may be that of a function which the worker has not imported."""
    module, _, function = name.rpartition(".") if isinstance(name, str) else ("", "", "")
    is_path = all(part.isidentifier() for part in (*module.split("."), function))
    if not is_path or module.startswith(_OWN) or len(str(name)) > _LONGEST_NAME:
        return ""
    return f": the module after -A has to import {module}"


def _is_bare(message: Any, task: Any) -> bool:
    """Return whether a message is a plain call: no arguments, no limits but those of the task."""
    args, kwargs, more = message.payload
    limits = message.headers.get("timelimit") or ()
    has_limits = any(limits) and limits != [task.time_limit, task.soft_time_limit]
    is_empty = not any((args, kwargs, any(more.values()), has_limits))
    return is_empty and not any(message.headers.get(name) for name in _EXTRAS)


def careful_transport(transport: type[Any], consumer: PatientConsumer) -> type[Any]:
    """Return a Redis transport like this one, with which no lost connection ends the worker."""
    own = {"consumer": consumer}
    message = type("CarefulMessage", (_CarefulMessage, transport.Channel.Message), dict(own))
    qos = type("CarefulQoS", (_CarefulQoS, transport.Channel.QoS), {})
    own_channel = {**own, "Message": message, "QoS": qos}
    channel = type("CarefulChannel", (_CarefulChannel, transport.Channel), own_channel)
    return type("CarefulTransport", (_CarefulTransport, transport), {**own, "Channel": channel})


_Base: Any = object  # the real base is a class of the transport: see `careful_transport`


class _CarefulMessage(_Base):  # type: ignore[misc]  # see there
    """A message that is not decompressed unless the application compresses its own."""

    consumer: PatientConsumer

    def __init__(self, payload: Any, **options: Any) -> None:
        if payload["headers"].get("compression") and not self.consumer.app.conf.task_compression:
            raise ValueError("it is compressed, and may have any size")
        super().__init__(payload, **options)


class _CarefulQoS(_Base):  # type: ignore[misc]  # see there
    """The messages that a worker has in hand.

    kombu counts a message for ever that could not be acknowledged: after a few, as many as a worker
    takes at a time, it would receive nothing any more.
    """

    def ack(self, delivery_tag: str) -> None:
        try:
            super().ack(delivery_tag)
        finally:
            self._quick_ack(delivery_tag)

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        try:
            super().reject(delivery_tag, requeue)
        finally:
            self._quick_ack(delivery_tag)


class _CarefulTransport(_Base):  # type: ignore[misc]  # see there
    """A transport that forgets the one before: kombu would poll each lost connection for ever."""

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


class _CarefulChannel(_Base):  # type: ignore[misc]  # see there
    """A channel that drops garbage: Celery would end, or have it redelivered for ever."""

    consumer: PatientConsumer

    def __init__(self, *args: Any, **options: Any) -> None:
        if self.consumer.controller.blueprint.state == RUN:
            # Celery reconnects for ever to send its heartbeat, and would not notice a stop.
            state.maybe_shutdown()
        super().__init__(*args, **options)

    def _connparams(self, *args: Any, **options: Any) -> Any:
        """Raise an error of the connection if it was given up: the worker then reconnects."""
        if self.connection is None or self.connection.client is None:
            raise redis.ConnectionError("the connection to the broker was given up")
        return super()._connparams(*args, **options)

    def _brpop_read(self, **options: Any) -> Any:
        return self._guarded(super()._brpop_read, **options)

    def _receive(self) -> Any:
        return self._guarded(super()._receive)

    def _guarded(self, read: Callable[..., Any], **options: Any) -> Any:
        try:
            return read(**options)
        except OSError:
            raise  # some errors of TLS are ValueErrors, too
        except _NONSENSE as error:
            self.consumer.refuse(f"{type(error).__name__}: {error}")
            return True
