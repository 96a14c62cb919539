"""A worker of Mailer behaves like any other Celery worker."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from urllib.error import URLError
from urllib.request import urlopen

from flask import Flask

from mailer import Mailer, Status
from mailer.smtpd.faults import DELAY, Fault
from tests.services.databases import sqlite_only
from tests.services.ports import free_port
from tests.services.sink import Sink
from tests.services.users import WITHOUT_PRIVILEGES
from tests.services.waiting import wait_until
from tests.services.worker import PROJECT, StartWorker

pytestmark = sqlite_only


def celery(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "celery", "-A", "tests.worker_app", *arguments]


ANSWERS = {
    "inspect ping": "pong",
    "inspect registered": "mailer.send_email",
    "inspect conf": '"socket_timeout": 3',  # a request waits for 2 seconds at most
    "report": "transport:redis",
}


def test_its_commands_work(config: dict[str, str], start_worker: StartWorker) -> None:
    """The worker answers Celery's inspect and control commands."""
    start_worker()

    environment = {**os.environ, **config}
    for command, answer in ANSWERS.items():
        ran = subprocess.run(
            celery(*command.split()),
            cwd=PROJECT,
            env=environment,
            check=True,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert answer in ran.stdout, command


def test_a_black_box_that_it_may_not_read(
    config: dict[str, str], make_app: Callable[..., Flask], start_worker: StartWorker, sink: Sink
) -> None:
    """A worker without access to its black box delivers, retries and expires mail.

    A worker that ran as root leaves such a folder.
    """
    app = make_app(MAILER_RETRY_FIRST=1, MAILER_RETRY_JITTER=0)
    folder = app.extensions["mailer"].outbound.dispatcher._services.black_box._folder
    folder.mkdir(parents=True)
    folder.chmod(0)
    if os.geteuid() == 0:
        os.chown(folder, 65534, 65534)
    sink.faults.add(Fault("rcpt", "450 4.2.0 not now"))
    mailer = Mailer()
    with app.test_request_context():
        send = partial(mailer.send_email, "ada@example.com", "Hello", "welcome", name="Ada")
        mails = [
            send(),
            send(send_at=timedelta(seconds=1)),
            send(expires_at=timedelta(seconds=0.1)),
        ]
        worker = start_worker(
            pool="prefork",
            within=WITHOUT_PRIVILEGES if os.geteuid() == 0 else (),
            env={"MAILER_RETRY_FIRST": "1", "MAILER_RETRY_JITTER": "0"},
        )
        wait_until(lambda: all(mailer.status(mail.id).is_finished for mail in mails), timeout=20)
        states = [mailer.status(mail.id).deliveries[0].status for mail in mails]

    assert states == [Status.SENT, Status.SENT, Status.EXPIRED]
    assert worker.log.read_text().count("Black box can't be found") == 1


def test_time_limits_of_the_worker(
    config: dict[str, str], make_app: Callable[..., Flask], start_worker: StartWorker, sink: Sink
) -> None:
    """Celery's time limits do not end a delivery: no mail is in doubt or sent twice."""
    mailer = Mailer()
    sink.faults.add(Fault("dot", DELAY, times=3, delay=2.5))
    worker = start_worker(
        pool="prefork", concurrency=1, options=["--time-limit", "2", "--soft-time-limit", "1"]
    )

    with make_app().test_request_context():
        ids = [
            mailer.send_email("ada@example.com", "Hello", "welcome", name="Ada").id
            for _ in range(3)
        ]
        wait_until(lambda: all(mailer.status(one).is_finished for one in ids), timeout=30)
        copies = [mailer.status(one).deliveries[0] for one in ids]

    assert [(copy.status, copy.attempts) for copy in copies] == [(Status.SENT, 1)] * 3
    assert len(sink.messages) == 3
    assert "imeLimitExceeded" not in worker.log.read_text()


def test_flower_shows_it(config: dict[str, str], start_worker: StartWorker) -> None:
    """Flower finds the worker and its tasks."""
    start_worker()
    port = free_port()
    environment = {**os.environ, **config, "FLOWER_UNAUTHENTICATED_API": "true"}

    def workers() -> dict[str, dict[str, list[str]]]:
        try:
            with urlopen(f"http://127.0.0.1:{port}/api/workers?refresh=1") as answer:
                found: dict[str, dict[str, list[str]]] = json.load(answer)
                return found
        except (URLError, ConnectionError):
            return {}

    command = celery("flower", "--address=127.0.0.1", f"--port={port}")
    with subprocess.Popen(
        command, cwd=PROJECT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as flower:
        try:
            wait_until(lambda: workers().get("worker1@localhost"), timeout=30)
            assert "mailer.send_email" in workers()["worker1@localhost"]["registered"]
        finally:
            flower.terminate()
