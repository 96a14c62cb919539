"""`QueuedMailHandler` queues mail about errors, and disturbs nobody."""

import logging
import math
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
from celery import signals
from flask import Flask, abort

from mailer import ConfigurationError, InvalidAddress, InvalidMail, Mail, Mailer, Status
from mailer.clock import SystemClock
from mailer.delivery import breaker
from mailer.logging import QueuedMailHandler, flush_handlers
from mailer.message import Message
from mailer.signals import Event, mail_queued
from mailer.threads import start_daemon
from tests.mails import table
from tests.services.databases import Databases, sqlite_only
from tests.services.waiting import wait_until
from tests.services.worker import PROJECT
from tests.shop import OpenShop, create_shop, store_of

pytestmark = sqlite_only

mailer = Mailer()
logger = logging.getLogger("warehouse")


@pytest.fixture(autouse=True)
def _on_sqlite(databases: Databases) -> None:
    """Run each test once."""


AddHandler = Callable[..., QueuedMailHandler]


@pytest.fixture
def add_handler() -> Iterator[AddHandler]:
    """Return `add_handler(logger, **options)`, which adds a handler until the test ends."""
    with ExitStack() as stack:

        def add_handler(to: logging.Logger = logger, **options: Any) -> QueuedMailHandler:
            handler = QueuedMailHandler("admin@example.com", **options)
            to.addHandler(handler)
            stack.callback(handler.close)
            stack.callback(to.removeHandler, handler)
            return handler

        yield add_handler


def error_mails(app: Flask) -> list[Message]:
    """Return the queued mails, in the order in which they were queued."""
    store = store_of(app)
    store.check_schema()  # makes the tables, if there was no mail
    found = [row["mail_id"] for row in table(store).values()]
    return [store.load_messages([one])[one] for one in found]


def subjects(app: Flask) -> list[str]:
    return [mail.subject for mail in error_mails(app)]


# --- what it says -------------------------------------------------------------------------------


def test_an_error_in_a_request(open_shop: OpenShop, add_handler: AddHandler) -> None:
    """The mail about an error in a view has traceback, process, and the URL without its query."""
    app = open_shop()
    handler = add_handler(app.logger, subject="Shop failed", sender="shop@example.com")
    app.add_url_rule("/pay/<int:amount>", "pay", lambda amount: str(1 / amount), methods=["POST"])

    assert app.test_client().post("/pay/0?token=geheim").status_code == 500
    handler.flush()

    [mail] = error_mails(app)
    assert mail.subject == "Shop failed: ZeroDivisionError: division by zero"
    assert (str(mail.sender), str(mail.to[0])) == ("shop@example.com", "admin@example.com")
    assert ("Auto-Submitted", "auto-generated") in mail.headers
    text = mail.text or ""
    assert text.startswith("Exception on /pay/0 [POST]\nTraceback (most recent call last):\n")
    assert "\nZeroDivisionError: division by zero\n" in text
    assert "\nRequest  POST http://localhost/pay/0\n" in text
    assert f"thread {threading.current_thread().name}\n" in text
    assert "geheim" not in text


def test_an_error_without_a_context(open_shop: OpenShop, add_handler: AddHandler) -> None:
    """Outside an app context, in any thread, the app that was made last queues the mail."""
    handler = add_handler()
    app = open_shop()

    thread = threading.Thread(target=logger.error, args=("No %s", "parcels"), name="packer")
    thread.start()
    thread.join()
    handler.flush()

    [mail] = error_mails(app)
    assert mail.subject.endswith(": No parcels")
    assert mail.subject.startswith("ERROR on ")
    assert (mail.text or "").startswith("No parcels\n\nLogger   warehouse, line ")
    assert "thread packer\n" in (mail.text or "")
    assert "Request" not in (mail.text or "")


def test_the_app_that_counts(open_shop: OpenShop, add_handler: AddHandler, tmp_path: Path) -> None:
    """The current app queues the mail; with `app`, always that one."""
    app = open_shop()
    other = open_shop(MAILER_DATABASE_URL=f"sqlite:///{tmp_path}/other.sqlite3")
    with app.app_context():
        handler = add_handler()
        logger.error("first")
        handler.flush()
    logger.removeHandler(handler)
    handler = add_handler(app=app)
    with other.app_context():
        logger.error("second")
    handler.flush()

    assert [subject.rpartition(": ")[2] for subject in subjects(app)] == ["first", "second"]
    assert subjects(other) == []


