"""uWSGI forks workers from a master that loaded the application, without Python's fork hooks."""

import os
import signal
import site
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path

import pytest
from flask import Flask

from mailer import Mailer
from tests.services.ports import free_port
from tests.services.requirement import find_program, require
from tests.services.waiting import wait_until
from tests.services.worker import PROJECT

MAILS = 400
PYTHON = "/usr/bin/python3"  # the Python of Debian's plugin


def test_workers_that_uwsgi_forks(
    config: dict[str, str], make_app: Callable[..., Flask], tmp_path: Path
) -> None:
    """Each of four workers answers every request, and each receipt has its delivery."""
    program = require("uWSGI", find_program("uwsgi-core", "uwsgi"))
    folders = (str(PROJECT), *site.getsitepackages())
    loads = subprocess.run(
        [PYTHON, "-c", f"import sys; sys.path[1:1] = {folders}; import mailer.celery.bell"],
        check=False,
        cwd=PROJECT,
    )
    if loads.returncode:
        pytest.skip("The packages here are for another Python than the one in Debian's uWSGI.")
    port = free_port()
    command = [
        str(program),
        "--plugin",
        "python3",
        "--http-socket",
        f"127.0.0.1:{port}",
        "--master",
        "--processes",
        "4",
    ]
    command += [
        "--die-on-term",
        "--wsgi",
        "tests.services.uwsgi_app",
        "--chdir",
        str(PROJECT),
        "--need-app",
        "--enable-threads",
    ]
    command += [f"--pythonpath={folder}" for folder in folders]
    log = tmp_path / "uwsgi.log"
    with log.open("wb") as output:
        server = subprocess.Popen(
            command,
            env={**os.environ, **config},
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        wait_until(
            lambda: log.read_text().count("spawned uWSGI worker") == 4 or server.poll() is not None,
            timeout=30,
        )
        with ThreadPoolExecutor(8) as threads:
            answers = list(threads.map(lambda number: ask(port, number), range(MAILS)))
    finally:
        os.killpg(server.pid, signal.SIGKILL)  # otherwise uWSGI waits a minute for its workers
        server.wait()
        print(log.read_text())

    assert {status for status, _ in answers} == {200}
    with make_app().app_context():
        statuses = Mailer().statuses([mail_id for _, mail_id in answers])
    assert len(statuses) == MAILS
    assert all(len(status.deliveries) == 1 for status in statuses.values())


def ask(port: int, number: int) -> tuple[int, str]:
    with closing(HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
        connection.request("GET", f"/reader{number}")
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
