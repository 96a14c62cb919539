"""The examples of the README and the guide run as they are printed."""

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from celery.app import defaults
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from kombu.utils.imports import symbol_by_name
from sqlalchemy import Column, Integer

from mailer import Mailer
from mailer.celery.app import make_celery, transport_options
from mailer.celery.consumer import PatientConsumer
from mailer.settings import Settings
from tests.services.databases import sqlite_only
from tests.services.sink import Sink
from tests.services.waiting import wait_until
from tests.services.worker import PROJECT, READY
from tests.shop import create_shop, rows, store_of

_TRANSACTION = re.compile(r"```python\n(?P<code>[^`]*connection=db\.session[^`]*)```")
_CELERY = re.compile(r"```python\n(?P<code>CELERY = \{\n.*?\n\})\n```", re.DOTALL)
_FILE = re.compile(r"```\w+\n(?:# |\{# )(?P<name>\S+?)(?: #\})?\n(?P<text>.*?)```", re.DOTALL)


@sqlite_only
def test_the_ten_lines_deliver_a_mail(config: dict[str, str], sink: Sink, tmp_path: Path) -> None:
    """The files of the README queue a mail in a request and deliver it."""
    for match in _FILE.finditer((PROJECT / "README.md").read_text()):
        file = tmp_path / match["name"]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(match["text"])
    assert {file.name for file in tmp_path.rglob("*.*")} == {"app.py", "worker.py", "order.txt"}

    del config["MAIL_SERVER"], config["MAIL_DEFAULT_SENDER"]  # as the README has its own
    environment = {**os.environ, **config, "PYTHONPATH": str(PROJECT)}
    request = "from app import app; print(app.test_client().post('/orders').json['mail'])"
    command = [
        sys.executable,
        "-m",
        "celery",
        "-A",
        "worker",
        "worker",
        "--pool",
        "threads",
        "--loglevel",
        "INFO",
    ]
    log = tmp_path / "worker.log"
    with (
        log.open("wb") as output,
        subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdout=output, stderr=output
        ) as worker,
    ):
        try:
            wait_until(lambda: READY in log.read_text(), timeout=30)
            subprocess.run(
                [sys.executable, "-c", request],
                cwd=tmp_path,
                env=environment,
                check=True,
                timeout=60,
            )
            [received] = sink.wait_for(1)
        finally:
            worker.terminate()

    assert received.recipients == ("ada@example.com",)
    assert "Your order has the number 42." in received.raw.decode()
    assert "Shop" in str(received.parsed["From"])


@sqlite_only
def test_the_snippets_about_transactions_queue_a_mail_for_each_order(
    config: dict[str, str],
) -> None:
    """Two orders queue two mails; with a key, a repeated order queues none."""
    database = {
        "MAILER_DATABASE_URL": config["MAILER_DATABASE_URL"],
        "SQLALCHEMY_DATABASE_URI": config["MAILER_DATABASE_URL"],
    }
    app = create_shop(
        {**config, **database},
        {"mail/order.txt": "Order {{ number if number is defined else order.id }}"},
    )
    db = SQLAlchemy(app)

    class Order(db.Model):  # type: ignore[name-defined,misc]
        id = Column(Integer, primary_key=True)

    pages = [
        (PROJECT / page).read_text(encoding="utf-8") for page in ("README.md", "docs/guide.md")
    ]
    snippets = [match["code"] for page in pages for match in _TRANSACTION.finditer(page)]
    assert ["idempotency_key=" in snippet for snippet in snippets] == [True, False]
    with app.app_context():
        db.create_all()
        # From here on the file has a write-ahead log, as after `flask mail migrate`.
        store_of(app).check_schema()
        queued = 0
        for snippet in snippets:
            known = {"db": db, "mailer": Mailer(), "user": SimpleNamespace(email="ada@example.com")}
            old = Order()
            for order in (old, Order(), old):
                exec(snippet, {**known, "order": order})  # noqa: S102 -- the page's own code
            queued += 2 if "idempotency_key=" in snippet else 3
            assert rows(app)["mailer_message"] == queued
        db.engine.dispose()


def test_celery_takes_the_settings_of_the_guide() -> None:
    """Celery knows each of them, and they include those of Mailer's own Celery app."""
    found = _CELERY.search((PROJECT / "docs/guide.md").read_text(encoding="utf-8"))
    assert found is not None
    names: dict[str, Any] = {}
    exec(found["code"], names)  # noqa: S102 -- the page's own code
    given: dict[str, Any] = names["CELERY"]

    assert given.keys() <= defaults.DEFAULTS.keys()
    assert symbol_by_name(given["worker_consumer"]) is PatientConsumer
    assert (
        given["broker_transport_options"].items() <= transport_options(connect=2, answer=3).items()
    )
    own = make_celery(Flask("shop"), Settings.load({}, {}, default_database_url="sqlite://")).conf
    alike = (
        "broker_connection_retry_on_startup",
        "broker_connection_max_retries",
        "broker_channel_error_retry",
        "worker_consumer",
    )
    assert {name: given[name] for name in alike} == {name: own[name] for name in alike}
