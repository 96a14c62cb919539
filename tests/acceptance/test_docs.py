"""The blocks of the documentation's pages are run as they are printed."""

import ast
import re
import shlex
import sys
import tomllib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from email.message import EmailMessage
from importlib.machinery import ModuleSpec
from importlib.util import module_from_spec
from pathlib import Path
from typing import Any

import pytest
from celery.app import defaults
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from kombu.utils.imports import symbol_by_name
from sqlalchemy import Boolean, Column, Integer, String

import mailer
from mailer import Status
from mailer.celery.app import make_celery, transport_options
from mailer.celery.consumer import PatientConsumer
from mailer.message import new_id
from mailer.settings import Settings
from tests.mails import NOW, a_message, bring
from tests.services.databases import Databases
from tests.services.loggers import error_mails_ended
from tests.services.pages import Block, Reader, blocks, commands, fits
from tests.services.requirement import find_program, require
from tests.services.sink import Sink
from tests.services.waiting import wait_until
from tests.services.worker import PROJECT
from tests.shop import close, create_shop, rows, store_of

#: The pages that a reader follows from the first block to the last, in an empty folder.
FOLLOWED = ["install", "quickstart", "flask-sqlalchemy", "testing"]


@pytest.fixture
def databases(sqlite_databases: Databases) -> Databases:
    """Run each test on one database."""
    return sqlite_databases


@pytest.fixture
def make_reader(redis_url: str, tmp_path: Path) -> Iterator[Callable[..., Reader]]:
    """Return `make_reader(folder, **environment)`. The programs of a reader end with the test."""
    with ExitStack() as stack:

        def make_reader(folder: str, **environment: str) -> Reader:
            return stack.enter_context(Reader(tmp_path / folder, environment, redis_url))

        yield make_reader


@pytest.mark.parametrize("page", FOLLOWED)
def test_a_page_is_followed(page: str, make_reader: Callable[..., Reader]) -> None:
    """A reader writes the files of the page, calls its commands, and sees what it shows."""
    require("curl", find_program("curl"))
    make_reader(page).follow(f"docs/{page}.md")


def test_the_settings_for_a_celery_app() -> None:
    """Celery knows each of them, and they include those of Mailer's own Celery app."""
    [block] = [block for block in blocks("docs/install.md") if "CELERY = {" in block.text]
    names: dict[str, Any] = {}
    exec(block.text, names)  # noqa: S102 -- the page's own code
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


def test_the_extras() -> None:
    """The page about the installation names each extra."""
    extras = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    rows = re.findall(r"^\| (`.*?) \|", (PROJECT / "docs/install.md").read_text(), re.MULTILINE)
    named = [name for row in rows for name in re.findall(r"`(\w+)`", row)]

    assert sorted(named) == sorted(extras["optional-dependencies"])


# --- moving over --------------------------------------------------------------------------------

_TEMPLATES = {"welcome.txt": "Welcome, {{ name }}!", "welcome.html": "<p>Welcome, {{ name }}!</p>"}
#: The functions of the page's modules, as an application calls them.
_CALLS = """
from celery import current_app as celery
from shop import create_app

celery.conf.task_always_eager = True  # the task of the page runs without a worker of its own
app = create_app()
with app.test_request_context():
    from shop.contact import answer
    from shop.invites import invite
    from shop.logs import init_app
    from shop.mails import send_email
    from shop.notices import send_notice
    from shop.tasks import register

    init_app(app)
    app.logger.error("No parcels")

    answer("ada@example.com")
    send_email("bob@example.com", "Welcome", "mail/welcome", name="Bob")
    file = ("a.json", "application/json", "{}")
    send_notice("News", "shop@example.com", ["cleo@example.com"], "Text", "<p>Html</p>", [file])
    register("dan@example.com", "Dan")
    invite("eve@example.com")
"""
_REPORT = """
from shop import create_app
with create_app().app_context():
    from shop.reports import order_report

    order_report(2026)
"""


_SAME = ("Subject", "From", "To")


def bodies(mail: EmailMessage) -> dict[str, str]:
    parts = [part for part in mail.walk() if not part.is_multipart()]
    return {part.get_content_type(): str(part.get_content()).strip() for part in parts}


def workers(page: list[Block]) -> list[Block]:
    """Return the blocks that start a worker."""
    return [block for block in page if "$ celery -A worker" in block.text]


def move_over(reader: Reader, sink: Sink, page: list[Block], place: str) -> dict[Any, EmailMessage]:
    """Write the files of the application before or after the change, and call its functions.

    Return the mails by their recipients.
    """
    for name, text in _TEMPLATES.items():
        file = reader.folder / "shop/templates/mail" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    for block in page:
        if block.name is not None and block.place in (None, place):
            reader.do(block)
    if place == "after":
        for block in workers(page):
            reader.do(block)
    del sink.messages[:]
    reader.run(reader.imports + _CALLS)
    reader.run(_REPORT)
    report = reader.folder / "shop" / "report.txt"
    wait_until(lambda: report.exists() and report.read_text() == "Report of 2026", timeout=30)
    return {one.recipients: one.parsed for one in sink.wait_for(6)}


