"""The modules that a process loads: each costs memory and time."""

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

#: Modules for some mails, some settings, or the other database.
SELDOM = "alembic css_inline inscriptis limits lxml psycopg sqlalchemy.dialects.postgresql".split()
#: Modules for workers.
OUTBOUND = (
    "celery.worker.consumer mailer.blackbox mailer.celery.heartbeat mailer.delivery mailer.smtp"
).split()
#: Modules for processes with an app.
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
    """Run `code` in a new process and return the names in `modules`, an expression."""
    command = [sys.executable, "-c", f"{code}\nprint(json.dumps(sorted({modules})))"]
    ran = subprocess.run(
        command, cwd=PROJECT, check=True, capture_output=True, text=True, timeout=60
    )
    return set(json.loads(ran.stdout))


def test_an_import() -> None:
    """`import mailer` loads neither Celery nor Redis, nor modules that few processes need."""
    loaded = printed("import json, sys\nimport mailer", "sys.modules")

    assert loaded.intersection(SELDOM + OUTBOUND + OF_AN_APP) == set()


@sqlite_only
def test_a_process_that_queues(config: dict[str, str]) -> None:
    """A process that queues loads no module that delivers."""
    loaded = printed(MAKE.format(config=config) + QUEUE, "sys.modules")

    assert loaded.intersection(SELDOM + OUTBOUND + OF_AN_APP) == set(OF_AN_APP)


@sqlite_only
def test_the_first_request(config: dict[str, str]) -> None:
    """The first request imports nothing for the bell, since making the app did."""
    late = printed(MAKE.format(config=config) + QUEUE, "set(sys.modules) - made")

    assert late.intersection(["celery.app.amqp", "kombu.transport.redis", "redis"]) == set()


@sqlite_only
def test_a_worker(start_worker: StartWorker, make_app: Callable[..., Flask], sink: Sink) -> None:
    """A worker loads the modules that deliver before its pool forks, and no rare ones."""
    worker = start_worker(pool="prefork", concurrency=1, env={"PYTHONPROFILEIMPORTTIME": "1"})
    with make_app().app_context():
        Mailer().enqueue(flask_mail.Message("Hello", ["ada@example.com"], "Hello"))
    sink.wait_for(1)

    before, after = map(imported, worker.log.read_text().split(READY, 1))
    assert before.intersection(SELDOM + OUTBOUND) == set(OUTBOUND)
    assert {name for name in after if name.startswith("mailer")} == set()


def imported(log: str) -> set[str]:
    """Return the modules that Python logged as imported."""
    return set(re.findall(r"^import time:.*\| +([\w.]+)$", log, re.MULTILINE))
