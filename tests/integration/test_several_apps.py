"""Several apps in one process, app factories, and an app without any settings."""

import logging
import sqlite3
import ssl
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from celery.exceptions import SoftTimeLimitExceeded
from flask import Flask
from jinja2 import DictLoader

from mailer import ConfigurationError, Mail, Mailer, Message, Status, UnknownMail, logs, send_email
from mailer.clock import SystemClock
from mailer.delivery.wiring import black_box_of
from mailer.settings import Settings
from tests.services.databases import Databases, sqlite_only
from tests.services.sink import Sink
from tests.shop import OpenShop, close, rows, store_of, stored

#: One object for all apps, as in a module of an application.
mailer = Mailer()


@pytest.fixture
def other_database_url(sqlite_databases: Databases) -> Iterator[str]:
    with sqlite_databases.migrated() as url:
        yield url


@pytest.fixture
def shops(open_shop: OpenShop, other_database_url: str) -> tuple[Flask, Flask]:
    """Return two apps of one factory, each with a database, a prefix and a sender of its own."""
    one = open_shop(MAILER_SUBJECT_PREFIX="[one]", MAIL_DEFAULT_SENDER="one@example.com")
    other = open_shop(
        MAILER_SUBJECT_PREFIX="[other]",
        MAIL_DEFAULT_SENDER="other@example.com",
        MAILER_DATABASE_URL=other_database_url,
    )
    return one, other


def deliver(app: Flask) -> None:
    """Deliver one batch, as a worker of this app does when a ring wakes it."""
    with app.app_context():
        app.extensions["mailer"].outbound.dispatcher.deliver_batch()


def test_each_app_has_its_own_queue(shops: tuple[Flask, Flask], sink: Sink) -> None:
    """Each app queues in its own database with its own settings, and only it delivers them."""
    one, other = shops
    with one.app_context():
        mine = mailer.send_email("ada@example.com", "Hello", "only_text", name="Ada")
    with other.app_context():
        yours = send_email("bob@example.com", "Hello", "only_text", name="Bob")

        with pytest.raises(UnknownMail, match=mine.id):
            mailer.status(mine.id)

    assert rows(one) == rows(other) == {"mailer_message": 1, "mailer_delivery": 1}
    assert (stored(one, mine).subject, str(stored(one, mine).sender)) == (
        "[one] Hello",
        "one@example.com",
    )
    assert (stored(other, yours).subject, str(stored(other, yours).sender)) == (
        "[other] Hello",
        "other@example.com",
    )

    deliver(other)
    assert [mail.recipients for mail in sink.messages] == [("bob@example.com",)]
    with one.app_context():
        assert [one.status for one in mailer.status(mine.id)] == [Status.QUEUED]


def test_apps_in_each_others_context(shops: tuple[Flask, Flask]) -> None:
    """A mail belongs to the app of the innermost context, as everywhere in Flask."""
    one, other = shops
    with one.app_context(), other.test_request_context():
        receipt = send_email("ada@example.com", "Hello", "only_text", name="Ada")

    assert rows(one) == {}
    assert stored(other, receipt).subject == "[other] Hello"


def test_apps_in_threads(shops: tuple[Flask, Flask]) -> None:
    """Concurrent requests to two apps queue each mail in the right app."""

    def request(number: int) -> None:
        with shops[number % 2].test_request_context():
            send_email(f"{number % 2}-{number}@example.com", "Hello", "only_text", name="you")

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(request, range(40)))

    for number, shop in enumerate(shops):
        with shop.app_context(), store_of(shop).engine.connect() as connection:
            found = (
                connection.exec_driver_sql("SELECT recipient FROM mailer_delivery").scalars().all()
            )
        assert len(found) == 20
        assert {address[0] for address in found} == {str(number)}


@sqlite_only
def test_the_drop_in_of_an_app_queues_there(shops: tuple[Flask, Flask]) -> None:
    """`Mail(app).send()` queues in that app, even in the context of another one."""
    one, other = shops
    with other.app_context():
        Mail(one).send(Message("Hello", ["ada@example.com"], sender="ada@example.com"))

    assert rows(one) == {"mailer_message": 1, "mailer_delivery": 1}
    assert rows(other) == {}


