"""The examples run as their READMEs say, with an installed package.

There is no Docker here: the compose file is checked against its specification, and its settings
run with processes.
"""

import ast
import json
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest
from ruamel.yaml import YAML

from mailer import __all__ as public
from tests.services.ports import free_port
from tests.services.project import QUICK, Project
from tests.services.sink import Sink
from tests.services.waiting import wait_until

EXAMPLES = Path(__file__).parents[2] / "examples"
FOLDERS = sorted(file.parent.name for file in EXAMPLES.glob("*/README.md"))
#: `copy(name, python, **variables)`: an example in a folder of its own.
Copy = Callable[..., Project]


@pytest.fixture
def copy(redis_url: str, sink: Sink, tmp_path: Path) -> Copy:
    def copy(name: str, python: Path, **variables: str) -> Project:
        folder = tmp_path / name
        ignored = shutil.ignore_patterns("instance", "migrations", "__pycache__")
        shutil.copytree(EXAMPLES / name, folder, ignore=ignored)
        relay = {"MAIL_SERVER": sink.host, "MAIL_PORT": str(sink.port)}
        return Project(folder, python, {"MAILER_REDIS_URL": redis_url, **relay, **variables})

    return copy


def post(url: str, **form: str) -> str:
    with urlopen(url, data=urlencode(form).encode(), timeout=30) as response:  # noqa: S310 -- it is http
        return str(response.read().decode())


def get(url: str) -> Any:
    with urlopen(url, timeout=30) as response:  # noqa: S310 -- it is http
        return json.load(response)


def test_minimal(copy: Copy, installed_python: Path, sink: Sink) -> None:
    """The form queues a mail with both versions, which the worker delivers."""
    example = copy("minimal", installed_python)
    with example.worker("worker", *QUICK), example.server() as url:
        page = post(url, address="ada@example.com", question="1 < 2?")
        [received] = sink.wait_for(1)

    assert "Your question is mail" in page
    assert received.recipients == ("owner@example.com",)
    assert received.parsed["Reply-To"] == "ada@example.com"
    texts = {part.get_content_type(): str(part) for part in received.parsed.walk()}
    assert "1 < 2?" in texts["text/plain"]
    assert "1 &lt; 2?" in texts["text/html"]


def test_factory(copy: Copy, installed_beside_others: Path, sink: Sink) -> None:
    """The commands make both kinds of tables; an order and its mail are one transaction."""
    example = copy("factory", installed_beside_others)
    readme = (example.folder / "README.md").read_text()
    commands = re.findall(r"flask --app (shop (?:mail migrate|db \w+))", readme)
    assert len(commands) == 4
    for command in commands:
        example.output("-m", "flask", "--app", *command.split())
    [migration] = (example.folder / "migrations" / "versions").glob("*.py")
    assert "'order'" in migration.read_text()
    assert "mailer_" not in migration.read_text()

    with example.worker("worker", *QUICK), example.server("shop") as url:
        answer = json.loads(post(f"{url}/orders", address="ada@example.com", pieces="2"))
        with pytest.raises(HTTPError, match="422"):
            post(f"{url}/orders", address="nobody", pieces="1")
        [received] = sink.wait_for(1)

    assert "Your order 1 has 2 pieces." in received.raw.decode()
    with closing(sqlite3.connect(example.folder / "instance" / "shop.sqlite3")) as database:
        assert database.execute('SELECT id, address FROM "order"').fetchall() == [
            (1, "ada@example.com")
        ]
        mails = database.execute("SELECT id FROM mailer_message").fetchall()
    assert mails == [(answer["mail"],)]


def test_queue_only(copy: Copy, installed_python: Path, sink: Sink, tmp_path: Path) -> None:
    """The service loads no module that delivers, and workers of another application deliver."""
    database = {"MAILER_DATABASE_URL": f"sqlite:///{tmp_path}/alarms/mailer.sqlite3"}
    service = copy("queue_only", installed_python, **database, MAIL_SERVER="relay.invalid")
    workers = copy("minimal", installed_python, **database)
    assert not (service.folder / "worker.py").exists()
    with workers.worker("worker", *QUICK), service.server() as url:
        mail_id = json.loads(post(f"{url}/alarms", place="cellar"))["mail"]
        [received] = sink.wait_for(1)
        wait_until(lambda: get(f"{url}/alarms/{mail_id}") == {"duty@example.com": "sent"})

    assert "There is an alarm at cellar." in received.raw.decode()
    loaded = service.output(
        "-c",
        "import sys, app\n"
        "app.app.test_client().post('/alarms', data={'place': 'roof'})\n"
        "print([name for name in sys.modules if name.startswith(('mailer.delivery',"
        " 'mailer.smtp.', 'mailer.blackbox', 'celery.worker.consumer'))])",
    )
    assert ast.literal_eval(loaded) == []


def test_two_relays_fit_the_specification() -> None:
    """The compose file is valid against the published schema of Compose."""
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema"]
    command += ["vendor.compose-spec", "docker-compose.yml"]
    folder = EXAMPLES / "two_relays"
    check = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)

    assert check.returncode == 0, check.stdout + check.stderr


def test_two_relays(copy: Copy, installed_python: Path, sink: Sink) -> None:
    """With the relays of the compose file, the second one takes the mail while the first is down.

    Then mail goes over the first one again.
    """
    compose = YAML(typ="safe").load(EXAMPLES / "two_relays" / "docker-compose.yml")
    given = json.loads(compose["services"]["worker"]["environment"]["MAILER_RELAYS"])
    assert [relay["name"] for relay in given] == ["main", "backup"]
    port = free_port()
    for relay, place in zip(given, (port, sink.port), strict=True):
        assert relay["MAIL_SERVER"] in compose["services"]
        relay |= {"MAIL_SERVER": "127.0.0.1", "MAIL_PORT": place}
    example = copy(
        "two_relays", installed_python, MAILER_RELAYS=json.dumps(given), MAILER_RELAY_REST="0.1"
    )

    with example.worker("worker", *QUICK), example.server() as url:
        mail_id = json.loads(post(f"{url}/orders"))["mail"]
        [received] = sink.wait_for(1)
        status = f"{url}/mails/{mail_id}"
        wait_until(lambda: get(status) == {"status": "sent", "relay": "backup"})
        relays = example.output("-m", "flask", "mail", "relays")
        with Sink(port=port) as main:
            wait_until(lambda: post(f"{url}/orders") and main.messages, timeout=30)

    assert received.recipients == ("ada@example.com",)
    assert re.search(r"^main .*\n  paused since .* failed ", relays, re.MULTILINE)


@pytest.mark.parametrize("name", FOLDERS)
def test_an_example_uses_the_public_api(name: str) -> None:
    """An example imports public names only, as its readers should."""
    files = [*(EXAMPLES / name).rglob("*.py")]
    assert files
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mailer"):
                assert node.module == "mailer"
                assert {alias.name for alias in node.names} <= set(public)


def test_each_example_is_in_the_list() -> None:
    """The page of the examples leads to each of them."""
    page = (EXAMPLES / "README.md").read_text(encoding="utf-8")

    assert sorted(re.findall(r"^\| \[(\w+)\]\(\1\) ", page, re.MULTILINE)) == FOLDERS
    assert len(FOLDERS) == 4
