"""Brokers other than a plain Redis: RabbitMQ, and Redis behind Sentinel."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from flask import Flask

from mailer import send_email
from tests.services.databases import sqlite_only
from tests.services.rabbitmq import FOLDERS, RabbitServer, running_rabbitmq
from tests.services.requirement import find_program
from tests.services.sentinel import MASTER, SentinelSet, running_sentinel
from tests.services.sink import Sink
from tests.services.waiting import wait_until
from tests.services.worker import StartWorkers, Worker

pytestmark = sqlite_only  # the database makes no difference here

RECEIVED = "Task mailer.send_email["


@pytest.fixture
def rabbitmq() -> Iterator[RabbitServer]:
    program = find_program("rabbitmq-server", also_in=FOLDERS)
    if program is None:
        pytest.skip("RabbitMQ is not installed (Debian package rabbitmq-server).")
    with running_rabbitmq(FOLDERS[0] / "rabbitmq-server") as server:
        yield server


@pytest.fixture
def sentinel(redis_program: Path) -> Iterator[SentinelSet]:
    with running_sentinel(redis_program) as servers:
        yield servers


@pytest.mark.timeout(300)  # RabbitMQ starts twice, which takes half a minute on a busy machine
def test_rabbitmq_carries_rings(
    rabbitmq: RabbitServer,
    config: dict[str, str],
    make_app: Callable[..., Flask],
    start_workers: StartWorkers,
    sink: Sink,
) -> None:
    """With amqp:// a worker receives rings, and receives them again after RabbitMQ restarts."""
    config["MAILER_REDIS_URL"] = rabbitmq.url
    [worker] = start_workers()
    app = make_app()
    queue(app, "Before")
    wait_until(lambda: rings(worker) > 0, timeout=30)

    rabbitmq.stop()
    queue(app, "Without")
    rabbitmq.start()
    before = rings(worker)

    wait_until(lambda: queue(app, "After") and rings(worker) > before, timeout=60)
    wait_until(lambda: {"Before", "Without", "After"} <= subjects(sink), timeout=30)


def test_sentinel_carries_rings(
    sentinel: SentinelSet,
    config: dict[str, str],
    make_app: Callable[..., Flask],
    start_workers: StartWorkers,
    sink: Sink,
) -> None:
    """With sentinel:// a worker receives rings, and receives them from the new master."""
    config["MAILER_REDIS_URL"] = sentinel.url
    [worker] = start_workers(env={"SENTINEL_MASTER": MASTER})
    app = make_app()
    app.extensions["celery"].conf.broker_transport_options["master_name"] = MASTER
    queue(app, "Before")
    wait_until(lambda: rings(worker) > 0, timeout=30)

    sentinel.stop_master()
    before = rings(worker)

    wait_until(lambda: queue(app, "After") and rings(worker) > before, timeout=60)
    wait_until(lambda: {"Before", "After"} <= subjects(sink), timeout=30)


def queue(app: Flask, subject: str) -> str:
    with app.app_context():
        return send_email("ada@example.com", subject, text="Hello").id


def rings(worker: Worker) -> int:
    assert worker.is_running
    return worker.log.read_text().count(RECEIVED)


def subjects(sink: Sink) -> set[str]:
    return {message.subject for message in sink.messages}
