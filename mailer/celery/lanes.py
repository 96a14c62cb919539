"""The queues of the lanes: a ring goes to a worker that serves the lane of the mail.

Critical and bulk mail have queues of their own, beside that of our tasks, which has all other
rings. In the application's own Celery app they have them if it declares them in `task_queues`.
"""

from collections.abc import Collection
from typing import Any

from celery import Celery
from kombu import Queue

from mailer.celery.app import SEND, is_made_by_mailer
from mailer.errors import ConfigurationError
from mailer.message import Lane

# Normal mail has the queue of all tasks: earlier versions ring there, whatever the lane.
_WITH_QUEUE = (Lane.CRITICAL, Lane.BULK)


def queue_of(celery: Celery[Any], lane: Lane) -> Queue | None:
    """Return the queue for rings about a lane. None: the one to which tasks of ours are routed."""
    common = _common_queue(celery)
    if common is None:
        return None
    name = f"{common.name}.{lane.name.lower()}"
    if not is_made_by_mailer(celery):
        return celery.amqp.queues[name] if name in _declared(celery) else None
    return Queue(name, routing_key=name) if lane in _WITH_QUEUE else None


def choose_queues(celery: Celery[Any], lanes: Collection[Lane]) -> None:
    """Let a worker consume the queues of the lanes that it serves, and of no other lane.

    Raise ConfigurationError if it can't, since it would take rings that are for others.
    """
    common = _common_queue(celery)
    if common is None:
        return
    queues = {lane: queue_of(celery, lane) or common for lane in Lane}
    consumed, known = celery.amqp.queues, {queue.name for queue in queues.values()}
    ours = {queues[lane].name for lane in lanes}
    others = {queue.name for lane, queue in queues.items() if lane not in lanes}
    chosen = set(consumed.consume_from)
    if is_made_by_mailer(celery):
        if known & chosen:  # else it is for other tasks: -Q says so
            for queue in queues.values():
                consumed.add(queue)
            consumed.select([*sorted(chosen - known), *sorted(ours)])
    elif set(lanes) != set(Lane) and (chosen & others or ours - chosen):
        raise ConfigurationError(_remedy(common.name, lanes))


def _common_queue(celery: Celery[Any]) -> Queue | None:
    """Return the queue to which Celery routes our tasks, unless that is no single queue."""
    queue: Queue | None = celery.amqp.router.route({}, SEND).get("queue")
    return queue


def _declared(celery: Celery[Any]) -> set[str]:
    """Return the names of the queues that the application declares: others are unknown to some."""
    return {getattr(queue, "name", queue) for queue in celery.conf.task_queues or ()}


def _remedy(common: str, lanes: Collection[Lane]) -> str:
    names = [lane.name.lower() for lane in sorted(lanes)]
    queues = ",".join(f"{common}.{name}" for name in names)
    return (
        f"MAILER_WORKER_LANES: a worker for {', '.join(names)} has to consume the queues of its"
        f" lanes, and no others'. Declare a queue for each in task_queues of your Celery app, such"
        f" as Queue('{common}.{names[0]}', routing_key='{common}.{names[0]}'), beside"
        f" Queue('{common}', routing_key='{common}'), in every process, and start the worker with"
        f" -Q {queues}."
    )