@sqlite_only
def test_the_connection_of_an_app_queues_there(shops: tuple[Flask, Flask]) -> None:
    """`Mail(app).connect()` queues in that app, even in the context of another one."""
    one, other = shops
    with other.app_context(), Mail(one).connect() as connection:
        connection.send(Message("Hello", ["ada@example.com"], sender="ada@example.com"))

    assert rows(one) == {"mailer_message": 1, "mailer_delivery": 1}
    assert rows(other) == {}


@sqlite_only
def test_the_context_of_another_app_decides_nothing(
    open_shop: OpenShop, caplog: pytest.LogCaptureFixture
) -> None:
    """The context of another app changes neither where a mail is queued nor what is logged."""
    redis = "redis://user:secret@127.0.0.1:1/0"
    others = [Flask("other"), open_shop(MAILER_LOG_ADDRESSES=True)]
    for number, other in enumerate(others, start=1):
        one = open_shop(MAILER_REDIS_URL=redis, MAIL_SUPPRESS_SEND=False)
        with other.app_context():
            Mail(one).send(Message("Hello", ["ada@example.com"], sender="ada@example.com"))
            logs.get_logger("mailer.test").error("eve@example.com")
        assert rows(one)["mailer_message"] == number

    assert caplog.text.count("The broker does not answer") == 2
    assert "eve@" not in caplog.text


class Loud(logging.Handler):
    """A log handler that fails, as one does that writes to a full disk."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self._error = error

    def emit(self, record: logging.LogRecord) -> None:
        raise self._error


@contextmanager
def loud(error: Exception) -> Iterator[None]:
    """Add a handler that fails to the log of Mailer."""
    handler = Loud(error)
    logging.getLogger("mailer").addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger("mailer").removeHandler(handler)


@sqlite_only
@pytest.mark.parametrize("own_transaction", [True, False])
def test_nothing_raises_once_a_mail_is_stored(
    open_shop: OpenShop, monkeypatch: pytest.MonkeyPatch, own_transaction: bool
) -> None:
    """No failure after the commit reaches the caller, who would otherwise queue the mail twice."""
    app = open_shop(MAILER_REDIS_URL="redis://127.0.0.1:1/0", MAIL_SUPPRESS_SEND=False)

    def no_thread(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", no_thread)
    with (
        loud(OSError("disk full")),
        app.app_context(),
        store_of(app).engine.connect() as connection,
    ):
        host = None if own_transaction else connection
        send_email("ada@example.com", "Hello", "only_text", name="Ada", connection=host)
        connection.commit()

    assert rows(app) == {"mailer_message": 1, "mailer_delivery": 1}


@sqlite_only
def test_the_time_limit_of_a_task_that_queues(open_shop: OpenShop) -> None:
    """The soft time limit of the caller's task passes on, also from a handler of the log."""
    app = open_shop(MAILER_REDIS_URL="redis://127.0.0.1:1/0", MAIL_SUPPRESS_SEND=False)
    with (
        loud(SoftTimeLimitExceeded()),
        app.app_context(),
        pytest.raises(SoftTimeLimitExceeded),
    ):
        send_email("ada@example.com", "Hello", "only_text", name="Ada")

    assert rows(app) == {"mailer_message": 1, "mailer_delivery": 1}


@sqlite_only
def test_each_app_has_its_own_celery(shops: tuple[Flask, Flask]) -> None:
    """Each app has a Celery app of its own, with Mailer's three tasks."""
    celeries = [shop.extensions["celery"] for shop in shops]

    assert celeries[0] is not celeries[1]
    for celery in celeries:
        celery.finalize()
        assert {name for name in celery.tasks if name.startswith("mailer.")} == {
            "mailer.send_email",
            "mailer.sweep",
            "mailer.purge",
        }


@sqlite_only
def test_the_applications_own_celery_is_used(config: dict[str, str]) -> None:
    """An application's own Celery app gets the tasks, and keeps its settings."""
    app = Flask("shop")
    app.config.from_mapping(config)
    celery: Celery[Any] = Celery("shop", broker="memory://", set_as_current=False)
    app.extensions["celery"] = celery
    Mailer(app)
    celery.finalize()

    assert app.extensions["celery"] is celery
    assert celery.conf.broker_url == "memory://"
    assert "mailer.send_email" in celery.tasks


