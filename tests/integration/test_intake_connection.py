"""Mail in the application's own transaction is committed with it, or never exists."""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from traceback import format_exception
from typing import Any
from unittest.mock import Mock

import pytest
from celery.exceptions import SoftTimeLimitExceeded
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, scoped_session, sessionmaker
from sqlalchemy.pool import NullPool

from mailer import (
    Attachment,
    ConfigurationError,
    InvalidMail,
    KeyReused,
    Mailer,
    Receipt,
    send_email,
)
from mailer.intake import Intake
from mailer.store import connection_of
from tests.mails import postgresql_only
from tests.services.databases import sqlite_only
from tests.services.dispatchers import CountingBell
from tests.services.requirement import do_without
from tests.shop import OpenShop, rows, store_of, stored

mailer = Mailer()

MAIL = {"mailer_message": 1, "mailer_delivery": 1}


@pytest.fixture
def bell(shop: Flask) -> CountingBell:
    """Replace the bell of the shop by one that counts."""
    bell = CountingBell()
    intake: Intake = shop.extensions["mailer"].intake
    intake.bell = bell
    return bell


def driven(url: str) -> str:
    """Return the URL with a driver, which the application chooses."""
    return url.replace("postgresql://", "postgresql+psycopg://")


@pytest.fixture
def engine(shop: Flask, database_url: str) -> Iterator[Engine]:
    """Yield the application's own engine, with a table beside those of Mailer."""
    assert rows(shop) == {}
    engine = create_engine(driven(database_url))
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE shop_order (number INTEGER PRIMARY KEY)"))
    yield engine
    engine.dispose()


def send(connection: Any, **changes: Any) -> Receipt:
    mail = {
        "to": "ada@example.com",
        "subject": "Hello",
        "template": "only_text",
        "context": {"name": "Ada"},
    }
    return send_email(**{**mail, **changes}, connection=connection)


def order(connection: Any, number: int = 1) -> None:
    connection.execute(text("INSERT INTO shop_order VALUES (:number)"), {"number": number})


def orders(engine: Engine) -> list[int]:
    with engine.connect() as connection:
        return list(connection.scalars(text("SELECT number FROM shop_order ORDER BY number")))


def purge_bytes(shop: Flask) -> None:
    """Purge unused files, which PostgreSQL stores before the caller's transaction ends."""
    store_of(shop).purge_blobs(time.time() + 7200, after="", most=10)


# --- commit and rollback ------------------------------------------------------------------------


@contextmanager
def plain(engine: Engine) -> Iterator[Connection]:
    with engine.connect() as connection:
        yield connection


@contextmanager
def thread_local(engine: Engine) -> Iterator[scoped_session[Session]]:
    session = scoped_session(sessionmaker(engine))
    yield session
    session.remove()


WAYS: dict[str, Callable[[Engine], Any]] = {
    "Session": Session,
    "Connection": plain,
    "scoped_session": thread_local,
}


@pytest.mark.parametrize("way", WAYS)
def test_a_commit(shop: Flask, engine: Engine, bell: CountingBell, way: str) -> None:
    """Order and mail appear together at the commit, which rings the bell."""
    with WAYS[way](engine) as host:
        order(host)
        receipt = send(host)

        assert rows(shop) == {}
        assert bell.rings == 0
        host.commit()
    assert rows(shop) == MAIL
    assert stored(shop, receipt).subject == "Hello"
    assert orders(engine) == [1]
    assert bell.rings == 1


@pytest.mark.parametrize("way", WAYS)
def test_a_rollback(shop: Flask, engine: Engine, bell: CountingBell, way: str) -> None:
    """A rollback leaves neither order nor mail, and the connection stays usable."""
    with WAYS[way](engine) as host:
        order(host)
        receipt = send(host, attachments=[Attachment("a.pdf", b"%PDF")])
        host.rollback()
        order(host, 2)
        host.commit()

    purge_bytes(shop)
    assert rows(shop) == {}
    assert mailer.statuses([receipt.id]) == {}
    assert orders(engine) == [2]
    assert bell.rings == 0


def test_an_application_that_dies(shop: Flask, engine: Engine, bell: CountingBell) -> None:
    """An exception out of the block, or a session that is closed, rolls the mail back."""
    with suppress(ZeroDivisionError), engine.begin() as connection:
        send(connection)
        raise ZeroDivisionError
    with Session(engine) as session:
        send(session)

    assert rows(shop) == {}
    assert bell.rings == 0


