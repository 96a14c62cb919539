"""Workers that are dedicated to lanes, with real processes and a real broker."""

import time
from collections.abc import Callable
from functools import partial

import pytest
from flask import Flask
from sqlalchemy import delete, insert

from mailer import Mailer, Message
from mailer.attendance import absence
from mailer.celery.app import SEND
from mailer.message import Lane
from mailer.schema import chore
from mailer.smtpd.faults import DELAY, Fault
from mailer.store.workers import SWEEP
from tests.services.broker import RedisServer
from tests.services.databases import sqlite_only
from tests.services.sink import Sink
from tests.services.waiting import wait_until
from tests.services.worker import StartWorker

MakeApp = Callable[..., Flask]
Config = dict[str, str]

mailer = Mailer()
CODE = "code@example.com"


def dedicated(start_worker: StartWorker, lanes: str, **options: object) -> None:
    start_worker(env={"MAILER_WORKER_LANES": lanes}, **options)


def queue_news(app: Flask, count: int) -> None:
    """Queue bulk mail: mails of a thousand recipients each, since that is quick."""
    with app.app_context():
        for start in range(0, count, 1000):
            message = Message("News", body="News")
            message.bcc += [f"reader{start + number}@example.com" for number in range(1000)]
            mailer.enqueue(message, lane="bulk")


def send_code(app: Flask, lane: str = "critical", to: str = CODE) -> str:
    with app.app_context():
        receipt = mailer.send_email(to, "Your code", text="4711", lane=lane)
    return receipt.id


def stop_sweeps(app: Flask) -> None:
    """Put all sweeps off for ten seconds, so that mail goes out by its ring or not at all."""
    names = [SWEEP, *(f"{SWEEP}.{lane.name.lower()}" for lane in Lane)]
    put_off = [{"name": name, "due_at": time.time() + 10} for name in names]
    with app.extensions["mailer"].store.engine.begin() as connection:
        connection.execute(delete(chore).where(chore.c.name.in_(names)))
        connection.execute(insert(chore), put_off)


def recipients(sink: Sink) -> list[str]:
    return [recipient for mail in sink.messages for recipient in mail.recipients]


def wait_until_sent(app: Flask, *mails: str) -> None:
    with app.app_context():
        wait_until(
            lambda: all(status.is_finished for status in mailer.statuses(mails).values()),
            timeout=20,
        )


def codes_at(sink: Sink, count: int) -> bool:
    return recipients(sink).count(CODE) == count


@pytest.mark.timeout(120)
def test_a_worker_for_critical_mail_beside_a_busy_one(
    make_app: MakeApp, start_worker: StartWorker, sink: Sink
) -> None:
    """A ring for critical mail never goes to a worker that is busy with bulk mail only."""
    app = make_app()
    sink.faults.add(Fault("dot", DELAY, delay=0.2, times=None))
    queue_news(app, 10_000)
    dedicated(start_worker, "bulk", concurrency=2)
    sink.wait_for(4)
    dedicated(start_worker, "critical", concurrency=2)
    stop_sweeps(app)

    for number in range(1, 5):
        send_code(app)
        wait_until(partial(codes_at, sink, number), timeout=8)

    assert len(sink.messages) < 10_000


def test_a_dedicated_worker_takes_no_other_mail(
    make_app: MakeApp, start_worker: StartWorker, sink: Sink
) -> None:
    """Mail of other lanes stays queued, and is reported, until a worker for it comes."""
    app = make_app()
    store = app.extensions["mailer"].store
    dedicated(start_worker, "bulk")
    codes = [send_code(app), send_code(app, "normal", "order@example.com")]
    news = send_code(app, "bulk", "news@example.com")
    wait_until_sent(app, news)
    for number in range(3):  # each of them has the worker look again
        wait_until_sent(app, send_code(app, "bulk", f"news{number}@example.com"))

    assert not {CODE, "order@example.com"} & {*recipients(sink)}
    with app.app_context():
        assert [mailer.status(code).deliveries[0].attempts for code in codes] == [0, 0]
    assert "1 mail is due in the lane critical, which no worker serves" in (
        absence(store, time.time()) or ""
    )

    dedicated(start_worker, "critical,normal")
    wait_until_sent(app, *codes)
    wait_until(lambda: absence(store, time.time()) is None)


@sqlite_only
def test_dedicated_workers_without_redis(
    config: Config,
    make_app: MakeApp,
    start_worker: StartWorker,
    sink: Sink,
    redis_server: RedisServer,
) -> None:
    """While Redis is away, each worker delivers the mail of its lanes, whoever sweeps."""
    config["MAILER_REDIS_URL"] = redis_server.url
    app = make_app()
    dedicated(start_worker, "bulk")
    dedicated(start_worker, "critical")
    redis_server.stop()

    for number in range(3):
        lanes = ("critical", "bulk")
        wait_until_sent(app, *(send_code(app, lane, f"{lane}{number}@x.example") for lane in lanes))


@sqlite_only
@pytest.mark.parametrize("lane", [*Lane])
def test_a_worker_without_lanes_hears_every_ring(
    make_app: MakeApp, start_worker: StartWorker, sink: Sink, lane: Lane
) -> None:
    """A plain worker hears the ring of each lane, and those of an earlier version."""
    app = make_app()
    start_worker()
    stop_sweeps(app)
    send_code(app, lane.name.lower())
    sink.wait_for(1, timeout=8)

    silent = make_app(MAILER_REDIS_URL="unix:///nowhere/redis.sock")
    send_code(silent, lane.name.lower())
    app.extensions["celery"].send_task(SEND)  # as an earlier version rang, for any lane
    sink.wait_for(2, timeout=8)
