"""Missing workers are reported to callers, by `flask mail queue` and in the health check."""

import ctypes
import logging
import math
import os
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest
from celery import Celery, signals
from flask import Flask

from mailer import Mailer
from mailer.attendance import Watch, absence, silence
from mailer.celery.heartbeat import Heartbeat
from mailer.clock import SystemClock
from mailer.delivery import Dispatcher
from mailer.forks import notice_fork
from mailer.message import Lane
from mailer.store import Store
from mailer.store.workers import Worker
from tests.mails import insert
from tests.services.databases import sqlite_only
from tests.services.dispatchers import MakeDispatcher, outbound_of
from tests.services.dispatchers import queue as due_now
from tests.services.relay import RawServer
from tests.services.waiting import wait_until
from tests.shop import OpenShop, store_of

mailer = Mailer()
NOW = 1_700_000_000.0


def worker(name: str = "one", seen_at: float = NOW, lanes: str = "critical,normal,bulk") -> Worker:
    return Worker(
        id=name,
        machine="host",
        pid=7,
        version="1",
        lanes=lanes,
        started_at=seen_at - 5,
        seen_at=seen_at,
    )


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (None, "ever been seen"),
        (61, "been seen for 61 seconds"),
        (240, "been seen for 4 minutes"),
        (299, "been seen for 4 minutes"),
        (7200, "been seen for 2 hours"),
        (86400 * 9, "been seen for 9 days"),
        (-5, "been seen for 1 second"),
    ],
)
def test_how_long_nobody_was_there(seconds: float | None, words: str) -> None:
    """A silence is rounded down, in the largest unit that it contains at least twice."""
    assert silence(None if seconds is None else NOW - seconds, NOW) == f"no worker has {words}"


def test_mail_that_nobody_delivers(store: Store) -> None:
    """The warning counts due mails, not deliveries, and ends while a worker was just seen."""
    insert(store, "ada@example.com", "bob@example.com", due_at=NOW - 1)
    insert(store, lane=Lane.BULK, due_at=NOW + 900)
    assert absence(store, NOW) == "1 mail is due and no worker has ever been seen."

    for _ in range(11):
        insert(store, lane=Lane.CRITICAL, due_at=NOW - 1)
    store.beat(worker())
    assert absence(store, NOW + 5) is None
    assert absence(store, NOW + 59) is None
    assert (
        absence(store, NOW + 245) == "12 mails are due and no worker has been seen for 4 minutes."
    )


def test_nothing_is_due(store: Store) -> None:
    """No worker is missed while no mail is due or delivery is paused."""
    assert absence(store, NOW) is None

    insert(store, due_at=NOW - 1)
    store.pause(now=NOW, reason="by hand")
    assert absence(store, NOW) is None


def test_a_lane_that_nobody_serves(store: Store) -> None:
    """Due mail is reported if the workers that are there serve other lanes only."""
    insert(store, due_at=NOW - 1)
    insert(store, lane=Lane.BULK, due_at=NOW + 900)
    store.beat(worker("codes", lanes="critical"))
    store.beat(worker("orders", lanes="critical,normal"))
    assert absence(store, NOW) is None

    insert(store, lane=Lane.BULK, due_at=NOW - 1)
    assert absence(store, NOW) == (
        "1 mail is due in the lane bulk, which no worker serves (those that are there have other"
        " lanes in MAILER_WORKER_LANES)."
    )

    store.beat(worker("news", lanes="bulk"))
    assert absence(store, NOW) is None


def test_a_worker_that_has_stopped(store: Store) -> None:
    """A stopped worker leaves no row, but the time of its last sweep stays known."""
    insert(store, due_at=NOW - 1)
    store.beat(worker())
    assert [one.pid for one in store.present_workers(NOW, silent=60)] == [7]
    assert store.take_chore("mailer.sweep", now=NOW - 1, every=1)
    store.leave("one")

    assert store.present_workers(NOW, silent=60) == []
    assert absence(store, NOW + 300) == "1 mail is due and no worker has been seen for 5 minutes."


def test_a_clock_that_was_ahead(store: Store) -> None:
    """A heartbeat from the future is ignored; the next one deletes it and those of dead workers."""
    insert(store, due_at=NOW - 1)
    store.beat(worker("ahead", NOW + 86400))
    assert absence(store, NOW) == "1 mail is due and no worker has ever been seen."

    store.beat(worker("old", NOW - 7200))
    store.beat(worker("new", NOW))
    assert [one.id for one in store.present_workers(NOW, silent=1e6)] == ["new"]


