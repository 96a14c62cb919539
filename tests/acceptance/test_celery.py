"""A worker of Mailer is a worker of Celery like any other."""

import json
import os
import socket
import subprocess
import sys
from urllib.error import URLError
from urllib.request import urlopen

import pytest

from tests.services.databases import sqlite_only
from tests.services.waiting import wait_until
from tests.services.worker import PROJECT, StartWorker

pytestmark = sqlite_only


def celery(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "celery", "-A", "tests.worker_app", *arguments]


@pytest.mark.parametrize(
    ("command", "answer"),
    [
        ("inspect ping", "pong"),
        ("inspect registered", "mailer.send_email"),
        ("inspect conf", '"socket_timeout": 3'),  # a request would wait for 2 seconds only
        ("report", "transport:redis"),
    ],
)
def test_its_commands_work(config: dict[str, str], start_worker: StartWorker, command: str, answer: str) -> None:
    """The worker answers what any Celery worker answers."""
    start_worker()

    environment = {**os.environ, **config}
    ran = subprocess.run(
        celery(*command.split()), cwd=PROJECT, env=environment, check=True, capture_output=True, text=True, timeout=60
    )

    assert answer in ran.stdout


def test_flower_shows_it(config: dict[str, str], start_worker: StartWorker) -> None:
    """Flower finds the worker and its tasks."""
    start_worker()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, **config, "FLOWER_UNAUTHENTICATED_API": "true"}

    def workers() -> dict[str, dict[str, list[str]]]:
        try:
            with urlopen(f"http://127.0.0.1:{port}/api/workers?refresh=1") as answer:
                found: dict[str, dict[str, list[str]]] = json.load(answer)
                return found
        except (URLError, ConnectionError):
            return {}

    command = celery("flower", "--address=127.0.0.1", f"--port={port}")
    with subprocess.Popen(command, cwd=PROJECT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as flower:
        try:
            wait_until(lambda: workers().get("worker1@localhost"), timeout=30)
            assert "mailer.send_email" in workers()["worker1@localhost"]["registered"]
        finally:
            flower.terminate()
