"""From the request to the SMTP server, with real processes, workers and broker."""

import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import redis
from flask import Flask
from sqlalchemy import text

from mailer import Mailer, Status
from mailer.smtpd.faults import DELAY, HANG, Fault
from tests.services.broker import RedisServer
from tests.services.databases import Databases, sqlite_only
from tests.services.queueing import address, queue_from_processes
from tests.services.sink import Sink
from tests.services.waiting import wait_until
from tests.services.worker import StartWorker, StartWorkers

MakeApp = Callable[..., Flask]
Config = dict[str, str]

mailer = Mailer()


@pytest.mark.parametrize("pool", ["prefork", "threads", "gevent"])
def test_a_mail_arrives(
    make_app: MakeApp, start_worker: StartWorker, sink: Sink, pool: str
) -> None:
    """A worker of any pool delivers, and the status has the relay's reply."""
    start_worker(pool=pool)

    with make_app().test_request_context():
        receipt = mailer.send_email("ada@example.com", "Welcome", "welcome", name="Ada")
        [received] = sink.wait_for(1)
        wait_until(lambda: mailer.status(receipt.id).is_finished)
        [delivery] = mailer.status(receipt.id).deliveries

    assert received.recipients == ("ada@example.com",)
    assert received.message_id == receipt.message_id
    assert (delivery.status, delivery.attempts) == (Status.SENT, 1)
    assert "queued as 1" in (delivery.reply or "")


# A thousand mails

a_thousand = pytest.mark.timeout(300)


def assert_each_was_sent_once(app: Flask, sink: Sink, ids: list[str]) -> None:
    """Compare the ids that were returned, the mails that arrived, and the database."""
    expected = {address(number): 1 for number in range(len(ids))}
    with app.app_context():
        wait_until(
            lambda: all(status.is_finished for status in mailer.statuses(ids).values()),
            timeout=120,
        )
        statuses = mailer.statuses(ids)

    assert Counter(recipient for mail in sink.messages for recipient in mail.recipients) == expected
    assert len({mail.message_id for mail in sink.messages}) == len(ids)
    assert {mail.message_id for mail in sink.messages} == {
        status.message_id for status in statuses.values()
    }
    deliveries = [delivery for status in statuses.values() for delivery in status]
    assert {delivery.status for delivery in deliveries} == {Status.SENT}
    assert all("queued as" in (delivery.reply or "") for delivery in deliveries)
    assert {delivery.attempts for delivery in deliveries} == {1}


@a_thousand
def test_a_thousand_mails_arrive_once_each(
    config: Config, make_app: MakeApp, start_workers: StartWorkers, sink: Sink
) -> None:
    """Queued by four processes and delivered by two workers, each mail arrives once."""
    start_workers(2)

    ids = queue_from_processes(config, processes=4, each=250)

    assert_each_was_sent_once(make_app(), sink, ids)


@a_thousand
@sqlite_only
def test_a_redis_that_forgets_everything_costs_nothing(
    config: Config,
    make_app: MakeApp,
    start_workers: StartWorkers,
    sink: Sink,
    redis_server: RedisServer,
) -> None:
    """FLUSHALL loses rings but no mail, and no mail is sent twice."""
    config["MAILER_REDIS_URL"] = redis_server.url
    start_workers(2)

    with ThreadPoolExecutor(1) as thread:
        queueing = thread.submit(queue_from_processes, config, processes=4, each=250)
        for mails in (100, 400, 700):
            sink.wait_for(mails, timeout=60)
            redis_server.flush()

    assert_each_was_sent_once(make_app(), sink, queueing.result())


# Without the broker


@pytest.mark.alone
def test_a_request_does_not_wait_for_a_redis_that_is_down(
    config: Config,
    make_app: MakeApp,
    start_worker: StartWorker,
    sink: Sink,
    redis_server: RedisServer,
) -> None:
    """Mail is accepted and delivered without Redis; rings resume when it is back."""
    config["MAILER_REDIS_URL"] = redis_server.url
    worker = start_worker()
    redis_server.stop()

    with make_app().test_request_context():
        started = time.perf_counter()
        mailer.send_email("ada@example.com", "Welcome", "welcome", name="Ada")
        # Far below any time-out; the bench measures how long it takes.
        assert time.perf_counter() - started < 1

        sink.wait_for(1)
        redis_server.start()
        wait_until(lambda: worker.log.read_text().count("Connected to") == 2, timeout=45)
        mailer.send_email("ada@example.com", "Welcome", "welcome", name="Ada")
        sink.wait_for(2)


@pytest.mark.alone
def test_a_request_waits_for_a_frozen_redis_once(
    config: Config, make_app: MakeApp, redis_server: RedisServer
) -> None:
    """The first mail of a process waits for one time-out, later mail for none."""
    config["MAILER_REDIS_URL"] = redis_server.url
    redis_server.pause()
    try:
        with make_app().test_request_context():
            mailer.send_email("ada@example.com", "Welcome", "welcome", name="Ada")
            started = time.perf_counter()
            for _ in range(20):
                mailer.send_email("ada@example.com", "Welcome", "welcome", name="Ada")
            assert time.perf_counter() - started < 1.5  # less than a second time-out
    finally:
        redis_server.resume()


