"""`flask mail init` in the project of a user: the worker that it writes delivers mail."""

from pathlib import Path

import pytest

from tests.services.project import QUICK, Project
from tests.services.sink import Sink

FACTORY = """
from flask import Flask
from mailer import Mailer

mailer = Mailer()


def create_app() -> Flask:
    app = Flask(__name__)
    app.config["MAIL_DEFAULT_SENDER"] = "shop@example.com"
    mailer.init_app(app)
    return app
"""
PLAIN = """
from flask import Flask
from mailer import Mailer

app = Flask(__name__)
app.config["MAIL_DEFAULT_SENDER"] = "shop@example.com"
Mailer(app)
"""
SEND = """
import {module}
from mailer import Message, Mailer

with {module}.{app}.app_context():
    Mailer().enqueue(Message("Hello", ["ada@example.com"], "Hello Ada!"))
"""


@pytest.mark.parametrize(
    ("file", "text", "app", "named"),
    [
        ("shop/__init__.py", FACTORY, "create_app()", ["--app", "shop:create_app"]),
        ("app.py", PLAIN, "app", []),
    ],
)
def test_the_written_worker_delivers(
    installed_python: Path,
    redis_url: str,
    sink: Sink,
    tmp_path: Path,
    file: str,
    text: str,
    app: str,
    named: list[str],
) -> None:
    """`flask mail init`, then `celery -A worker worker`, and a mail of the app is delivered."""
    variables = {
        "MAILER_REDIS_URL": redis_url,
        "MAIL_SERVER": sink.host,
        "MAIL_PORT": str(sink.port),
    }
    project = Project(tmp_path, installed_python, variables)
    project.write({file: text})
    said = project.output("-m", "flask", *named, "mail", "init")

    assert "celery -A worker worker" in said
    with project.worker("worker", *QUICK):
        project.output(
            "-c", SEND.format(module=file.partition("/")[0].removesuffix(".py"), app=app)
        )
        [received] = sink.wait_for(1)
    assert received.recipients == ("ada@example.com",)