def test_more_than_anybody_counts(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Due mail is counted up to a limit, since a web process does the counting."""
    monkeypatch.setattr("mailer.store.workers.MAX_COUNTED", 3)
    for _ in range(4):
        insert(store, due_at=NOW - 1)

    assert absence(store, NOW) == "3 or more mails are due and no worker has ever been seen."


# --- processes that queue -----------------------------------------------------------------------


def warned(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "mailer.attendance"]


def queue(app: Flask, **options: Any) -> None:
    with app.app_context():
        mailer.send_email("ada@example.com", "Hello", "only_text", name="Ada", **options)


@sqlite_only
def test_the_log_of_who_queues(open_shop: OpenShop, caplog: pytest.LogCaptureFixture) -> None:
    """A process that queues mail while no worker is there logs that, and the remedy."""
    queue(open_shop())

    [said] = wait_until(lambda: warned(caplog))
    assert said.startswith(
        "1 mail is due and no worker has ever been seen. Start one, with the same"
        " MAILER_DATABASE_URL "
    )


@sqlite_only
def test_mail_of_a_transaction(open_shop: OpenShop, caplog: pytest.LogCaptureFixture) -> None:
    """Mail in the caller's transaction is looked at after the commit, outside of it."""
    app = open_shop()
    with app.app_context(), store_of(app).engine.connect() as connection:
        queue(app, connection=connection)
        connection.commit()

    assert wait_until(lambda: warned(caplog))[0].startswith("1 mail is due ")


@pytest.mark.parametrize("fork", [os.fork, ctypes.PyDLL(None).fork])
def test_a_child_looks_whoever_looked_at_the_moment_of_its_fork(fork: Callable[[], int]) -> None:
    """A forked child does not inherit a lock that a thread of its parent held."""
    watch = Watch(Store("sqlite://"), lambda: None, SystemClock(), shown=False)
    with watch._lock:
        if not (child := fork()):
            try:
                notice_fork()
                watch.notice()
            finally:
                os._exit(watch._next_at == -math.inf)
        _, status = os.waitpid(child, 0)
    assert status == 0


def test_a_test_of_an_application_hears_nothing() -> None:
    """With MAIL_SUPPRESS_SEND no worker is needed, and none is looked for."""
    app = Flask("app")
    app.config.update(
        TESTING=True, MAILER_DATABASE_URL="sqlite://", MAIL_DEFAULT_SENDER="ada@example.com"
    )
    Mailer(app)
    with app.app_context():
        assert mailer.absence() is None
    assert app.extensions["mailer"].intake._watch is None


@pytest.mark.parametrize(("testing", "is_warned"), [(False, True), (True, False)])
def test_mail_in_memory(testing: bool, is_warned: bool, caplog: pytest.LogCaptureFixture) -> None:
    """Mail in memory, which no worker finds, is warned of at start, but in a test."""
    app = Flask("app")
    app.config.update(
        TESTING=testing,
        MAIL_SUPPRESS_SEND=False,
        MAILER_DATABASE_URL="sqlite://",
        MAIL_DEFAULT_SENDER="ada@example.com",
    )
    Mailer(app)

    assert ("memory of this process, where no worker finds it" in caplog.text) is is_warned


class Starting:
    """The sender that Celery names when a worker starts."""

    def __init__(self, app: Celery[Any]) -> None:
        self.app = app


@sqlite_only
def test_a_celery_app_that_came_late(open_shop: OpenShop, caplog: pytest.LogCaptureFixture) -> None:
    """A Celery app that is set too late delivers nothing: callers and its workers log that."""
    app = open_shop()
    late: Celery[Any] = Celery("late", broker="memory://", set_as_current=False)
    app.extensions["celery"] = late
    queue(app)

    assert (
        "app.extensions['celery'] was set after Mailer(app)"
        in wait_until(lambda: warned(caplog))[0]
    )

    signals.worker_init.send(sender=Starting(late))
    assert "This worker delivers no mail. app.extensions['celery'] was set after" in caplog.text


@sqlite_only
@pytest.mark.parametrize(
    ("replies", "is_told"), [({}, True), ({"RCPT": b"550 5.1.1 no\r\n"}, False)]
)
def test_a_worker_tells_when_it_delivered_last(
    make_dispatcher: MakeDispatcher,
    answering: Callable[..., RawServer],
    store: Store,
    replies: dict[str, bytes],
    is_told: bool,
) -> None:
    """A worker reports the last delivery of its children, even killed ones; a refusal is none."""
    server = answering(**replies)
    dispatcher = make_dispatcher(MAIL_SERVER=server.host, MAIL_PORT=server.port)
    heartbeat = Heartbeat(outbound_of(dispatcher))
    dispatcher.flags.start()
    began = time.time()
    due_now(store)
    heartbeat._beat()
    assert [one.delivered_at for one in store.present_workers(time.time(), silent=60)] == [None]

    deliver_in_a_child(dispatcher)
    heartbeat._beat()

    [one] = store.present_workers(time.time(), silent=60)
    assert (one.delivered_at is not None) is is_told
    assert one.delivered_at is None or began <= one.delivered_at <= time.time()


def deliver_in_a_child(dispatcher: Dispatcher) -> None:
    """Deliver one batch in a child process, which is then killed."""
    if not (child := os.fork()):
        try:
            dispatcher.deliver_batch()
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)


def test_a_heart_goes_on_beating(
    make_dispatcher: MakeDispatcher, caplog: pytest.LogCaptureFixture
) -> None:
    """The heartbeat thread survives a database that is away."""
    url = "postgresql://mailer:secret@127.0.0.1:1/mailer"
    outbound = outbound_of(make_dispatcher())
    outbound.store = Store(url)
    heartbeat = Heartbeat(outbound)
    with caplog.at_level(logging.WARNING):
        heartbeat.start()
        wait_until(lambda: "Maintenance step failed" in caplog.text)

    assert heartbeat._thread.is_alive()
    heartbeat.stop()
    assert not heartbeat._thread.is_alive()
