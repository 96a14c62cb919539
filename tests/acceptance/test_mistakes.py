"""The mistakes of docs/mistakes.md are made, and told in the words that the page quotes."""

import importlib.util
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from flask import Flask, current_app
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import Column, Integer, String

from mailer import (
    ConfigurationError,
    InvalidArgument,
    InvalidMail,
    Lane,
    Mail,
    Mailer,
    Message,
    SchemaMismatch,
    StoreUnavailable,
    send_bulk,
    send_email,
)
from mailer.celery.lanes import choose_queues
from mailer.store import engines
from mailer.store.workers import Worker
from mailer.testing import FakeRelay, Outbox
from mailer.web.serving import serve_inbox
from tests.services.databases import Databases
from tests.services.relay import SHORT, RawServer, make_relay, send
from tests.services.sink import Sink
from tests.services.waiting import wait_until
from tests.services.worker import PROJECT, StartWorker
from tests.shop import close, create_shop, store_of

TEMPLATES = {"mail/order.txt": "Order {{ number }}", "mail/bill.txt": "Bill", "mail/bill.htm": "B"}
MAIL = ("ada@example.com", "Your order", "mail/order")


# --- the page -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """A row of the tables."""

    words: re.Pattern[str]
    cure: str


def read_rows() -> dict[str, Row]:
    """Return the rows of the page by the mistake. Code in the second column is quoted words."""
    found = {}
    page = (PROJECT / "docs/mistakes.md").read_text(encoding="utf-8")
    for line in page.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if len(cells) != 3 or not line.startswith("| ") or cells[0] == "mistake":
            continue
        quoted = re.match(r"\*?`([^`]+)`", cells[1])
        assert quoted, line
        parts = map(re.escape, quoted[1].split("…"))
        found[cells[0]] = Row(re.compile(".*".join(parts)), cells[2])
    return found


ROWS = read_rows()
TESTED: list[str] = []