def test_moving_over(make_reader: Callable[..., Reader], sink: Sink) -> None:
    """Before and after, each function of the page sends the same mail."""
    page = blocks("docs/moving-over.md")
    settings = {
        "FLASK_MAIL_SERVER": sink.host,
        "FLASK_MAIL_PORT": str(sink.port),
        "FLASK_MAIL_DEFAULT_SENDER": "shop@example.com",
    }
    old, new = (make_reader(place, **settings) for place in ("before", "after"))

    before = move_over(old, sink, page, "before")
    after = move_over(new, sink, page, "after")
    [find_places] = [block for block in page if "migrate-code" in block.text]
    old.do(find_places)
    for block in page:
        if block.language == "console" and block not in (find_places, *workers(page)):
            new.do(block)

    for mails in (before, after):
        error = mails.pop(("admin@example.com",))
        assert error["From"] == "errors@example.com"
        assert str(error["Subject"]).startswith("Shop failed")
    assert after.keys() == before.keys()
    for recipient, one in before.items():
        other = after[recipient]
        assert [str(other[name]) for name in _SAME] == [str(one[name]) for name in _SAME]
        assert bodies(other) == bodies(one)
    assert "from mailer import Mail" in (old.folder / "shop/__init__.py").read_text()


# --- pages of snippets --------------------------------------------------------------------------

_APP = """
from flask import Flask
from mailer import Mailer

app = Flask(__name__)
Mailer(app)
"""
#: Settings that go with those of a snippet.
_COMPANIONS = {
    "MAILER_OAUTH": {
        "MAIL_SERVER": "smtp.example.com",
        "MAIL_USERNAME": "shop@example.com",
        "MAIL_USE_TLS": True,
    }
}


def settings_in(block: Block) -> list[tuple[str, str]]:
    """Return the settings that a snippet assigns, and nothing for another snippet."""
    lines = ast.parse(block.text).body
    return [
        (line.targets[0].id, ast.unparse(line.value))
        for line in lines
        if isinstance(line, ast.Assign)
        and isinstance(line.targets[0], ast.Name)
        and line.targets[0].id.startswith(("MAIL_", "MAILER_"))
    ]


def with_files(text: str, folder: Path) -> str:
    """Let a setting name files that are there: a key of the page, and an account of Google."""
    account = folder / "account.json"
    account.write_text('{"client_email": "a@b", "private_key": "c", "token_uri": "https://d"}')
    text = text.replace("/run/secrets", str(folder))
    return text.replace("'service_account_file': '…'", f"'service_account_file': '{account}'")


@pytest.fixture
def names(tmp_path: Path) -> Iterator[dict[str, Any]]:
    """The names that snippets use, in an app context: those of `mailer`, and an app's objects."""
    app = create_shop(
        {
            "TESTING": True,
            "MAIL_DEFAULT_SENDER": "shop@example.com",
            "SQLALCHEMY_DATABASE_URI": f"sqlite:///{tmp_path}/shop.sqlite3",
        },
        {
            "mail/invoice.txt": "{{ invoice }}",
            "mail/order.txt": "Order {{ order.id }}",
            "mail/code.txt": "{{ code }}",
            "mail/news.txt": "News for {{ name }}",
            "mail/news.de.txt": "Neues für {{ name }}",
            "mail/shop.txt": "Call {{ shop.phone }}",
            "mail/plain.txt": "News",
        },
    )
    db = SQLAlchemy(app)

    class Order(db.Model):  # type: ignore[name-defined,misc]
        id = Column(Integer, primary_key=True)

    class User(db.Model):  # type: ignore[name-defined,misc]
        id = Column(Integer, primary_key=True)
        email = Column(String)
        name = Column(String)
        email_works = Column(Boolean)

    with app.app_context(), error_mails_ended():
        db.create_all()
        yield {
            **{name: getattr(mailer, name) for name in mailer.__all__},
            "app": app,
            "db": db,
            "mailer": mailer.Mailer(),
            "order": Order(),
            "User": User,
            "user": User(email="ada@example.com"),
            "invoice": "Invoice",
            "pdf": b"%PDF",
            "png": b"PNG",
            "code": "123456",
            "datetime": datetime,
            "timedelta": timedelta,
            "UTC": UTC,
        }
        db.engine.dispose()
    close(app)