def test_a_statement_that_fails(shop: Flask, engine: Engine, bell: CountingBell) -> None:
    """The rollback after a failed statement takes back the mail as well."""
    with Session(engine) as session:
        order(session)
        session.commit()
        send(session)
        with pytest.raises(IntegrityError):
            order(session)
        session.rollback()

    assert (rows(shop), bell.rings) == ({}, 0)


@postgresql_only
def test_a_commit_that_fails(shop: Flask, engine: Engine, bell: CountingBell) -> None:
    """A commit that fails, as at a deferred constraint, queues no mail and rings no bell."""
    constraint = "REFERENCES shop_order DEFERRABLE INITIALLY DEFERRED"
    with engine.connect() as connection:
        connection.execute(text(f"CREATE TABLE shop_item (number INTEGER {constraint})"))
        connection.commit()
        send(connection)
        connection.execute(text("INSERT INTO shop_item VALUES (1)"))
        with pytest.raises(IntegrityError):
            connection.commit()
        connection.rollback()

    assert (rows(shop), bell.rings) == ({}, 0)


def test_the_mail_comes_first(shop: Flask, engine: Engine, bell: CountingBell) -> None:
    """A mail begins the transaction if no statement has."""
    with engine.connect() as connection:
        send(connection)
        order(connection)
        connection.commit()

    assert (rows(shop), orders(engine), bell.rings) == (MAIL, [1], 1)


def test_a_block_with_its_own_commit(shop: Flask, engine: Engine, bell: CountingBell) -> None:
    """`engine.begin()` and `session.begin()` queue their mail at the end."""
    with engine.begin() as connection:
        send(connection)
    with Session(engine) as session, session.begin():
        send(session)

    assert rows(shop) == {"mailer_message": 2, "mailer_delivery": 2}
    assert bell.rings == 2


def test_a_kept_connection(shop: Flask, engine: Engine, bell: CountingBell) -> None:
    """On a connection that is kept, each commit rings, at the next statement at the latest."""
    with engine.connect() as connection:
        for number in range(3):
            send(connection)
            connection.commit()
            order(connection, number)

            assert bell.rings == number + 1
        connection.rollback()
    assert bell.rings == 3


@postgresql_only
def test_the_other_driver(shop: Flask, engine: Engine, bell: CountingBell) -> None:
    """An engine with psycopg2, the default of SQLAlchemy 2.0, works with keys and files."""
    if find_spec("psycopg2") is None:
        do_without("psycopg2")
    other = create_engine(engine.url.set(drivername="postgresql+psycopg2"))
    options = {"idempotency_key": "one", "attachments": [Attachment("a.pdf", b"%PDF")]}
    with Session(other) as session:
        send(session)
        session.rollback()
        receipt = send(session, **options)
        session.commit()
        assert send(session, **options).id == receipt.id
    other.dispose()

    assert rows(shop) == MAIL | {"mailer_attachment": 1, "mailer_blob": 1}
    assert stored(shop, receipt).attachments[0].data == b"%PDF"
    assert bell.rings == 1


def test_many_mails_are_one_ring(shop: Flask, engine: Engine, bell: CountingBell) -> None:
    """A commit of many mails rings once."""
    with Session(engine) as session:
        for _ in range(3):
            send(session)
        session.commit()

    assert rows(shop) == {"mailer_message": 3, "mailer_delivery": 3}
    assert bell.rings == 1


def test_a_connection_without_a_pool(shop: Flask, database_url: str, bell: CountingBell) -> None:
    """A connection without a pool, closed after each use, queues and rings all the same."""
    engine = create_engine(driven(database_url), poolclass=NullPool)
    with Session(engine) as session:
        send(session)
        session.commit()

    assert (rows(shop), bell.rings) == (MAIL, 1)


