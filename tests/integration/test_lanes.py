"""The queues of the lanes: where rings go, and what a worker consumes."""

import json
from collections.abc import Callable, Iterator

import pytest
import redis
from celery import Celery
from flask import Flask
from kombu import Queue

from mailer import ConfigurationError
from mailer.celery.bell import CeleryBell
from mailer.celery.lanes import choose_queues, queue_of
from mailer.clock import SystemClock
from mailer.message import Lane
from tests.services.databases import sqlite_only
from tests.shop import create_shop

ALL = frozenset(Lane)
OWN = ["mailer-tests", "mailer-tests.bulk", "mailer-tests.critical"]


@pytest.fixture
def app(open_shop: Callable[..., Flask], redis_url: str) -> Flask:
    return open_shop(MAILER_REDIS_URL=redis_url, MAIL_SUPPRESS_SEND=False, MAILER_NAMESPACE="tests")


@pytest.fixture
def celery(app: Flask) -> Celery:
    made: Celery = app.extensions["celery"]
    return made


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as client:
        yield client


def bell_of(app: Flask) -> CeleryBell:
    return CeleryBell(app.extensions["celery"], app.extensions["mailer"].settings, SystemClock())


def theirs(*declared: str) -> Celery:
    """Return a Celery app of an application, which declares these queues."""
    celery = Celery("theirs", set_as_current=False)
    if declared:
        celery.conf.task_queues = [Queue(name, routing_key=name) for name in declared]
    return celery


def consumed(celery: Celery) -> list[str]:
    return sorted(celery.amqp.queues.consume_from)


# --- rings --------------------------------------------------------------------------------------


@sqlite_only
def test_rings_of_our_celery_app(app: Flask, client: redis.Redis) -> None:
    """Critical and bulk mail ring in queues of their own, which bear the namespace."""
    bell = bell_of(app)
    assert all(bell.ring(lanes=[lane]) for lane in Lane)
    assert all(bell.ring(lanes=[lane]) for lane in Lane)

    assert {name: client.llen(name) for name in OWN} == dict.fromkeys(OWN, 1)


def test_one_ring_is_enough_for_lanes_with_one_queue(redis_url: str, client: redis.Redis) -> None:
    """Lanes of the application's own Celery app share its queue, and get one ring together."""
    celery = theirs("work", "work.bulk")
    celery.conf.update(broker_url=redis_url.replace("unix", "redis+socket"))
    celery.conf.task_default_queue = "work"
    app = create_shop(
        {"MAILER_DATABASE_URL": "sqlite://", "MAILER_REDIS_URL": redis_url}, celery=celery
    )
    assert bell_of(app).ring(lanes=[*Lane], urge=True)

    assert (client.llen("work"), client.llen("work.bulk")) == (1, 1)


@sqlite_only
def test_an_answer_is_for_one_queue(app: Flask, client: redis.Redis) -> None:
    """Who has heard a ring in one queue does not make others ring again in another one."""
    bell = bell_of(app)
    bell.ring(lanes=[*Lane])
    [ring] = map(json.loads, client.lrange("mailer-tests.critical", 0, -1))

    bell.answer(ring["properties"]["delivery_info"]["routing_key"])
    bell.ring(lanes=[*Lane])

    assert client.llen("mailer-tests.critical") == 2
    assert client.llen("mailer-tests") == client.llen("mailer-tests.bulk") == 1
    assert client.exists("mailer:tests:ring") == 1


# --- workers ------------------------------------------------------------------------------------


@sqlite_only
@pytest.mark.parametrize(
    ("lanes", "queues"),
    [
        (ALL, OWN),
        ({Lane.NORMAL}, ["mailer-tests"]),
        ({Lane.BULK}, ["mailer-tests.bulk"]),
        ({Lane.CRITICAL, Lane.NORMAL}, ["mailer-tests", "mailer-tests.critical"]),
    ],
)
def test_a_worker_of_our_celery_app(
    celery: Celery, lanes: frozenset[Lane], queues: list[str]
) -> None:
    """A worker consumes the queues of its lanes, without an option."""
    choose_queues(celery, lanes)

    assert consumed(celery) == queues


@sqlite_only
def test_a_worker_that_names_the_queue_of_an_earlier_version(celery: Celery) -> None:
    """With -Q and the queue that had all rings, a worker consumes its lanes' queues as well."""
    celery.amqp.queues.select(["mailer-tests", "images"])
    choose_queues(celery, ALL)

    assert consumed(celery) == ["images", *OWN]


@sqlite_only
def test_a_worker_for_other_tasks(celery: Celery) -> None:
    """With -Q and none of our queues, a worker consumes just that."""
    celery.amqp.queues.select(["images"])
    choose_queues(celery, ALL)

    assert consumed(celery) == ["images"]


def test_queues_that_an_application_declares() -> None:
    """In an application's own Celery app, a lane has a queue of its own if it is declared."""
    celery = theirs("celery", "celery.bulk")

    bulk = queue_of(celery, Lane.BULK)
    assert bulk is not None
    assert bulk.name == "celery.bulk"
    assert queue_of(celery, Lane.CRITICAL) is None


def test_routes_of_an_application() -> None:
    """The queues of the lanes go with the queue to which the application routes our tasks."""
    celery = theirs("celery", "mail", "mail.critical")
    celery.conf.task_routes = {"mailer.*": "mail"}

    critical = queue_of(celery, Lane.CRITICAL)
    assert critical is not None
    assert critical.name == "mail.critical"


@pytest.mark.parametrize(
    ("declared", "selected"),
    [
        pytest.param((), (), id="all rings are in one queue"),
        pytest.param(("celery", "celery.bulk"), (), id="no -Q"),
        pytest.param(("celery", "celery.bulk"), ("celery",), id="the queue of others"),
        pytest.param(("celery", "celery.bulk"), ("celery", "celery.bulk"), id="both"),
        pytest.param(("celery",), ("celery.bulk",), id="not declared"),
    ],
)
def test_a_dedicated_worker_that_would_take_rings_of_others(
    declared: tuple[str, ...], selected: tuple[str, ...]
) -> None:
    """A dedicated worker of an application's own Celery app says what to declare, and its -Q."""
    celery = theirs(*declared)
    celery.amqp.queues.select([*selected])

    with pytest.raises(ConfigurationError, match=r"MAILER_WORKER_LANES: .* -Q celery\.bulk\."):
        choose_queues(celery, {Lane.BULK})


def test_a_dedicated_worker_of_their_celery_app() -> None:
    """With -Q and its own queue, a dedicated worker starts; one for all lanes needs no option."""
    celery = theirs("celery", "celery.bulk")
    choose_queues(celery, ALL)
    assert consumed(celery) == ["celery", "celery.bulk"]

    celery.amqp.queues.select(["celery.bulk", "images"])
    choose_queues(celery, {Lane.BULK})
    assert consumed(celery) == ["celery.bulk", "images"]