def test_an_error_before_the_app_is_made(config: dict[str, str], add_handler: AddHandler) -> None:
    """An error that is logged before there is an app waits for it."""
    handler = add_handler(app=None)
    # Apps of other tests may still be there: this handler knows none of them.
    apps: list[Flask] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mailer.logging.newest_app", lambda: apps[0] if apps else None)
        logger.error("too early")
        handler.flush()
        apps.append(create_shop(config))
        wait_until(lambda: subjects(apps[0]))
    store_of(apps[0]).engine.dispose()


def test_headers_of_a_visitor(open_shop: OpenShop, add_handler: AddHandler) -> None:
    """No message and no request adds a header or a recipient."""
    app = open_shop()
    handler = add_handler()

    with app.test_request_context("/%0d%0aBcc: eve@example.com"):
        logger.error("No\r\nBcc: eve@example.com\r\n\r\nparcels \x1b[31m\u2028")
    handler.flush()

    [mail] = error_mails(app)
    assert mail.subject.endswith(": No Bcc: eve@example.com parcels [31m")
    with app.app_context():
        assert [one.recipient for one in mailer.status(mail.id)] == ["admin@example.com"]


def test_a_long_record(open_shop: OpenShop, add_handler: AddHandler) -> None:
    """A record of any length makes a mail of a few pages, with its beginning and its end."""
    app = open_shop()
    handler = add_handler()

    logger.error("begin %s end", "x" * 1_000_000)
    handler.flush()

    [mail] = error_mails(app)
    assert len(mail.subject) <= 150
    assert len(mail.text or "") < 25_000
    assert (mail.text or "").startswith("begin xxx")
    assert " characters left out …" in (mail.text or "")
    assert "xxx end\n" in (mail.text or "")


NOTHING: dict[str, str] = {}


class Unwritable:
    """An object that can't be written into a log."""

    def __str__(self) -> str:
        logger.error("nested")
        raise RuntimeError("no words")

    __repr__ = __str__


class SilentError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


