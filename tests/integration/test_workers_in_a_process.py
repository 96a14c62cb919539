"""Several apps and workers in one process: each affects only its own mail."""

import gc
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from celery import Celery, signals
from celery.contrib.testing.worker import start_worker
from flask import Flask

from mailer import Mailer
from mailer.celery.app import TASKS, installed
from mailer.celery.maintenance import MailerStep
from tests.application import create_app
from tests.services.databases import sqlite_only
from tests.services.loggers import logging_left_alone

pytestmark = sqlite_only


def an_app(config: dict[str, str], *, own_celery: bool) -> Flask:
    if own_celery:
        return create_app(config)
    app = Flask(__name__)
    app.config.from_mapping(config)
    app.extensions["celery"] = Celery(
        "theirs",
        broker=config["MAILER_REDIS_URL"].replace("unix://", "redis+socket://"),
        set_as_current=False,
    )
    Mailer(app)
    return app


@pytest.mark.parametrize("own_celery", [True, False])
def test_an_app_that_is_dropped_is_gone(config: dict[str, str], own_celery: bool) -> None:
    """An app that is no longer referenced is collected, with its connections.

    Test suites make many apps; only the last one may stay, as Celery's default app.
    """
    dropped, pools = [], []
    for _ in range(50):
        app = an_app(config, own_celery=own_celery)
        app.extensions["celery"].finalize()
        app.extensions["mailer"].store.take_chore("test", now=time.time(), every=1)
        dropped.append(weakref.ref(app))
        pools.append(app.extensions["mailer"].store.engine.pool)
    assert any(pool.checkedin() for pool in pools)
    del app
    gc.collect()

    assert sum(one() is not None for one in dropped) <= int(own_celery)
    assert sum(pool.checkedin() for pool in pools) <= int(own_celery)


def test_apps_that_share_a_celery_app(config: dict[str, str]) -> None:
    """A Celery app keeps the newest app of a factory, and no other that is dropped.

    A `worker.py` may hold the Celery app alone; a test suite may make many apps for one.
    """
    celery: Celery[Any] = Celery("theirs", broker="memory://", set_as_current=False)
    celery.finalize()

    def make(name: str) -> weakref.ref[Flask]:
        app = Flask(name)
        app.config.from_mapping(config)
        app.extensions["celery"] = celery
        Mailer(app)
        return weakref.ref(app)

    made = [make(name) for name in (*("shop", "forum") * 20, "shop")]
    gc.collect()

    left = [app for one in made if (app := one()) is not None]
    assert left == [outbound.app for outbound in installed(celery)]
    assert [app.import_name for app in left] == ["forum", "shop"]


@pytest.mark.parametrize("own_celery", [True, False])
def test_limits_of_the_application(config: dict[str, str], own_celery: bool) -> None:
    """The tasks keep their own time limits, whatever the application sets for all tasks."""
    app = an_app(config, own_celery=own_celery)
    celery: Celery[Any] = app.extensions["celery"]
    celery.conf.update(task_time_limit=2, task_soft_time_limit=1, task_acks_late=True)
    celery.conf.task_annotations = {"*": {"time_limit": 2, "soft_time_limit": 1, "acks_late": True}}
    longest = app.extensions["mailer"].settings.longest_delivery

    with running(celery):
        tasks = [celery.tasks[name] for name in TASKS]

    assert all(
        task.time_limit > longest < task.soft_time_limit and not task.acks_late for task in tasks
    )


@pytest.fixture(autouse=True)
def own_logging() -> Iterator[None]:
    """Keep a worker from replacing the log handlers of pytest."""
    with logging_left_alone():
        yield


@contextmanager
def running(celery: Celery[Any]) -> Iterator[None]:
    """Run a real worker of Celery in a thread."""
    with start_worker(celery, pool="solo", perform_ping_check=False, shutdown_timeout=30):
        yield


def test_a_worker_that_stops_leaves_the_others_alone(
    config: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that stops ends only its own Celery app's deliveries, until it starts again."""
    hung_up: list[str] = []
    apps = {name: an_app(config, own_celery=True) for name in ("first", "second")}
    dispatchers = {name: app.extensions["mailer"].outbound.dispatcher for name, app in apps.items()}
    for name, dispatcher in dispatchers.items():
        monkeypatch.setattr(dispatcher, "hang_up", lambda name=name: hung_up.append(name))

    with started(apps["first"], "first"):
        with started(apps["second"], "second") as second:
            signals.worker_shutting_down.send(sender=second.hostname)
            signals.worker_shutdown.send(sender=second)
            assert stopped(dispatchers.values()) == [False, True]
        assert hung_up == ["second"]
        assert stopped(dispatchers.values()) == [False, True]
        with started(apps["second"], "second again"):
            assert stopped(dispatchers.values()) == [False, False]


@dataclass(frozen=True, slots=True, weakref_slot=True)
class WorkerOfStep:
    """The attributes of a worker that our bootstep uses.

    Celery can't run two workers in one process: they share its flag to stop, and its event loop.
    """

    app: Celery[Any]
    hostname: str


@contextmanager
def started(app: Flask, name: str) -> Iterator[WorkerOfStep]:
    """Start our part of a worker."""
    worker = WorkerOfStep(app.extensions["celery"], f"{name}@localhost")
    step = MailerStep(worker)
    step.create(worker)
    step.start(worker)
    try:
        yield worker
    finally:
        step.stop(worker)


def stopped(dispatchers: Any) -> list[bool]:
    return [dispatcher.flags.is_stopped for dispatcher in dispatchers]
