"""The database that keeps the mail of an app, and warnings about mail left in another."""

import logging
from pathlib import Path

import pytest
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import URL, create_engine, make_url, text
from sqlalchemy.pool import NullPool

from mailer import ConfigurationError, Mailer
from mailer.settings.database import file_of
from mailer.store import Store
from mailer.store.leftover import warn_of_leftover
from tests.mails import insert
from tests.services.users import as_another_user
from tests.services.worker import StartWorker
from tests.shop import close, store_of


@pytest.fixture
def open_app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> "OpenApp":
    monkeypatch.delenv("MAILER_DATABASE_URL", raising=False)
    return OpenApp(tmp_path / "instance")


class OpenApp:
    """A factory of apps that share one instance folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, **config: object) -> Flask:
        app = Flask("shop", instance_path=str(self.folder))
        app.config.from_mapping(config, MAIL_DEFAULT_SENDER="shop@example.com")
        Mailer(app)
        return app


def database_of(app: Flask) -> URL:
    return store_of(app).engine.url


def test_the_database_of_the_application(open_app: OpenApp) -> None:
    """An application on PostgreSQL has its mail there, whatever driver its URL names."""
    for driver in ("postgresql", "postgresql+psycopg2", "postgresql+psycopg"):
        url = database_of(open_app(SQLALCHEMY_DATABASE_URI=f"{driver}://shop:geheim@db/shop"))

        assert (url.host, url.database, url.password) == ("db", "shop", "geheim")
        assert url.drivername == "postgresql+psycopg"


@pytest.mark.parametrize("own", ["sqlite:///shop.db", "mysql://db/shop", None, "nonsense"])
def test_a_file_in_the_instance_folder(open_app: OpenApp, own: str | None) -> None:
    """Any other application has its mail in an SQLite file in the instance folder."""
    url = database_of(open_app(SQLALCHEMY_DATABASE_URI=own))

    assert url.database == str(open_app.folder / "mailer.sqlite3")


def test_the_own_setting_comes_first(open_app: OpenApp) -> None:
    """MAILER_DATABASE_URL comes before the application's own database."""
    app = open_app(
        SQLALCHEMY_DATABASE_URI="postgresql://db/shop", MAILER_DATABASE_URL="postgresql://db/mail"
    )

    assert database_of(app).database == "mail"


@pytest.mark.parametrize(
    "url", ["sqlite:///shop.db", "sqlite:///file:shop.db?uri=true", "sqlite:///data/../shop.db"]
)
def test_a_relative_path(open_app: OpenApp, url: str) -> None:
    """A relative path is the same file for Mailer and for Flask-SQLAlchemy."""
    (open_app.folder / "data").mkdir(parents=True)
    app = open_app(MAILER_DATABASE_URL=url, SQLALCHEMY_DATABASE_URI=url)
    insert(store_of(app))
    db = SQLAlchemy(app)

    with app.app_context():
        assert db.session.scalar(text("SELECT COUNT(*) FROM mailer_message")) == 1
    assert (open_app.folder / "shop.db").exists()
    close(app)