def test_a_record_that_cannot_be_written(
    open_shop: OpenShop, add_handler: AddHandler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A record, an exception or a formatter that fails still makes a mail, and no error."""
    monkeypatch.setattr(logger, "propagate", False)  # handlers of pytest raise
    app = open_shop()
    handler = add_handler()

    logger.error("Bad: %s", Unwritable())
    logger.error("Bad arguments: %s %s", 1)  # noqa: PLE1206 -- a mistake of the application
    logger.error(Unwritable())
    logger.error("\ud800 \x00")
    logger.error("Silent", exc_info=SilentError())
    handler.setFormatter(logging.Formatter("%(nothing)s"))
    logger.error("Bad formatter")
    handler.flush()

    assert [one.partition(": ")[2] for one in subjects(app)] == [
        "Bad: %s",
        "Bad arguments: %s %s",
        "A record that can't be written",
        "",
        "SilentError",
        "Bad formatter",
    ]


class TimeUp(BaseException):
    """A time-out of the application, as gevent has them."""


def test_a_report_that_is_interrupted(open_shop: OpenShop, add_handler: AddHandler) -> None:
    """A time-out while a record is written ends the call, and the next record makes a mail."""

    class Slow(logging.Formatter):
        def format(self, record: logging.LogRecord) -> str:
            raise TimeUp

    app = open_shop()
    handler = add_handler()
    for formatter in (Slow(), logging.Formatter()):
        handler.setFormatter(formatter)
        with suppress(TimeUp):
            logger.error("No parcels")
    handler.flush()

    assert [one.partition(": ")[2] for one in subjects(app)] == ["No parcels"]


def test_a_report_that_takes_longer_than_a_period(
    open_shop: OpenShop, add_handler: AddHandler
) -> None:
    """An error whose formatter is slower than the period still gets its mail."""

    class Slow(logging.Formatter):
        def format(self, record: logging.LogRecord) -> str:
            if record.msg == "slow":
                wait_until(lambda: subjects(app) and len(handler._pending) <= 1)
            return record.getMessage()

    app = open_shop()
    handler = add_handler(period=0.01)
    handler.setFormatter(Slow())
    thread = threading.Thread(target=logger.error, args=("slow",))
    thread.start()
    wait_until(handler.count_waiting)
    logger.error("quick")
    thread.join()
    handler.flush()

    assert [one.partition(": ")[2] for one in subjects(app)] == ["quick", "slow"]


# --- repeats ------------------------------------------------------------------------------------


def test_a_flood(
    open_shop: OpenShop, add_handler: AddHandler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten thousand records of one error, from several threads, are two mails."""
    monkeypatch.setattr(logger, "propagate", False)  # handlers of pytest are slow
    app = open_shop()
    handler = add_handler()

    def log() -> None:
        for number in range(2_500):
            logger.error("No parcel %d", number)

    threads = [threading.Thread(target=log) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    handler.flush()

    first, repeats = subjects(app)
    assert " (seen " not in first
    assert "(seen 9,999 more times in the last " in repeats


def test_a_period_that_is_over(open_shop: OpenShop, add_handler: AddHandler) -> None:
    """The mail about repeats comes by itself at the end of the period."""
    app = open_shop()
    add_handler(period=0.2)

    for _ in range(3):
        logger.error("No parcels")

    wait_until(lambda: len(subjects(app)) == 2)
    assert "(seen 2 more times in the last " in subjects(app)[1]


def test_an_error_that_is_over(open_shop: OpenShop, add_handler: AddHandler) -> None:
    """After a period without errors no thread is left, and the next error starts one."""
    app = open_shop()
    handler = add_handler(period=0.05)

    for number in (1, 2):
        logger.error("No parcels")
        wait_until(lambda number=number: len(subjects(app)) == number)  # type: ignore[misc]
        wait_until(lambda: handler._thread is None)


def test_errors_of_two_views(open_shop: OpenShop, add_handler: AddHandler) -> None:
    """Two exceptions of one type are two errors if their tracebacks differ."""
    app = open_shop()
    handler = add_handler(app.logger)
    app.add_url_rule("/one", "one", lambda: str(NOTHING["one"]))
    app.add_url_rule("/other", "other", lambda: str(NOTHING["other"]))
    app.add_url_rule("/missing", "missing", lambda: abort(404))

    for path in ("/one", "/other", "/one", "/missing"):
        app.test_client().get(path)
    handler.flush()

    found = sorted(one.partition(": ")[2] for one in subjects(app))
    assert [one.partition(" in the last ")[0] for one in found] == [
        "KeyError: 'one'",
        "KeyError: 'one' (seen 1 more time",
        "KeyError: 'other'",
    ]


def test_too_many_errors(open_shop: OpenShop, add_handler: AddHandler) -> None:
    """Errors without room are dropped, and a mail says how many."""
    app = open_shop()
    handler = add_handler(capacity=3)

    for number in range(10):
        logger.handle(logger.makeRecord("warehouse", 40, "pack.py", number, f"{number}", (), None))
    handler.flush()

    mails = error_mails(app)
    assert len(mails) == 3
    assert any("records of other errors got no mail" in (mail.text or "") for mail in mails)


# --- its own failures ---------------------------------------------------------------------------


def test_records_of_mailer_itself(open_shop: OpenShop, add_handler: AddHandler) -> None:
    """Records of Mailer, and of Celery about its tasks, make no mail: it might not arrive."""
    app = open_shop()
    handler = add_handler(logging.getLogger())

    breaker.log.error("A relay is down")
    own = start_daemon(lambda: logger.error("The database of a thread of Mailer is down"), "ours")
    assert own is not None
    own.join()
    logging.getLogger("celery.app.trace").error("%(name)s", {"name": "mailer.send_email"})
    logging.getLogger("celery.app.trace").error("%(name)s", {"name": "shop.tasks.pack"})
    handler.flush()

    assert [one.partition(": ")[2] for one in subjects(app)] == ["shop.tasks.pack"]


def test_names_of_the_application(open_shop: OpenShop, add_handler: AddHandler) -> None:
    """A logger or a thread of the application may have a name that begins like those of Mailer."""
    app = open_shop()
    handler = add_handler(logging.getLogger())

    Flask("mailer").logger.error("of the app")
    logging.getLogger("mailer.orders").error("of its module")
    thread = threading.Thread(target=logger.error, args=("of its thread",), name="mailer-orders")
    thread.start()
    thread.join()
    handler.flush()

    found = [one.partition(": ")[2] for one in subjects(app)]
    assert found == ["of the app", "of its module", "of its thread"]


def test_a_receiver_of_a_signal(open_shop: OpenShop, add_handler: AddHandler) -> None:
    """A receiver of the application that fails makes a mail, but not about an error mail."""

    def count_stock(app: Flask, event: Event) -> None:
        raise LookupError(f"no stock: {event.tags}")

    app = open_shop()
    handler = add_handler(logging.getLogger())
    with mail_queued.connected_to(count_stock), app.app_context():
        mailer.send_email("ada@example.com", "Welcome", text="Hello")
        for _ in range(2):  # the second time, the error mail is an event itself
            app.extensions["mailer"].outlet.drain(60)
            handler.flush()

    assert [one.partition(": ")[2] for one in subjects(app)] == ["", "LookupError: no stock: ()"]


def test_its_own_queries(open_shop: OpenShop, add_handler: AddHandler) -> None:
    """Records that the queueing of its mail causes make no mail, at any level."""
    app = open_shop()
    handler = add_handler(logging.getLogger(), level=logging.DEBUG)
    queries = logging.getLogger("sqlalchemy")
    queries.setLevel(logging.DEBUG)
    try:
        logger.error("No parcels")
        handler.flush()
        handler.flush()
    finally:
        queries.setLevel(logging.NOTSET)
        logging.getLogger().removeHandler(handler)

    assert [one.partition(": ")[2] for one in subjects(app)] == ["No parcels"]


def test_a_database_that_is_down(
    open_shop: OpenShop,
    add_handler: AddHandler,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """While the database is down nobody waits, and the mail is queued when it is back."""
    folder, away = tmp_path / "folder", tmp_path / "away"
    app = open_shop(MAILER_DATABASE_URL=f"sqlite:///{folder}/mailer.sqlite3")
    handler = add_handler()
    folder.rename(away)

    with caplog.at_level(logging.WARNING, logger="mailer.logging"):
        for _ in range(5):
            logger.error("No parcels")
        wait_until(lambda: "Error mail waits for the database" in caplog.text, timeout=60)
    away.rename(folder)

    wait_until(lambda: subjects(app), timeout=60)
    handler.flush()
    wait_until(lambda: len(subjects(app)) == 2)
    first, repeats = subjects(app)
    assert first.endswith(": No parcels")
    assert "(seen 4 more times in the last " in repeats


@pytest.mark.parametrize("is_back", [True, False], ids=["back", "away"])
def test_the_end_while_the_database_is_down(
    open_shop: OpenShop,
    add_handler: AddHandler,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    is_back: bool,
) -> None:
    """The log says that mails are lost after the last try of a process, once, and if it failed."""
    folder, away = tmp_path / "folder", tmp_path / "away"
    app = open_shop(MAILER_DATABASE_URL=f"sqlite:///{folder}/mailer.sqlite3")
    handler = add_handler()
    folder.rename(away)
    logger.error("No parcels")
    wait_until(lambda: "Error mail waits for the database" in caplog.text, timeout=60)

    flush_handlers()  # as `atexit` does
    if is_back:
        away.rename(folder)
    logging.shutdown([weakref.ref(handler)])

    assert caplog.text.count(" are lost") == (0 if is_back else 1)
    told = "This process ends before its error mails are queued: mails=1."
    assert (told in caplog.text) is not is_back
    if not is_back:
        away.rename(folder)
    wait_until(lambda: subjects(app))


def test_a_mail_that_is_refused(
    open_shop: OpenShop, add_handler: AddHandler, caplog: pytest.LogCaptureFixture
) -> None:
    """A mail that can't be queued at all is logged, and the next one is tried."""
    app = open_shop(MAIL_DEFAULT_SENDER=None)
    handler = add_handler()

    logger.error("No parcels")
    handler.flush()

    assert "Error mail is lost: subject=" in caplog.text
    assert "The mail has no sender" in caplog.text
    assert subjects(app) == []


def test_a_handler_that_is_closed(open_shop: OpenShop, add_handler: AddHandler) -> None:
    """A handler that is closed has queued its mails, and has no thread any more."""
    app = open_shop()
    handler = add_handler()
    for _ in range(3):
        logger.error("No parcels")

    handler.close()

    assert len(subjects(app)) == 2
    assert handler.count_waiting() == 0
    wait_until(lambda: handler._thread is None)


@pytest.mark.parametrize(("to", "error"), [("ada@", InvalidAddress), ([], InvalidMail)])
def test_unusable_recipients(to: Any, error: type[Exception]) -> None:
    """An address that can't be used is refused when the handler is made."""
    with pytest.raises(error):
        QueuedMailHandler(to)


@pytest.mark.parametrize("options", [{"period": 0}, {"period": math.nan}, {"capacity": 0}])
def test_unusable_limits(options: dict[str, Any]) -> None:
    """A handler that could never queue a mail is refused when it is made."""
    with pytest.raises(ConfigurationError, match="give a period of more than 0 seconds, and a"):
        QueuedMailHandler("admin@example.com", **options)


def test_it_is_seen_in_tests(open_shop: OpenShop, add_handler: AddHandler) -> None:
    """With MAIL_SUPPRESS_SEND, the recorder of Flask-Mail has the mail after `flush()`."""
    app = open_shop(MAIL_SUPPRESS_SEND=True)
    handler = add_handler(subject="Shop")

    with Mail(app).record_messages() as outbox:
        logger.error("No parcels")
        handler.flush()

    assert [mail.subject for mail in outbox] == ["Shop: No parcels"]


def test_eager_mode(open_shop: OpenShop, add_handler: AddHandler) -> None:
    """In Celery's eager mode the handler stores the mail for the workers: a relay may hang."""
    app = open_shop()
    app.extensions["celery"].conf.task_always_eager = True
    handler = add_handler()

    logger.error("No parcels")
    handler.flush()

    [mail] = error_mails(app)
    with app.app_context():
        [delivery] = mailer.status(mail.id)
        assert delivery.status == Status.QUEUED
        assert [
            one.status
            for one in mailer.status(mailer.send_email("ada@example.com", "Hi", text="Hi"))
        ] == [Status.SENT]


def test_a_slow_database_at_the_end_of_a_process(
    open_shop: OpenShop, add_handler: AddHandler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When no thread can start, `flush()` begins no mail after five seconds."""

    class Clock(SystemClock):
        ahead = 0.0

        def monotonic(self) -> float:
            self.ahead += 2.0
            return super().monotonic() + self.ahead

    def no_thread(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    app = open_shop()
    handler = add_handler()
    handler._clock = Clock()
    monkeypatch.setattr(threading.Thread, "start", no_thread)
    for number in range(5):
        logger.handle(logger.makeRecord("warehouse", 40, "pack.py", number, f"{number}", (), None))
    handler.flush()

    assert 0 < len(subjects(app)) < 5
    assert handler.count_waiting() == 5 - len(subjects(app))
    handler._clock = SystemClock()
    handler.flush()
    assert len(subjects(app)) == 5


# --- processes ----------------------------------------------------------------------------------

PROGRAM = """
import logging, os, sys
from logging.config import dictConfig

dictConfig({
    "version": 1,
    "handlers": {
        "admins": {
            "class": "mailer.logging.QueuedMailHandler",
            "level": "ERROR",
            "to": ["admin@example.com"],
            "subject": "Shop",
        }
    },
    "root": {"handlers": ["admins"]},
})
logger = logging.getLogger("warehouse")
logger.error("before the app")

from tests.application import create_app

app = create_app(%r)
for number in range(3):
    logger.error("in the parent")
    logging.warning("not serious")
child = os.fork()
if child == 0:
    logger.error("in the child")
    sys.exit()
os.waitpid(child, 0)
logger.error("in the parent again")
"""


def test_the_end_of_processes(config: dict[str, str]) -> None:
    """With `dictConfig()`, each process queues its own mails before it ends, also after a fork."""
    # Python 3.12 warns of each fork beside threads.
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", PROGRAM % config]
    ran = subprocess.run(
        command,
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (ran.returncode, ran.stderr) == (0, "")

    app = create_shop(config)
    assert sorted(one.partition(" (")[0] for one in subjects(app)) == [
        "Shop: before the app",
        "Shop: in the child",
        "Shop: in the parent",
        "Shop: in the parent",
        "Shop: in the parent again",
    ]
    store_of(app).engine.dispose()


def test_a_process_of_a_pool_that_ends(open_shop: OpenShop, add_handler: AddHandler) -> None:
    """The end of a process of a prefork pool, which has no `atexit`, queues the last mails."""
    app = open_shop()
    add_handler()
    for _ in range(3):
        logger.error("No parcels")

    signals.worker_process_shutdown.send(sender=None)

    assert len(subjects(app)) == 2