def mistake(title: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Mark the test that makes a mistake of the page. It passes the words that it met to `told`."""
    TESTED.append(title)
    return pytest.mark.parametrize("told", [title], indirect=True)


@pytest.fixture
def told(request: pytest.FixtureRequest) -> Iterator[Callable[[object], None]]:
    """Return `told(text)`, which finds the words of the page in a text."""
    row, texts = ROWS[request.param], list[str]()
    yield lambda text: texts.append(str(text))
    assert texts, "the test passed no words"
    for text in texts:
        assert row.words.search(text), text


def test_each_row_is_tested() -> None:
    """Each mistake of the page has a test here, and each test a row."""
    assert sorted(TESTED) == sorted(ROWS)
    assert all(row.cure for row in ROWS.values())


# --- set up -------------------------------------------------------------------------------------


@pytest.fixture
def databases(sqlite_databases: Databases) -> Databases:
    """Run each test on one database."""
    return sqlite_databases


@pytest.fixture
def make_shop(config: dict[str, str]) -> Iterator[Callable[..., Flask]]:
    """Return `make_shop(**config)`, which makes an application with the templates above."""
    apps = list[Flask]()

    def make_shop(**changes: Any) -> Flask:
        apps.append(create_shop({**config, **changes}, TEMPLATES))
        return apps[-1]

    yield make_shop
    for app in apps:
        close(app)


def celery_command(
    folder: Path, config: dict[str, str], options: tuple[str, ...] = (), **files: str
) -> str:
    """Return all that `celery -A worker worker` prints, with these files beside it."""
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text)
    ran = subprocess.run(
        [sys.executable, "-m", "celery", "-A", "worker", "worker", *options],
        cwd=folder,
        env={**os.environ, **config, "PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode != 0
    return ran.stdout + ran.stderr


@mistake("The Celery app is set after `init_app()`")
def test_celery_after_mailer(
    make_shop: Callable[..., Flask],
    told: Callable[[object], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The first mail logs the mistake, and so does `flask mail queue`."""
    app = make_shop()
    app.extensions["celery"] = Celery("late")
    with app.app_context():
        send_email(*MAIL, number=1)

    wait_until(lambda: "was set after" in caplog.text)
    told(caplog.text)
    told(app.test_cli_runner().invoke(args=["mail", "queue"]).output)


MINIMAL = "from flask import Flask\nfrom mailer import Mailer\napp = Flask(__name__)\n"


@mistake("The Flask app is named `app` in `worker.py`")
def test_app_in_the_worker(
    config: dict[str, str], told: Callable[[object], None], tmp_path: Path
) -> None:
    """The command ends with the remedy, and without a traceback."""
    worker = "from app import app\ncelery = app.extensions['celery']\n"
    printed = celery_command(tmp_path, config, app=f"{MINIMAL}Mailer(app)\n", worker=worker)

    told(printed)
    assert "Traceback" not in printed


@mistake("`app.py` and `worker.py` import each other")
def test_a_circular_import(
    config: dict[str, str], told: Callable[[object], None], tmp_path: Path
) -> None:
    """Python names the circular import."""
    app = "from worker import celery\n" + MINIMAL
    worker = "from app import app\ncelery = app.extensions['celery']\n"
    told(celery_command(tmp_path, config, app=app, worker=worker))


@mistake("Two `Mailer` objects for one app")
def test_two_mailers(make_shop: Callable[..., Flask], told: Callable[[object], None]) -> None:
    """The second one is refused; a `Mail` beside it uses the queue that is there."""
    app = make_shop()
    with pytest.raises(ConfigurationError) as error:
        Mailer(app)
    told(error.value)
    Mail(app)


@mistake("`Mail(app)`, then the settings, then `Mail(app)` again")
def test_settings_after_the_first_mail(
    make_shop: Callable[..., Flask], told: Callable[[object], None]
) -> None:
    """The second one is refused if a setting is another one now, and only then."""
    app = make_shop()
    Mail(app)
    app.config["MAIL_SERVER"] = "smtp.example.com"
    with pytest.raises(ConfigurationError) as error:
        Mail(app)
    told(error.value)


@mistake("The app has no Mailer")
def test_no_mailer(told: Callable[[object], None]) -> None:
    """The call is refused."""
    with Flask("bare").app_context(), pytest.raises(ConfigurationError) as error:
        send_email(*MAIL)
    told(error.value)


@mistake("No worker runs")
def test_no_worker(
    make_shop: Callable[..., Flask],
    told: Callable[[object], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The first mail makes the process look for workers, and log that there is none."""
    with make_shop().app_context():
        send_email(*MAIL, number=1)
    wait_until(lambda: "no worker" in caplog.text)
    told(caplog.text)


@mistake("No worker serves a lane")
def test_no_worker_for_a_lane(
    make_shop: Callable[..., Flask],
    told: Callable[[object], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The first mail makes the process look for workers, and log that none serves the lane."""
    app, now = make_shop(), time.time()
    store = app.extensions["mailer"].store
    row = Worker(
        id="one", machine="web1", pid=7, version="1", lanes="critical", started_at=now, seen_at=now
    )
    store.beat(row)
    with app.app_context():
        send_email(*MAIL, number=1, lane="bulk")
    wait_until(lambda: "no worker" in caplog.text)
    told(caplog.text)


@mistake("`MAILER_WORKER_LANES` with a Celery app of your own that has one queue")
def test_a_dedicated_worker_without_a_queue(told: Callable[[object], None]) -> None:
    """The worker does not start, and says what to declare."""
    with pytest.raises(ConfigurationError) as error:
        choose_queues(Celery("shop", set_as_current=False), {Lane.BULK})
    told(error.value)


@mistake("The worker does not import the module of a `@mailer.background` function")
def test_a_function_that_no_worker_imports(
    make_shop: Callable[..., Flask], start_worker: StartWorker, told: Callable[[object], None]
) -> None:
    """The worker refuses the call, with the module to import."""

    @Mailer().background(name="shop.reports.make_report")
    def make_report() -> None: ...

    worker = start_worker(pool="threads", concurrency=1)
    with make_shop().app_context():
        make_report()
    wait_until(lambda: "was refused" in worker.log.read_text())
    told(worker.log.read_text())


@pytest.fixture
def without_extras(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the packages of all extras."""
    hidden = {
        "psycopg",
        "cryptography",
        "msal",
        "google",
        "google.auth",
        "python_socks",
        "aiosmtpd",
        "libcst",
    }
    find_spec = importlib.util.find_spec

    def find(name: str, package: str | None = None) -> object:
        return None if name in hidden else find_spec(name, package)

    for module in ("settings.database", "settings.oauth", "settings.proxy", "mime.signer"):
        monkeypatch.setattr(f"mailer.{module}.find_spec", find)
    for module in ("web.serving", "testing.relay", "cli.migrate_code"):
        monkeypatch.setattr(f"mailer.{module}.find_spec", find)


EXTRAS: dict[str, dict[str, Any]] = {
    "PostgreSQL": {"MAILER_DATABASE_URL": "postgresql://127.0.0.1/shop"},
    "DKIM": {"MAILER_DKIM_KEYS": [{"domain": "example.com", "selector": "a", "key": "…"}]},
    "OAuth": {
        "MAIL_USERNAME": "ada",
        "MAILER_OAUTH": {
            "provider": "microsoft",
            "tenant": "…",
            "client_id": "…",
            "client_secret": "…",
        },
    },
    "a proxy": {"MAILER_PROXY": "socks5://127.0.0.1:1080"},
}


def check_extra(config: dict[str, str], extra: str) -> ConfigurationError:
    with pytest.raises(ConfigurationError) as error:
        create_shop({**config, **EXTRAS[extra]})
    return error.value


@pytest.mark.usefixtures("without_extras")
@mistake("An extra is missing: PostgreSQL")
def test_no_postgres(config: dict[str, str], told: Callable[[object], None]) -> None:
    """The start of the app is refused, with the command that installs the extra."""
    told(check_extra(config, "PostgreSQL"))


@pytest.mark.usefixtures("without_extras")
@mistake("An extra is missing: DKIM")
def test_no_dkim(config: dict[str, str], told: Callable[[object], None]) -> None:
    """The same."""
    told(check_extra(config, "DKIM"))


@pytest.mark.usefixtures("without_extras")
@mistake("An extra is missing: OAuth")
def test_no_oauth(config: dict[str, str], told: Callable[[object], None]) -> None:
    """The same."""
    told(check_extra(config, "OAuth"))


@pytest.mark.usefixtures("without_extras")
@mistake("An extra is missing: a proxy")
def test_no_socks(config: dict[str, str], told: Callable[[object], None]) -> None:
    """The same."""
    told(check_extra(config, "a proxy"))


@pytest.mark.usefixtures("without_extras")
@mistake("An extra is missing: `flask mail migrate-code`")
def test_no_libcst(make_shop: Callable[..., Flask], told: Callable[[object], None]) -> None:
    """The command is refused."""
    told(make_shop().test_cli_runner().invoke(args=["mail", "migrate-code"]).output)


@mistake("An extra is missing: gevent")
def test_no_gevent(config: dict[str, str], told: Callable[[object], None], tmp_path: Path) -> None:
    """Celery names the package before it loads any app."""
    missing = "raise ModuleNotFoundError(\"No module named 'gevent'\")\n"
    told(celery_command(tmp_path, config, ("--pool", "gevent"), gevent=missing))


@pytest.mark.usefixtures("without_extras")
@mistake("An extra is missing: the inbox")
def test_no_inbox(told: Callable[[object], None], tmp_path: Path) -> None:
    """The command is refused in the same way."""
    with pytest.raises(ConfigurationError) as error:
        serve_inbox(tmp_path, 1025, 8025, print)
    told(error.value)


@pytest.mark.usefixtures("without_extras")
@mistake("An extra is missing: the fake relay of tests")
def test_no_fake_relay(told: Callable[[object], None]) -> None:
    """The relay of the test kit is refused in the same way."""
    with pytest.raises(ConfigurationError) as error:
        FakeRelay()
    told(error.value)


@mistake("`TESTING` is set after `init_app()`")
def test_testing_too_late(make_shop: Callable[..., Flask], told: Callable[[object], None]) -> None:
    """An app that was set up for production is no app under test."""
    app = make_shop()
    app.config["TESTING"] = True
    with pytest.raises(ConfigurationError) as error:
        Outbox(app)
    told(error.value)


# --- settings -----------------------------------------------------------------------------------


@pytest.fixture
def refused(config: dict[str, str]) -> Callable[..., str]:
    """Return `refused(**config)`, which returns the error of an app that can't start."""

    def refused(**changes: Any) -> str:
        with pytest.raises(ConfigurationError) as error:
            create_shop({**config, **changes})
        return str(error.value)

    return refused


@mistake("`MAIL_SERVER` with a port")
def test_a_server_with_a_port(refused: Callable[..., str], told: Callable[[object], None]) -> None:
    """The error has the two keys to set."""
    told(refused(MAIL_SERVER="smtp.example.com:587"))


@mistake("`MAIL_SERVER` is a URL")
def test_a_server_that_is_a_url(
    refused: Callable[..., str], told: Callable[[object], None]
) -> None:
    """The error has the keys to set, and not the password."""
    words = refused(MAIL_SERVER="smtps://ada:secret@smtp.example.com:465")
    told(words)
    assert "secret" not in words


@mistake("Port 587 with `MAIL_USE_SSL`")
def test_the_port_of_starttls_with_tls(sink: Sink, told: Callable[[object], None]) -> None:
    """The reason of the failure has the advice."""
    told(send(make_relay("localhost", sink.port, MAIL_USE_SSL=True)).advice)


def lead_to(server: RawServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each connection lead to this server: a test can't listen on port 465."""
    connect = socket.socket.connect
    monkeypatch.setattr(
        socket.socket, "connect", lambda sock, _: connect(sock, (server.host, server.port))
    )


@mistake("Port 465 without `MAIL_USE_SSL`")
def test_the_port_of_tls_without(
    told: Callable[[object], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relay that waits for TLS is silent. The advice says so, also with `MAIL_USE_TLS`."""
    with RawServer(greeting=()) as silent:
        lead_to(silent, monkeypatch)
        for keys in ({}, {"MAIL_USE_TLS": True}):
            relay = make_relay("127.0.0.1", 465, MAILER_COMMAND_TIMEOUT=SHORT, **keys)
            told(send(relay).advice)


@mistake("Port 25, which the network blocks")
def test_a_blocked_port(told: Callable[[object], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that times out at port 25 has the advice; an unanswered DNS has none."""

    def time_out(*_arguments: object) -> None:
        raise TimeoutError("timed out")  # a firewall that drops packets is nothing a test can have

    monkeypatch.setattr(socket.socket, "connect", time_out)
    told(send(make_relay("192.0.2.1", 25)).advice)
    assert send(make_relay("192.0.2.1", 587)).advice == ""


@mistake("No relay is set")
def test_no_relay(told: Callable[[object], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """The default, port 25 of this machine, refuses the connection."""

    def refuse(*_arguments: object) -> None:
        raise ConnectionRefusedError("Connection refused")  # the machine may have a relay

    monkeypatch.setattr(socket.socket, "connect", refuse)
    told(send(make_relay("127.0.0.1", 25)).advice)


@mistake("`MAIL_USERNAME` without `MAIL_PASSWORD`")
def test_a_name_without_a_password(
    make_shop: Callable[..., Flask],
    told: Callable[[object], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The start of the app logs a warning, and with both, or in tests, none."""
    keys = {"MAIL_SERVER": "smtp.example.com", "MAIL_USERNAME": "ada"}
    make_shop(**keys, MAIL_PASSWORD="secret")
    make_shop(**keys, TESTING=True)
    assert "MAIL_PASSWORD" not in caplog.text
    make_shop(**keys)
    told(caplog.text)


@mistake("No `MAIL_DEFAULT_SENDER`, at start")
def test_no_sender_at_start(
    make_shop: Callable[..., Flask],
    told: Callable[[object], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The start of the app logs a warning."""
    make_shop(MAIL_DEFAULT_SENDER=None)
    told(caplog.text)


@mistake("No `MAIL_DEFAULT_SENDER`, at the call")
def test_no_sender_at_the_call(
    make_shop: Callable[..., Flask], told: Callable[[object], None]
) -> None:
    """The call is refused."""
    app = make_shop(MAIL_DEFAULT_SENDER=None)
    with app.app_context(), pytest.raises(ConfigurationError) as error:
        send_email(*MAIL, number=1)
    told(error.value)


@mistake("A misspelled key")
def test_a_misspelled_key(refused: Callable[..., str], told: Callable[[object], None]) -> None:
    """The start of the app is refused."""
    told(refused(MAILER_RETRY_ATEMPTS=3))


@mistake("A real relay in debug mode")
def test_a_real_relay(refused: Callable[..., str], told: Callable[[object], None]) -> None:
    """The start of the app is refused."""
    told(refused(DEBUG=True, MAIL_SERVER="smtp.example.com", MAIL_PORT=25))


@mistake("`sqlite://m.db`, with two slashes")
def test_two_slashes(refused: Callable[..., str], told: Callable[[object], None]) -> None:
    """The start of the app is refused, with the URL to write."""
    told(refused(MAILER_DATABASE_URL="sqlite://m.db"))


@mistake("A Windows path on Linux")
def test_a_path_of_windows(refused: Callable[..., str], told: Callable[[object], None]) -> None:
    """The start of the app is refused, however the path is written."""
    told(refused(MAILER_DATABASE_URL=r"sqlite:///C:\shop\m.db"))
    assert "a path of Windows" in refused(MAILER_DATABASE_URL="sqlite:///C:/shop/m.db")


@mistake("The tests inherit `MAILER_DATABASE_URL` from the configuration of the application")
def test_the_database_of_the_application_in_tests(
    make_shop: Callable[..., Flask], told: Callable[[object], None]
) -> None:
    """A call with connection= is refused; with the cure, its commit sends the mail."""
    own = {"TESTING": True, "SQLALCHEMY_DATABASE_URI": "sqlite://"}
    app = make_shop(**own)
    db = SQLAlchemy(app)
    with app.app_context(), pytest.raises(ConfigurationError) as error:
        send_email(*MAIL, number=1, connection=db.session)
    told(error.value)

    app = make_shop(**own, MAILER_DATABASE_URL="sqlite://")
    db = SQLAlchemy(app)
    with app.app_context(), Outbox(app) as outbox:
        send_email(*MAIL, number=1, connection=db.session)
        db.session.rollback()
        outbox.assert_nothing_sent()
        send_email(*MAIL, number=1, connection=db.session)
        db.session.commit()
        outbox.assert_sent(to="ada@example.com")


# --- calls --------------------------------------------------------------------------------------


@pytest.fixture
def refusal(make_shop: Callable[..., Flask]) -> Callable[..., InvalidMail]:
    """Return `refusal(*arguments, **options)`, which returns the error of `send_email()`."""
    app = make_shop()

    def refusal(*arguments: Any, **options: Any) -> InvalidMail:
        with app.app_context(), pytest.raises(InvalidMail) as error:
            send_email(*arguments, **options)
        return error.value

    return refusal


@mistake("`body=` for `send_email()`")
def test_body(refusal: Callable[..., InvalidMail], told: Callable[[object], None]) -> None:
    """The call is refused."""
    told(refusal(*MAIL, number=1, body="Hello"))


@mistake("A template, and `text=` as one of its variables")
def test_text_for_a_template(
    refusal: Callable[..., InvalidMail], told: Callable[[object], None]
) -> None:
    """The call is refused."""
    told(refusal(*MAIL, number=1, text="Hello"))


@mistake("The arguments of another `send_email()`: subject, sender, recipients")
def test_the_order_of_another_function(
    refusal: Callable[..., InvalidMail], told: Callable[[object], None]
) -> None:
    """The call is refused."""
    told(refusal("Your order", "shop@example.com", ["ada@example.com"], text_body="Hello"))


@mistake("`attachment=` for `send_email()`")
def test_attachment(refusal: Callable[..., InvalidMail], told: Callable[[object], None]) -> None:
    """The call is refused."""
    told(refusal(*MAIL, number=1, attachment=b"%PDF"))


@mistake("A pair or a tuple as attachment")
def test_a_tuple_as_attachment(
    refusal: Callable[..., InvalidMail], told: Callable[[object], None]
) -> None:
    """The call is refused, with the class to import and the order of its arguments."""
    for file in (("a.pdf", b"%PDF"), ("a.pdf", "application/pdf", b"%PDF")):
        told(refusal(*MAIL, number=1, attachments=[file]))


@mistake("`session=`, `delay=`, `files=` and the like for `send_email()`")
def test_names_of_other_libraries(
    refusal: Callable[..., InvalidMail], told: Callable[[object], None]
) -> None:
    """The call is refused."""
    told(refusal(*MAIL, number=1, session=object()))


@mistake("A method of `Mailer` on a `Mail`")
def test_a_method_of_mailer(
    make_shop: Callable[..., Flask], told: Callable[[object], None]
) -> None:
    """The call is refused; any other unknown name is None, as with Flask-Mail."""
    mail = Mail(make_shop())
    with pytest.raises(AttributeError) as error:
        mail.send_email(*MAIL)
    told(error.value)
    with pytest.raises(AttributeError, match=r"`from mailer import Mailer` and Mailer\(\)\.status"):
        mail.status("1")
    assert mail.unknown is None
    assert mail.port == make_shop().extensions["mail"].port


@mistake("A method of `Mail` on a `Mailer`")
def test_a_method_of_mail(told: Callable[[object], None]) -> None:
    """The call is refused."""
    mailer: Any = Mailer()
    with pytest.raises(AttributeError) as error:
        mailer.send(Message("Hello", ["ada@example.com"], "Hello"))
    told(error.value)
    with pytest.raises(AttributeError, match=r"'Mailer' object has no attribute 'unknown'$"):
        _ = mailer.unknown


@mistake("An option for `mail.send()`")
def test_an_option_for_send(
    make_shop: Callable[..., Flask], told: Callable[[object], None]
) -> None:
    """The call is refused."""
    app = make_shop()
    mail: Any = Mail(app)
    with app.app_context(), pytest.raises(TypeError) as error:
        mail.send(Message("Hello", ["ada@example.com"], "Hello"), connection=object())
    told(error.value)


@mistake("A user object as recipient")
def test_a_user_as_recipient(
    make_shop: Callable[..., Flask], told: Callable[[object], None], tmp_path: Path
) -> None:
    """The call is refused, with the attribute to pass; the attribute is not read."""
    app = make_shop(SQLALCHEMY_DATABASE_URI=f"sqlite:///{tmp_path}/users.sqlite3")
    db = SQLAlchemy(app)

    class User(db.Model):  # type: ignore[name-defined,misc]
        id = Column(Integer, primary_key=True)
        email = Column(String)

    with app.app_context():
        db.create_all()
        user = User(email="ada@example.com")
        db.session.add(user)
        db.session.commit()
        for to in (user, [user]):
            with pytest.raises(InvalidMail) as error:
                send_email(to, "Hello", "mail/order", number=1)
            told(error.value)
        db.session.close()
        db.engine.dispose()


@mistake("An object of the database as argument of a `@mailer.background` function")
def test_an_object_for_a_worker(
    make_shop: Callable[..., Flask], told: Callable[[object], None]
) -> None:
    """The call is refused, with the attribute to pass."""
    app = make_shop(SQLALCHEMY_DATABASE_URI="sqlite://")
    db = SQLAlchemy(app)

    class User(db.Model):  # type: ignore[name-defined,misc]
        id = Column(Integer, primary_key=True)

    @Mailer().background
    def greet(user: object) -> None:
        raise AssertionError(user)

    with app.app_context(), pytest.raises(InvalidArgument) as error:
        greet(User(id=1))
    told(error.value)


@mistake("The app as argument of a `@mailer.background` function")
def test_the_app_for_a_worker(
    make_shop: Callable[..., Flask], told: Callable[[object], None]
) -> None:
    """The call is refused."""

    @Mailer().background
    def greet(app: object) -> None:
        raise AssertionError(app)

    with make_shop().app_context(), pytest.raises(InvalidArgument) as error:
        greet(current_app)
    told(error.value)


@mistake("A method as `@mailer.background` function")
def test_a_method_for_a_worker(told: Callable[[object], None]) -> None:
    """The class can't be defined."""
    with pytest.raises(InvalidArgument) as error:

        class Order:
            @Mailer().background
            def confirm(self, by: str) -> None:
                raise AssertionError(by)

    told(error.value)


@mistake("A call outside an app context")
def test_outside_of_a_context(
    config: dict[str, str], make_shop: Callable[..., Flask], told: Callable[[object], None]
) -> None:
    """Flask's error says what to do. `Mailer(app)` knows its app, and needs no context."""
    make_shop()
    with pytest.raises(RuntimeError) as error:
        send_email(*MAIL, number=1)
    told(error.value)

    app = Flask("shop")
    app.config.from_mapping(config)
    app.jinja_loader = make_shop().jinja_loader
    app.context_processor(lambda: {"number": current_app.name})
    mailer = Mailer(app)
    receipt = mailer.send_email(*MAIL)
    assert [one.subject for one in mailer.mails()] == ["Your order"]
    assert mailer.status(receipt).is_finished is False
    store_of(app).engine.dispose()


@mistake("A template that does not exist")
def test_no_template(refusal: Callable[..., InvalidMail], told: Callable[[object], None]) -> None:
    """The call is refused, with the names that were looked for and the one that is there."""
    told(refusal("ada@example.com", "Your order", "mail/ordr"))


@mistake("A template name with its ending")
def test_an_ending(refusal: Callable[..., InvalidMail], told: Callable[[object], None]) -> None:
    """The call is refused."""
    told(refusal("ada@example.com", "Your order", "mail/order.txt"))


@mistake("One of two templates has another ending")
def test_half_a_pair(
    make_shop: Callable[..., Flask],
    told: Callable[[object], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The mail is queued with one version, and a warning is logged once."""
    with make_shop().app_context():
        send_email("ada@example.com", "Your order", "mail/order", number=1)
        assert "one version" not in caplog.text
        for _ in range(2):
            send_email("ada@example.com", "Your bill", "mail/bill")
    told(caplog.text)
    assert caplog.text.count("one version") == 1


@mistake("A `Message` is changed after it was queued")
def test_a_changed_message(
    make_shop: Callable[..., Flask],
    told: Callable[[object], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The end of the context logs a warning, unless the message was sent again."""
    app = make_shop(TESTING=True)
    mail, message = Mail(app), None
    with app.app_context(), mail.record_messages() as outbox:
        message = Message("Hello", ["ada@example.com"], "one")
        mail.send(message)
        message.body = "two"
        mail.send(message)
    assert [one.body for one in outbox] == ["one", "two"]
    assert caplog.text == ""
    with app.app_context():
        mail.send(message)
        message.body = "three"
    told(caplog.text)


def test_a_message_of_production(
    make_shop: Callable[..., Flask], caplog: pytest.LogCaptureFixture
) -> None:
    """Outside debug mode and tests, messages are not compared."""
    app = make_shop()
    with app.app_context():
        message = Message("Hello", ["ada@example.com"], "one")
        Mail(app).send(message)
        message.body = "two"
    assert "changed" not in caplog.text


# --- SQLite -------------------------------------------------------------------------------------


@pytest.fixture
def shop_with_orders(
    make_shop: Callable[..., Flask], tmp_path: Path
) -> Iterator[tuple[Flask, SQLAlchemy, Any]]:
    """Make an app whose orders are in the file that Mailer uses, without Mailer's tables."""
    url = f"sqlite:///{tmp_path}/shop.sqlite3"
    app = make_shop(MAILER_DATABASE_URL=url, SQLALCHEMY_DATABASE_URI=url)
    db = SQLAlchemy(app)

    class Order(db.Model):  # type: ignore[name-defined,misc]
        id = Column(Integer, primary_key=True)

    with app.app_context():
        db.create_all()
        yield app, db, Order
        db.session.rollback()
        db.engine.dispose()


@mistake("SQLite: `connection=` before `flask mail migrate`")
def test_no_tables(
    shop_with_orders: tuple[Flask, SQLAlchemy, Any], told: Callable[[object], None]
) -> None:
    """The call is refused at once, and works after the command."""
    app, db, order = shop_with_orders
    db.session.add(order())
    db.session.flush()
    with pytest.raises(SchemaMismatch) as error:
        send_email(*MAIL, number=1, connection=db.session)
    told(error.value)
    db.session.rollback()

    app.test_cli_runner().invoke(args=["mail", "migrate"])
    db.session.add(order())
    db.session.flush()
    receipt = send_email(*MAIL, number=1, connection=db.session)
    db.session.commit()
    assert receipt.is_new


@mistake("SQLite: a call without `connection=` during a transaction of your own")
def test_a_locked_file(
    shop_with_orders: tuple[Flask, SQLAlchemy, Any],
    told: Callable[[object], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The error names the remedy when the wait is over."""
    monkeypatch.setattr(engines, "_BUSY_SECONDS", 0.1)
    app, db, order = shop_with_orders
    store_of(app).migrate()
    db.session.add(order())
    db.session.flush()
    with pytest.raises(StoreUnavailable) as error:
        send_email(*MAIL, number=1)
    told(error.value)


# --- bulk sends ---------------------------------------------------------------------------------

NEWS = {
    "mail/news.txt": "News for {{ name }}",
    "mail/computed.txt": "{% include name %}",
    "mail/here.txt": "{{ request.host }}",
}
TWO = [("ada@example.com", {"name": "Ada"}), ("bob@example.com", {"name": "Bob"})]


@pytest.fixture
def newspaper() -> Iterator[Flask]:
    """Make an application with these templates, and enter its context."""
    config = {"MAILER_DATABASE_URL": "sqlite://", "MAIL_DEFAULT_SENDER": "news@example.com"}
    app = create_shop({"TESTING": True, **config}, NEWS)
    with app.app_context():
        yield app
    close(app)


def refused_send(*recipients: object, template: str = "mail/news", **options: Any) -> InvalidMail:
    """Return the error of a bulk send that is refused."""
    with pytest.raises(InvalidMail) as error:
        send_bulk("News", template, recipients, **options)
    return error.value


def refused_row(row: object) -> str:
    """Return the reason why a row is left out."""
    [error] = send_bulk("News", "mail/news", [row]).errors()
    return error.reason


@pytest.mark.usefixtures("newspaper")
@mistake("One address as `recipients`")
def test_one_address(told: Callable[[object], None]) -> None:
    """The call is refused; each letter would be a row."""
    with pytest.raises(InvalidMail) as error:
        send_bulk("News", "mail/news", "ada@example.com")
    told(error.value)


@pytest.mark.usefixtures("newspaper")
@mistake("A row without an address")
def test_no_address(told: Callable[[object], None]) -> None:
    """The row is left out."""
    told(refused_row({"mail": "ada@example.com", "name": "Ada"}))


@pytest.mark.usefixtures("newspaper")
@mistake("A date in the context of a recipient")
def test_a_date_in_a_context(told: Callable[[object], None]) -> None:
    """The row is left out, with the place of the value."""
    told(refused_row(("ada@example.com", {"name": "Ada", "day": date(2026, 11, 28)})))


@pytest.mark.usefixtures("newspaper")
@mistake("`{% include name %}` with a variable")
def test_a_computed_name(told: Callable[[object], None]) -> None:
    """The call is refused, with the line."""
    told(refused_send(*TWO, template="mail/computed"))


@mistake("`request` in a template of a bulk send")
def test_request_in_a_template(newspaper: Flask, told: Callable[[object], None]) -> None:
    """The call is refused, also within a request."""
    with newspaper.test_request_context():
        told(refused_send(*TWO, template="mail/here"))


@pytest.mark.usefixtures("newspaper")
@mistake('`on_error="abort"` with `start="streaming"`')
def test_abort_while_streaming(told: Callable[[object], None]) -> None:
    """The call is refused: what is sent can't be taken back."""
    told(refused_send(*TWO, on_error="abort", start="streaming"))


@pytest.mark.usefixtures("newspaper")
@mistake("The key of another bulk send")
def test_the_key_of_another_send(told: Callable[[object], None]) -> None:
    """Other rows, and the same ones in another order, are refused."""
    send_bulk("News", "mail/news", TWO, idempotency_key="news")
    told(refused_send("eve@example.com", idempotency_key="news"))
    told(refused_send(*reversed(TWO), idempotency_key="news"))


@pytest.fixture
def printed(
    newspaper: Flask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., str]:
    """Return `printed(content)`, which returns what the command prints for such a send.csv."""
    monkeypatch.chdir(tmp_path)
    words = ["mail", "bulk", "send.csv", "--template", "mail/news", "--subject", "News"]

    def printed(content: str, encoding: str = "utf-8") -> str:
        Path("send.csv").write_text(content, encoding)
        return newspaper.test_cli_runner().invoke(args=words).output

    return printed


@mistake("A CSV file without the column of the address")
def test_csv_without_addresses(printed: Callable[..., str], told: Callable[[object], None]) -> None:
    """The command ends before it stores anything."""
    told(printed("name,mail\nAda,ada@example.com\n"))


@mistake("A CSV file of a spreadsheet that separates by semicolons")
def test_csv_with_semicolons(printed: Callable[..., str], told: Callable[[object], None]) -> None:
    """The same."""
    told(printed("email;name\nada@example.com;Ada\n"))


@mistake("A CSV file that is not in UTF-8")
def test_csv_in_another_encoding(
    printed: Callable[..., str], told: Callable[[object], None]
) -> None:
    """The command ends with the number of the line."""
    told(printed("email,name\nada@example.com,äda\n", "latin-1"))


@mistake("A quote in a CSV file that is never closed")
def test_csv_with_an_open_quote(
    printed: Callable[..., str], told: Callable[[object], None]
) -> None:
    """The line is that of the quote, not the last one."""
    told(printed('email,name\nada@example.com,Ada\nbob@example.com,"Bob\neve@example.com,Eve\n'))


@mistake("A row of a CSV file with a comma too many")
def test_csv_with_a_comma_too_many(
    printed: Callable[..., str], told: Callable[[object], None]
) -> None:
    """The row is left out, and the others are sent."""
    words = printed("email,name\nada@example.com,Ada, the first\nbob@example.com,Bob\n")
    told(words)
    assert "1 accepted" in words


@mistake("A misspelled command of `flask mail bulk`")
def test_a_misspelled_command(newspaper: Flask, told: Callable[[object], None]) -> None:
    """The word is not taken for a file."""
    told(newspaper.test_cli_runner().invoke(args=["mail", "bulk", "statsu"]).output)


# --- no mistakes --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "server", ["smtp.example.com", "mail_server", "::1", "2001:db8::1", "10.0.0.1", "/run/relay"]
)
def test_hosts(make_shop: Callable[..., Flask], server: str) -> None:
    """Names, addresses and sockets are no mistakes."""
    app = make_shop(MAIL_SERVER=server)
    assert app.extensions["mailer"].settings.mail_server == server


@pytest.mark.parametrize("server", ["[::1]:25", "smtp example", "http://", "a:b:c", "host/path"])
def test_what_is_no_host(refused: Callable[..., str], server: str) -> None:
    """Anything else is refused when the app starts."""
    assert refused(MAIL_SERVER=server).startswith(f"MAIL_SERVER={server!r}: ")


def test_a_silent_dns(monkeypatch: pytest.MonkeyPatch) -> None:
    """A DNS that does not answer is no mistake of the configuration, also at port 25."""

    def time_out(*_arguments: object) -> None:
        raise TimeoutError

    monkeypatch.setattr("mailer.smtp.names._call", time_out)
    assert send(make_relay("smtp.example.com", 25)).advice == ""
