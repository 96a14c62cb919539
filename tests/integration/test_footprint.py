"""The modules that a process loads: each costs memory, and time at its start or in its first request."""

import json
import re
import subprocess
import sys
from collections.abc import Callable

import flask_mail
from flask import Flask

from mailer import Mailer
from tests.services.databases import sqlite_only
from tests.services.sink import Sink
from tests.services.worker import PROJECT, READY, StartWorker

#: For some mails, some settings, or the other database.
SELDOM = "alembic css_inline inscriptis limits lxml psycopg sqlalchemy.dialects.postgresql".split()
#: For workers.
OUTBOUND = "celery.worker.consumer mailer.blackbox mailer.celery.heartbeat mailer.delivery mailer.smtp".split()
#: For processes that have an app.
OF_AN_APP = "celery kombu mailer.celery redis".split()

MAKE = """
import json, sys
import mailer
from flask import Flask
from jinja2 import DictLoader

app = Flask("shop")
app.jinja_loader = DictLoader({{"hello.txt": "Hello", "hello.html": "<p>Hello</p>"}})
app.config.from_mapping({config!r})
mailer.Mailer(app)
made = set(sys.modules)
"""
QUEUE = """
with app.app_context():
    mailer.send_email("ada@example.com", "Hello", "hello")
"""


def printed(code: str, modules: str) -> set[str]:
    """Run the code in a fresh process, and return the names of these modules in the end."""
    command = [sys.executable, "-c", f"{code}\nprint(json.dumps(sorted({modules})))"]
    ran = subprocess.run(
        command, cwd=PROJECT, check=True, capture_output=True, text=True, timeout=60
    )
    return set(json.loads(ran.stdout))


def test_an_import() -> None:
    """It loads neither Celery nor the client of Redis, and nothing that few processes need."""
    loaded = printed("import json, sys\nimport mailer", "sys.modules")

    assert loaded.intersection(SELDOM + OUTBOUND + OF_AN_APP) == set()


@sqlite_only
def test_a_process_that_queues(config: dict[str, str]) -> None:
    """It loads nothing that delivers."""
    loaded = printed(MAKE.format(config=config) + QUEUE, "sys.modules")

    assert loaded.intersection(SELDOM + OUTBOUND + OF_AN_APP) == set(OF_AN_APP)


@sqlite_only
def test_the_first_request(config: dict[str, str]) -> None:
    """It does not wait for the imports of a ring: they come when the app is made."""
    late = printed(MAKE.format(config=config) + QUEUE, "set(sys.modules) - made")

    assert late.intersection(["celery.app.amqp", "kombu.transport.redis", "redis"]) == set()


@sqlite_only
def test_a_worker(start_worker: StartWorker, make_app: Callable[..., Flask], sink: Sink) -> None:
    """It has what delivers before its pool forks, so that the processes share it, and no more."""
    worker = start_worker(pool="prefork", concurrency=1, env={"PYTHONPROFILEIMPORTTIME": "1"})
    with make_app().app_context():
        Mailer().enqueue(flask_mail.Message("Hello", ["ada@example.com"], "Hello"))
    sink.wait_for(1)

    before, after = map(imported, worker.log.read_text().split(READY, 1))
    assert before.intersection(SELDOM + OUTBOUND) == set(OUTBOUND)
    assert {name for name in after if name.startswith("mailer")} == set()


def imported(log: str) -> set[str]:
    """Return the modules that Python says to have imported."""
    return set(re.findall(r"^import time:.*\| +([\w.]+)$", log, re.MULTILINE))
