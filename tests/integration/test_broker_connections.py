"""A worker's connection to the broker, lost at a bad moment."""

from contextlib import suppress
from typing import Any
from unittest.mock import Mock

import pytest
from kombu import Connection, Consumer, Message, Queue
from kombu.asynchronous import Hub

from mailer.celery.consumer import PatientConsumer, careful_transport
from tests.services.broker import RedisServer


def test_a_lost_connection_ends_no_worker(redis_server: RedisServer) -> None:
    """A worker with a task in hand that waits for the next can give up a lost connection."""
    connection, _consumer, _messages = consuming(redis_server)
    connection.Consumer([Queue("control")], channel=connection.channel()).consume()
    with suppress(TimeoutError):
        connection.drain_events(timeout=0.1)

    redis_server.stop()
    with suppress(*connection.connection_errors):
        connection.collect()

    connection.close()  # as Celery does: any error but a connection error ends it


def test_an_acknowledgement_that_comes_too_late_ends_no_worker(redis_server: RedisServer) -> None:
    """Acknowledging over a lost connection raises an error of the connection, and no other."""
    connection, _consumer, [message] = consuming(redis_server)
    channel: Any = message.channel
    message.ack()
    connection.close()

    with pytest.raises(connection.connection_errors):
        channel.basic_ack(message.delivery_tag)


@pytest.mark.parametrize("answer", ["ack", "reject"])
def test_a_worker_receives_after_a_frozen_broker(redis_server: RedisServer, answer: str) -> None:
    """A message that can't be acknowledged keeps no place of those that a worker takes at a time.

    Otherwise, a worker hears no ring any more, once Redis has been frozen as often.
    """
    options = {"socket_timeout": 0.1}
    connection, consumer, [message] = consuming(redis_server, transport_options=options)
    channel: Any = message.channel
    consumer.qos(prefetch_count=1)
    assert not channel.qos.can_consume()

    redis_server.pause()
    with pytest.raises(connection.connection_errors):
        getattr(message, answer)()
    redis_server.resume()

    assert channel.qos.can_consume()
    connection.close()


def test_a_task_in_hand_goes_back_to_the_queue(redis_server: RedisServer) -> None:
    """A worker that stops in good order returns a task it has not begun to the queue."""
    connection, _consumer, _messages = consuming(redis_server)
    connection.close()

    _connection, _consumer, messages = consuming(redis_server, publish=False)

    assert [message.payload for message in messages] == ["a task"]


def test_a_lost_connection_is_let_go(redis_server: RedisServer) -> None:
    """A worker drops the callbacks and timers of lost connections, so it does not grow."""
    hub, worker = Hub(), Mock(PatientConsumer, controller=Mock(), leave_lost=lambda: None)
    kept = []

    for _ in range(3):
        connection, _consumer, _messages = consuming(redis_server, worker=worker)
        connection.register_with_event_loop(hub)
        kept.append((len(hub.on_tick), sum(not due.entry.canceled for due in hub.timer.queue)))
        connection.collect()

    assert kept[0][1] > 0
    assert kept == [kept[0]] * 3


def consuming(
    server: RedisServer,
    *,
    publish: bool = True,
    worker: Mock | None = None,
    transport_options: dict[str, Any] | None = None,
) -> tuple[Connection, Consumer, list[Message]]:
    """Return a connection, its consumer and its tasks, which are not acknowledged."""
    connection = Connection(
        server.url.replace("unix://", "redis+socket://"), transport_options=transport_options
    )
    worker = worker or Mock(PatientConsumer, controller=Mock())  # refuses nothing
    reached: Any = connection
    reached.transport_cls = careful_transport(connection.get_transport_cls(), worker)
    queue = Queue("tasks")
    if publish:
        connection.Producer().publish("a task", routing_key="tasks", declare=[queue])
    messages: list[Message] = []
    consumer = connection.Consumer([queue], on_message=messages.append)
    consumer.consume()
    while not messages:
        connection.drain_events(timeout=10)
    return connection, consumer, messages