@pytest.mark.parametrize("page", ["guide", "privacy"])
def test_snippets(
    page: str,
    names: dict[str, Any],
    make_reader: Callable[..., Reader],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each snippet runs, each setting is valid, and each command works."""
    require("openssl", find_program("openssl"))
    reader = make_reader(page, FLASK_DEBUG="1")
    for name in ("shop", "shop.tokens"):  # a module that a setting names
        module = module_from_spec(ModuleSpec(name, None))
        monkeypatch.setitem(sys.modules, name, module)
    (reader.folder / "app.py").write_text(_APP)
    for block in blocks(f"docs/{page}.md"):
        if block.language != "python":
            reader.do(block)
        elif settings := settings_in(block):
            for name, text in settings:
                value = ast.literal_eval(with_files(text, reader.folder))
                given = {**_COMPANIONS.get(name, {}), name: value}
                Settings.load(given, {}, default_database_url="sqlite://")
        elif block.reason is None:
            exec(compile(block.text, str(block), "exec"), names)  # noqa: S102 -- the page's own code


#: What a bulk send has to be for a command: its options, and a decision about it.
_BULK_STATES: dict[str, tuple[dict[str, Any], str | None]] = {
    "resume": ({"send_at": timedelta(hours=1)}, "pause"),
    "confirm": ({"require_confirmation_above": 0}, None),
    "status": ({}, None),
    "pause": ({"send_at": timedelta(hours=1)}, None),
    "cancel": ({"send_at": timedelta(hours=1)}, None),
    "reschedule": ({"send_at": timedelta(hours=1)}, None),
}


def test_the_page_of_bulk_sends(
    names: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each snippet runs, and each command does what the page shows, with the file of the page."""
    monkeypatch.chdir(tmp_path)
    app, ran = names["app"], list[str]()
    for block in blocks("docs/bulk.md"):
        if block.language == "python":
            exec(compile(block.text, str(block), "exec"), names)  # noqa: S102 -- the page's own code
        elif block.language == "csv":
            Path("send.csv").write_text(block.text)
        else:
            for command, shown in commands(block):
                words = shlex.split(command.partition(" > ")[0], comments=True)[1:]
                options, decision = _BULK_STATES.get(words[2], ({}, None))
                bulk = mailer.send_bulk("News", "mail/plain", ["ada@example.com"], **options)
                if decision is not None:
                    getattr(bulk, decision)()
                arguments = [word.replace("01a220fe…", bulk.id) for word in words]
                done = app.test_cli_runner().invoke(args=arguments)
                assert done.exit_code == 0, done.output
                assert fits(shown, done.output), done.output
                ran.append(words[2])

    assert {"send.csv", "list", *_BULK_STATES, "errors", "recipients"} <= {*ran}


def test_a_repeated_order(config: dict[str, str]) -> None:
    """The guide's snippet with an idempotency key queues one mail for each order."""
    url = config["MAILER_DATABASE_URL"]
    app = create_shop(
        {**config, "SQLALCHEMY_DATABASE_URI": url}, {"mail/order.txt": "Order {{ order.id }}"}
    )
    db = SQLAlchemy(app)

    class Order(db.Model):  # type: ignore[name-defined,misc]
        id = Column(Integer, primary_key=True)

    [block] = [block for block in blocks("docs/guide.md") if "connection=db.session" in block.text]
    with app.app_context():
        db.create_all()
        store_of(app).check_schema()  # as `flask mail migrate` does
        names = {"db": db, "mailer": mailer.Mailer()}
        for order in (old := Order(), Order(), old):
            exec(block.text, {**names, "order": order})  # noqa: S102 -- the page's own code
        assert rows(app)["mailer_message"] == 2
        db.engine.dispose()
    close(app)


#: The state of the mail that a command is for.
_STATES = {"retry": Status.FAILED, "resolve": Status.DOUBTFUL}


def test_the_commands_of_operators(
    make_app: Callable[..., Flask],
) -> None:
    """Each command of an operator works, with the id of a mail in the right state.

    Other tests start workers.
    """
    app = make_app(MAILER_RELAYS=[{"name": "main", "MAIL_SERVER": "127.0.0.1"}])
    pages = blocks("docs/operating.md") + blocks("docs/restoring.md")
    found = [one for block in pages if block.language == "console" for one in commands(block)]
    assert found
    for command, _shown in found:
        if " celery " in command:
            continue
        flask, *words = shlex.split(command, comments=True)
        state = _STATES.get(words[1], Status.QUEUED)
        mail = bring(store_of(app), state, message=a_message(id=new_id(NOW)))
        ran = app.test_cli_runner().invoke(
            args=[word.replace("019fb1c3…", mail.mail_id) for word in words]
        )

        assert flask == "flask"
        assert ran.exit_code == 0, ran.output


# --- all pages ----------------------------------------------------------------------------------


def test_few_blocks_are_not_run() -> None:
    """A block that is not run has a reason, and there are few of them."""
    pages = (*FOLLOWED, "moving-over", "guide", "privacy", "operating", "bulk")
    found = [block for page in pages for block in blocks(f"docs/{page}.md")]
    left_out = [f"{block}: {block.reason}" for block in found if block.reason is not None]

    assert len(left_out) < len(found) / 10, left_out