@pytest.mark.parametrize("way", WAYS)
def test_a_time_limit_after_the_commit(
    shop: Flask, database_url: str, bell: CountingBell, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """A task's soft time limit passes on to the task; other calls and the pool are not harmed."""
    monkeypatch.setattr(bell, "ring", Mock(side_effect=SoftTimeLimitExceeded))
    engine = create_engine(driven(database_url), pool_size=1, max_overflow=0, pool_timeout=1)
    called = list[Sequence[str]]()

    def task() -> None:
        with WAYS[way](engine) as host:
            receipt = send(host)
            store_of(shop).after_commit(connection_of(host), receipt.id, called.append)
            host.commit()

    with pytest.raises(SoftTimeLimitExceeded):
        task()

    assert [len(mail_ids) for mail_ids in called] == [1]
    with engine.connect() as connection:  # the only one that the pool may have
        assert connection.scalar(text("SELECT count(*) FROM mailer_message")) == 1
    engine.dispose()


def test_a_time_limit_on_a_kept_connection(
    shop: Flask, engine: Engine, bell: CountingBell, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next statement raises the soft time limit, and the connection is closed.

    SQLAlchemy would go on over it without transactions, and lose what is written.
    """
    monkeypatch.setattr(bell, "ring", Mock(side_effect=SoftTimeLimitExceeded))
    with engine.connect() as connection:
        send(connection)
        connection.commit()
        with pytest.raises(SoftTimeLimitExceeded):
            order(connection, 1)
        assert connection.closed
    with engine.begin() as connection:
        order(connection, 2)

    assert (rows(shop), orders(engine)) == (MAIL, [2])


# --- savepoints ---------------------------------------------------------------------------------


@pytest.fixture
def savepoints(engine: Engine) -> Engine:
    """Make savepoints work on SQLite, as SQLAlchemy advises: the engine begins, not the driver."""
    if engine.dialect.name == "sqlite":

        @event.listens_for(engine, "connect")
        def leave_it_to_us(connection: Any, _record: object) -> None:
            connection.isolation_level = None

        @event.listens_for(engine, "begin")
        def begin(connection: Connection) -> None:
            connection.exec_driver_sql("BEGIN")

        engine.dispose()
    return engine


def test_a_released_savepoint(shop: Flask, savepoints: Engine, bell: CountingBell) -> None:
    """A released savepoint waits for the commit of its transaction."""
    with Session(savepoints) as session:
        with session.begin_nested():
            send(session)

        assert bell.rings == 0
        session.commit()
    assert (rows(shop), bell.rings) == (MAIL, 1)


def test_a_savepoint_rolled_back(shop: Flask, savepoints: Engine, bell: CountingBell) -> None:
    """A savepoint that is rolled back leaves no mail and rings no bell."""
    with Session(savepoints) as session:
        order(session)
        with suppress(ZeroDivisionError), session.begin_nested():
            send(session)
            raise ZeroDivisionError
        session.commit()

    assert (rows(shop), orders(savepoints), bell.rings) == ({}, [1], 0)


def test_savepoints_in_each_other(shop: Flask, savepoints: Engine, bell: CountingBell) -> None:
    """Of nested savepoints, exactly the mail that is left at the commit is queued."""
    with Session(savepoints) as session:
        kept = [send(session)]
        with session.begin_nested():
            kept.append(send(session))
            inner = session.begin_nested()
            send(session)
            inner.rollback()
        outer = session.begin_nested()
        with session.begin_nested():
            send(session)
        outer.rollback()
        session.commit()

    assert rows(shop) == {"mailer_message": 2, "mailer_delivery": 2}
    assert set(mailer.statuses([receipt.id for receipt in kept])) == {
        receipt.id for receipt in kept
    }
    assert bell.rings == 1


def test_a_session_inside_a_transaction(
    shop: Flask, savepoints: Engine, bell: CountingBell
) -> None:
    """A session's commit queues nothing before that of the transaction around it."""
    with savepoints.connect() as connection:
        outermost = connection.begin()
        with Session(connection, join_transaction_mode="create_savepoint") as session:
            send(session)
            session.commit()

        assert bell.rings == 0
        outermost.rollback()
    assert (rows(shop), bell.rings) == ({}, 0)


# --- Flask-SQLAlchemy ---------------------------------------------------------------------------


@pytest.fixture
def db(shop: Flask, engine: Engine, database_url: str) -> SQLAlchemy:
    shop.config["SQLALCHEMY_DATABASE_URI"] = driven(database_url)
    shop.config["SQLALCHEMY_ENGINE_OPTIONS"] = {"poolclass": NullPool}
    return SQLAlchemy(shop)


def test_flask_sqlalchemy(shop: Flask, engine: Engine, db: SQLAlchemy, bell: CountingBell) -> None:
    """`connection=db.session` obeys its commits, rollbacks and savepoints."""
    order(db.session)
    send(db.session)
    db.session.rollback()
    order(db.session, 2)
    with db.session.begin_nested():
        send(db.session)
    assert (rows(shop), bell.rings) == ({}, 0)
    db.session.commit()

    assert (rows(shop), orders(engine), bell.rings) == (MAIL, [2], 1)


def test_the_session_of_a_request(open_shop: OpenShop, engine: Engine, database_url: str) -> None:
    """Mail that a request does not commit is dropped with its session."""
    shop = open_shop(
        SQLALCHEMY_DATABASE_URI=driven(database_url),
        SQLALCHEMY_ENGINE_OPTIONS={"poolclass": NullPool},
    )
    db = SQLAlchemy(shop)

    @shop.post("/orders/<word>")
    def place(word: str) -> str:
        order(db.session)
        send(db.session)
        if word == "keep":
            db.session.commit()
        return word

    for word, kept in (("forget", {}), ("keep", MAIL)):
        with ThreadPoolExecutor(1) as thread:  # in no context of an app, as in a server
            thread.submit(shop.test_client().post, f"/orders/{word}").result()

        assert rows(shop) == kept


# --- idempotency keys ---------------------------------------------------------------------------


def test_a_key_in_a_transaction(shop: Flask, engine: Engine, bell: CountingBell) -> None:
    """A key is free after a rollback, and belongs to its mail after the commit."""
    with Session(engine) as session:
        send(session, idempotency_key="order-1")
        session.rollback()
        first = send(session, idempotency_key="order-1")
        assert send(session, idempotency_key="order-1") == first
        session.commit()
        assert send(session, idempotency_key="order-1") == first
        session.commit()

    assert send(None, idempotency_key="order-1") == first
    assert (rows(shop), bell.rings) == (MAIL, 1)


def test_a_conflict_leaves_the_transaction_alone(
    shop: Flask, engine: Engine, bell: CountingBell
) -> None:
    """A caught conflict of keys leaves the transaction usable, also with PostgreSQL."""
    send(None, idempotency_key="order-1")
    with Session(engine) as session:
        order(session)
        with pytest.raises(KeyReused):
            send(session, idempotency_key="order-1", subject="Other")
        send(session, idempotency_key="order-2")
        session.commit()

    assert (rows(shop), orders(engine)) == ({"mailer_message": 2, "mailer_delivery": 2}, [1])


def test_what_is_refused_leaves_the_transaction_alone(
    shop: Flask, engine: Engine, bell: CountingBell
) -> None:
    """A mail that is refused leaves nothing in the transaction."""
    with Session(engine) as session:
        order(session)
        with pytest.raises(InvalidMail):
            send(session, subject="a\nb")
        session.commit()

    assert (rows(shop), orders(engine), bell.rings) == ({}, [1], 0)


def test_half_a_mail_is_none(shop: Flask, engine: Engine, bell: CountingBell) -> None:
    """A failure while a mail is written takes back that mail and nothing else."""

    def interrupt(_connection: object, _cursor: object, statement: str, *_rest: object) -> None:
        if "INTO mailer_delivery" in statement:
            raise RuntimeError

    event.listen(engine, "before_cursor_execute", interrupt)
    with Session(engine) as session:
        order(session)
        with pytest.raises(RuntimeError):
            send(session)
        session.commit()

    assert (rows(shop), orders(engine), bell.rings) == ({}, [1], 0)


REFUSALS = {
    "sqlite": (
        "CREATE TRIGGER refuse BEFORE INSERT ON mailer_message"
        " BEGIN SELECT RAISE(ABORT, 'refused'); END"
    ),
    "postgresql": (
        "ALTER TABLE mailer_message ADD CONSTRAINT refused CHECK (subject = '') NOT VALID"
    ),
}


def test_an_error_tells_nothing_of_the_mail(shop: Flask, engine: Engine) -> None:
    """Errors, which applications log, and their causes show no values and no row of the mail."""
    secret = {"to": "eve@example.com", "subject": "Your code is 4711", "sensitive": True}
    with engine.connect() as connection:
        send(connection)
        connection.exec_driver_sql(REFUSALS[engine.dialect.name])
        connection.commit()
        for given in (connection, None):
            with pytest.raises(Exception, match="refused") as caught:
                send(given, **secret)
            connection.rollback()
            said = "".join(format_exception(caught.value))
            assert "4711" not in said
            assert "eve@example.com" not in said


# --- connections that are refused ---------------------------------------------------------------


def test_another_database(shop: Flask, tmp_path: Path) -> None:
    """A connection to another database is refused: the error names both and the setting."""
    engine = create_engine(f"sqlite:///{tmp_path / 'shop.sqlite3'}")
    with Session(engine) as session, pytest.raises(ConfigurationError) as error:
        send(session)
    engine.dispose()

    assert (
        f"connection: sqlite:///{tmp_path / 'shop.sqlite3'} does not lead to the tables that"
        " Mailer has in" in str(error.value)
    )
    assert "set MAILER_DATABASE_URL to" in str(error.value)
    assert rows(shop) == {}


@postgresql_only
def test_another_schema(shop: Flask, database_url: str) -> None:
    """A connection to another schema of the same database is refused."""
    engine = create_engine(
        driven(database_url), connect_args={"options": "-c search_path=elsewhere"}
    )
    with Session(engine) as session, pytest.raises(ConfigurationError, match="the schema"):
        send(session)
    engine.dispose()


@postgresql_only
def test_a_schema_of_its_own(open_shop: OpenShop, empty_database_url: str) -> None:
    """Mailer's tables may be in another schema, if the caller's connection sees it."""
    engine = create_engine(
        driven(empty_database_url), connect_args={"options": "-c search_path=public,mail"}
    )
    with engine.begin() as connection:
        connection.execute(text("CREATE SCHEMA mail"))
        connection.execute(text("CREATE TABLE shop_order (number INTEGER PRIMARY KEY)"))
    shop = open_shop(MAILER_DATABASE_URL=f"{empty_database_url}&options=-csearch_path%3Dmail")
    store_of(shop).migrate()
    with shop.app_context(), Session(engine) as session:
        session.execute(text("INSERT INTO shop_order VALUES (1)"))
        send(session)
        session.commit()
    with engine.connect() as connection:
        where = set(
            connection.execute(
                text("SELECT schemaname FROM pg_tables WHERE tablename LIKE 'mailer%'")
            ).scalars()
        )
    engine.dispose()

    assert where == {"mail"}
    assert rows(shop) == MAIL


@sqlite_only
def test_the_same_file_by_another_name(
    shop: Flask, database_url: str, tmp_path: Path, bell: CountingBell
) -> None:
    """A connection to the same SQLite file by another path is accepted."""
    other = tmp_path / "link"
    other.symlink_to(Path(database_url.removeprefix("sqlite:///")).parent)
    engine = create_engine(f"sqlite:///{other}/mailer.sqlite3")
    with Session(engine) as session:
        send(session)
        session.commit()
    engine.dispose()

    assert (rows(shop), bell.rings) == (MAIL, 1)


def test_what_is_no_transaction(shop: Flask, engine: Engine) -> None:
    """Anything but a Session or a Connection is refused, and the error names these."""
    raw = engine.raw_connection()
    for given in (engine, sessionmaker(engine), raw.driver_connection, "sqlite://", 5):
        with pytest.raises(
            InvalidMail,
            match=f"^connection: {type(given).__name__} is no transaction: give a Session or a",
        ):
            send(given)
    raw.close()
    assert rows(shop) == {}


@postgresql_only
def test_a_connection_that_commits_by_itself(shop: Flask, engine: Engine) -> None:
    """A connection in AUTOCOMMIT is refused, since it has no commit to wait for."""
    connection = engine.connect().execution_options(isolation_level="AUTOCOMMIT")
    with connection, pytest.raises(InvalidMail, match=r"^connection: it is in AUTOCOMMIT"):
        send(connection)
    assert rows(shop) == {}


# --- under test ---------------------------------------------------------------------------------


def test_a_test_of_the_application(open_shop: OpenShop, engine: Engine) -> None:
    """With TESTING, mail in a transaction goes to nobody at the commit."""
    shop = open_shop(TESTING=True)
    with shop.app_context(), Session(engine) as session:
        receipt = send(session)
        session.commit()

        assert [one.attempts for one in mailer.status(receipt.id)] == [1]