@pytest.mark.parametrize(
    ("broker", "tls", "flag"),
    [
        ("redis://:secret@cache:6380/3", None, "redis://:secret@cache:6380/3"),
        ("redis+socket:///run/redis.sock?virtual_host=2", None, "unix:///run/redis.sock?db=2"),
        (
            "rediss://cache/0?ssl_cert_reqs=CERT_REQUIRED",
            None,
            "rediss://cache/0?ssl_cert_reqs=required",
        ),
        (
            "redis://cache/0",
            {"ssl_cert_reqs": ssl.CERT_NONE},
            "rediss://cache/0?ssl_cert_reqs=none",
        ),
        ("rediss://cache", {"ssl_ca_certs": "/ca.pem"}, "rediss://cache?ssl_ca_certs=%2Fca.pem"),
        (
            "rediss://cache?ssl_cert_reqs=none",
            {"ssl_ca_certs": "/ca.pem"},
            "rediss://cache?ssl_cert_reqs=none",
        ),
        (["redis://one/0", "redis://two/0"], {"ssl_cert_reqs": None}, None),
        ("amqp://guest@localhost//", {"ssl_cert_reqs": None}, None),
        (None, None, "redis://127.0.0.1:6379/0"),
    ],
)
def test_the_broker_of_the_applications_own_celery(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broker: Any, tls: Any, flag: str | None
) -> None:
    """Rings and limits use the Celery app's broker unless a Redis URL is configured."""
    for key in ("MAILER_REDIS_URL", "REDIS_URL"):
        monkeypatch.delenv(key, raising=False)

    def flag_url(**config: str) -> str | None:
        app = Flask("shop", instance_path=str(tmp_path))
        app.config.from_mapping(config)
        celery = app.extensions["celery"] = Celery("shop", broker=broker, set_as_current=False)
        celery.conf.broker_use_ssl = tls
        Mailer(app)
        found: str | None = app.extensions["mailer"].settings.flag_url
        return found

    assert flag_url() == flag
    assert flag_url(REDIS_URL="redis://other/0") == "redis://other/0"


BASE = "postgresql+psycopg://mailer:secret@/mailer?host=/srv/one"


@pytest.mark.parametrize(
    ("url", "is_shared"),
    [
        ("postgresql+psycopg://another@/mailer?host=/srv/one&connect_timeout=5", True),
        ("postgresql+psycopg://mailer:secret@/mailer?host=/srv/two", False),
        (f"{BASE}&options=-csearch_path%3Dtenant", False),
    ],
)
def test_each_database_has_a_black_box_of_its_own(
    tmp_path: Path, url: str, is_shared: bool
) -> None:
    """The black box's folder depends on the database, not on how workers log in to it."""
    app = Flask("shop", instance_path=str(tmp_path))

    def folders(url: str) -> list[Path]:
        settings = Settings.load({}, {}, default_database_url=url)
        return black_box_of(app, settings, SystemClock())._folders

    assert (folders(url)[0] == folders(BASE)[0]) is is_shared
    assert folders(BASE)[1].name == "ac9e607b131484c4"


@sqlite_only
def test_init_app_twice_is_refused(open_shop: OpenShop) -> None:
    """Calling `init_app()` twice for one app is an error."""
    with pytest.raises(ConfigurationError, match="has its Mailer already: use that one"):
        mailer.init_app(open_shop())


def test_a_refused_app_can_be_mended(tmp_path: Path) -> None:
    """After a failed `init_app()`, a second call with corrected settings works."""
    app = Flask("shop", instance_path=str(tmp_path))
    app.config["MAIL_PORT"] = "abc"
    with pytest.raises(
        ConfigurationError, match=r"^MAIL_PORT='abc': allowed: a whole number from 1 to 65535"
    ):
        mailer.init_app(app)

    app.config["MAIL_PORT"] = "587"
    mailer.init_app(app)


def test_nothing_is_set(tmp_path: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without settings, the first mail creates a SQLite file in the instance folder."""
    # A ring must not reach a broker that happens to run here.
    monkeypatch.setenv("REDIS_URL", redis_url)
    folder = tmp_path / "instance"
    app = Flask("shop", instance_path=str(folder))
    app.jinja_loader = DictLoader({"hello.txt": "Hello {{ name }}"})
    mailer.init_app(app)
    assert not (folder / "mailer.sqlite3").exists()

    with app.app_context():
        receipt = send_email(
            "ada@example.com", "Hello", "hello", sender="shop@example.com", name="Ada"
        )

    close(app)
    with closing(sqlite3.connect(folder / "mailer.sqlite3")) as database:
        assert database.execute("SELECT mail_id, recipient FROM mailer_delivery").fetchall() == [
            (receipt.id, "ada@example.com")
        ]