def test_a_lost_ring_costs_one_sweep(
    make_app: MakeApp, start_worker: StartWorker, sink: Sink, redis_url: str
) -> None:
    """The sweep finds a mail whose ring never reached a worker, without beat."""
    app = make_app()
    with app.test_request_context():
        mailer.send_email("ada@example.com", "Welcome", "welcome", name="Ada")
    with redis.Redis.from_url(redis_url) as client:
        # Only the ring is deleted. Its flag stays, so that no later mail rings either.
        assert client.delete(app.extensions["celery"].conf.task_default_queue) == 1

    start_worker()

    sink.wait_for(1, timeout=10)


@sqlite_only
def test_installations_that_share_a_redis(
    config: Config,
    make_app: MakeApp,
    start_worker: StartWorker,
    sink: Sink,
    sqlite_databases: Databases,
) -> None:
    """Each worker takes the rings of its own installation only, without an option."""
    with sqlite_databases.migrated() as other_database:
        others = start_worker(env={"MAILER_DATABASE_URL": other_database}, loglevel="INFO")
        worker = start_worker()
        with make_app().test_request_context():
            for number in range(1, 9):
                mailer.send_email("ada@example.com", "Welcome", "welcome", name="Ada")
                sink.wait_for(number)
        with make_app(MAILER_DATABASE_URL=other_database).test_request_context():
            assert others.log.read_text().count("Task mailer.send_email") == 0
            mailer.send_email("bob@example.com", "Welcome", "welcome", name="Bob")
            sink.wait_for(9)

    assert worker.log.read_text().count("Task mailer.send_email") >= 8
    assert sink.messages[-1].recipients == ("bob@example.com",)


@sqlite_only
@pytest.mark.parametrize("pool", ["prefork", "gevent"])
def test_a_worker_says_that_it_is_there(
    make_app: MakeApp, start_worker: StartWorker, pool: str
) -> None:
    """A worker is listed once while it runs, and no more after it has stopped."""
    app = make_app()
    store = app.extensions["mailer"].store
    worker = start_worker(pool=pool)

    [seen] = wait_until(lambda: store.present_workers(time.time(), silent=60))
    assert seen.pid == worker.process.pid

    worker.stop()
    assert store.present_workers(time.time(), silent=60) == []


def test_scheduled_mail_goes_out_without_beat(
    make_app: MakeApp, start_worker: StartWorker, sink: Sink
) -> None:
    """The sweep sends a mail soon after its `send_at`, and never before."""
    start_worker()

    with make_app().test_request_context():
        due = time.time() + 1.5
        mailer.send_email(
            "ada@example.com", "Later", "welcome", name="Ada", send_at=timedelta(seconds=1.5)
        )

    [received] = sink.wait_for(1, timeout=10)
    assert received.at.timestamp() >= due


# Workers come and go


def test_a_worker_that_is_told_to_stop_finishes_its_mail(
    make_app: MakeApp, start_worker: StartWorker, sink: Sink
) -> None:
    """A mail that is being sent at SIGTERM arrives and is recorded as sent."""
    worker = start_worker()
    sink.faults.add(Fault("dot", DELAY, delay=1.0))

    with make_app().test_request_context():
        receipt = mailer.send_email("ada@example.com", "Slow", "welcome", name="Ada")
        wait_until(lambda: not sink.faults)  # the relay has the whole mail, and is slow to reply
        worker.stop()
        [delivery] = mailer.status(receipt.id).deliveries

    assert delivery.status is Status.SENT
    assert len(sink.messages) == 1


def test_a_killed_worker_leaves_only_doubt_behind(
    config: Config, make_app: MakeApp, start_worker: StartWorker, sink: Sink
) -> None:
    """A mail without the relay's reply at kill -9 is in doubt and sent once more.

    The Message-ID stays the same.
    """
    config["MAILER_DOUBT_RESEND_AFTER"] = "0.1"
    app = make_app()
    worker = start_worker()
    sink.faults.add(Fault("dot", HANG))

    with app.test_request_context():
        receipt = mailer.send_email("ada@example.com", "Doubt", "welcome", name="Ada")
        wait_until(lambda: not sink.faults)  # the relay has the whole mail, and does not reply
        worker.kill()
        with app.extensions["mailer"].store.engine.begin() as connection:
            # As if the lease had lapsed.
            connection.execute(text("UPDATE mailer_delivery SET lease_until = 0"))
        start_worker()
        sink.wait_for(1)
        wait_until(lambda: mailer.status(receipt.id).is_finished)
        [delivery] = mailer.status(receipt.id).deliveries

    assert (delivery.status, delivery.attempts) == (Status.SENT, 2)
    assert {mail.message_id for mail in sink.messages} == {receipt.message_id}