@pytest.mark.parametrize(
    ("name", "query"),
    [
        ("{folder}/my%20mail.db", {}),
        ("file:mail.db", {"uri": "no"}),
        ("{folder}/mail.db", {"uri": "true"}),
        ("file:{folder}/my%20mail.db", {"uri": "true"}),
        ("file:///{folder}/mail.db#new", {"uri": "1"}),
        ("file://localhost{folder}/mail.db", {"uri": "true", "mode": "rwc"}),
        ("file:mail", {"uri": "true", "mode": "memory"}),
        ("file:", {"uri": "true"}),
        ("", {}),
    ],
)
def test_the_file_that_a_url_names(
    name: str, query: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file read from a URL is the one that SQLite opens, or none for one in memory."""
    monkeypatch.chdir(tmp_path)
    url = URL.create("sqlite", database=name.format(folder=tmp_path), query=query)
    engine = create_engine(url, poolclass=NullPool)
    with engine.connect() as connection:
        [opened] = connection.scalars(text("SELECT file FROM pragma_database_list"))
    engine.dispose()

    file = file_of(url)
    assert opened == ("" if file is None else str(file.absolute()))
    assert file is None or [path.name for path in tmp_path.iterdir()] == [file.name]


@pytest.mark.parametrize(
    "url", ["sqlite://", "sqlite:///:memory:", "sqlite:///file::memory:?uri=true"]
)
def test_in_memory(open_app: OpenApp, url: str) -> None:
    """A database in memory creates no file and no folder."""
    app = open_app(MAILER_DATABASE_URL=url)
    insert(store_of(app))

    assert not open_app.folder.exists()
    close(app)


def test_the_choice_is_logged(open_app: OpenApp, caplog: pytest.LogCaptureFixture) -> None:
    """The choice is logged once at start, with its setting and without the password."""
    with caplog.at_level(logging.INFO, "mailer"):
        open_app(SQLALCHEMY_DATABASE_URI="postgresql://shop:geheim@db/shop?sslpassword=geheim")

    [line] = [
        record.getMessage() for record in caplog.records if "is kept in" in record.getMessage()
    ]
    assert "db/shop" in line
    assert "SQLALCHEMY_DATABASE_URI" in line
    assert "geheim" not in line


def test_a_worker_logs_the_choice(start_worker: StartWorker, config: dict[str, str]) -> None:
    """A worker logs it with --loglevel INFO, though the app is made before its log is set up."""
    worker = start_worker(pool="threads", concurrency=1)

    url = make_url(config["MAILER_DATABASE_URL"]).render_as_string()
    assert f"Mail is kept in {url} (MAILER_DATABASE_URL)" in worker.log.read_text()


def test_mail_in_the_other_place(open_app: OpenApp, caplog: pytest.LogCaptureFixture) -> None:
    """Unfinished mail in the SQLite file is warned about once the app uses PostgreSQL."""
    insert(store := store_of(open_app()))
    caplog.clear()

    open_app(SQLALCHEMY_DATABASE_URI="postgresql://shop:geheim@db/shop")

    [warning] = [
        record.getMessage() for record in caplog.records if record.levelno == logging.WARNING
    ]
    assert warning.startswith(
        f"1 deliveries are unfinished in {open_app.folder / 'mailer.sqlite3'}"
    )
    assert "geheim" not in warning
    with store.engine.begin() as connection:
        connection.execute(text("DELETE FROM mailer_message"))
    store.engine.dispose()
    caplog.clear()
    open_app(SQLALCHEMY_DATABASE_URI="postgresql://db/shop")
    assert caplog.records == []
    assert [path.name for path in open_app.folder.iterdir()] == ["mailer.sqlite3"]


def test_mail_in_the_working_directory(
    open_app: OpenApp,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Unfinished mail in the working directory, its place in older versions, is warned about."""
    monkeypatch.chdir(tmp_path)
    old = Store(f"sqlite:///{tmp_path}/shop.db")
    insert(old)
    old.engine.dispose()

    open_app(MAILER_DATABASE_URL="sqlite:///shop.db")

    assert "1 deliveries are unfinished in shop.db" in caplog.text


def test_a_place_that_can_not_be_looked_at(tmp_path: Path) -> None:
    """An app starts even if it may not read the place where old mail could be."""
    tmp_path.chmod(0o700)

    as_another_user(lambda: warn_of_leftover(tmp_path / "mailer.sqlite3", "sqlite://"))


def test_a_url_object(open_app: OpenApp) -> None:
    """Both settings take a URL object of SQLAlchemy, as Flask-SQLAlchemy does."""
    url = make_url("postgresql://shop:geheim@db/shop")

    assert database_of(open_app(SQLALCHEMY_DATABASE_URI=url)).password == "geheim"
    assert database_of(open_app(MAILER_DATABASE_URL=url)).password == "geheim"


def test_what_is_no_database(open_app: OpenApp) -> None:
    """A URL that cannot be used is refused and not shown, since it may have a password."""
    with pytest.raises(ConfigurationError, match="MAILER_DATABASE_URL=<hidden>: allowed"):
        open_app(MAILER_DATABASE_URL="mysql://shop:geheim@db/shop")
