"""An application under test: mail in memory, and `connection=` of any database."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from flask import Flask
from flask_mail import Message
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import Engine, StaticPool, create_engine, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from mailer import KeyReused, Mail, Mailer, Receipt, UnknownMail
from tests.services.databases import Databases

mailer = Mailer()


@pytest.fixture
def app(tmp_path: Path) -> Iterator[Flask]:
    """Yield an application with TESTING, and assert that it wrote nothing to the disk."""
    app = Flask("shop", instance_path=str(tmp_path / "instance"))
    app.config.update(
        TESTING=True,
        MAIL_DEFAULT_SENDER="shop@example.com",
        SQLALCHEMY_DATABASE_URI="postgresql://db/shop",
    )
    mailer.init_app(app)
    with app.app_context():
        yield app
    assert not (tmp_path / "instance").exists(), "something was written to the disk"


@pytest.fixture(params=["a file", "memory", "postgresql"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    """Yield an engine of the application's own database, without tables of Mailer."""
    match request.param:
        case "a file":
            engine = create_engine(f"sqlite:///{tmp_path}/shop.sqlite3")
        case "memory":
            engine = create_engine("sqlite://", poolclass=StaticPool)
        case _:
            databases: Databases = request.getfixturevalue("postgres_databases")
            with databases.empty() as url:
                engine = create_engine(url)
                yield _with_orders(engine)
                engine.dispose()
            return
    yield _with_orders(engine)
    engine.dispose()


def _with_orders(engine: Engine) -> Engine:
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE shop_order (number INTEGER PRIMARY KEY)"))
    return engine


def queue(host: object, subject: str = "Your order", **options: object) -> Receipt:
    message = Message(subject, ["ada@example.com"], "Thank you")
    return mailer.enqueue(message, connection=host, **options)  # type: ignore[arg-type]


def is_queued(receipt: Receipt) -> bool:
    return receipt.id in mailer.statuses([receipt.id])


def order(host: Session, number: int = 1) -> None:
    host.execute(text("INSERT INTO shop_order VALUES (:number)"), {"number": number})


def test_a_commit(app: Flask, engine: Engine) -> None:
    """The mail appears with the commit, goes to nobody, and is recorded."""
    with Mail(app).record_messages() as outbox, Session(engine) as session:
        order(session)
        receipt = queue(session)

        with pytest.raises(UnknownMail):
            mailer.status(receipt.id)
        assert outbox == []
        session.commit()
        assert [message.subject for message in outbox] == ["Your order"]
    [delivery] = mailer.status(receipt.id)
    assert delivery.status == "sent"


def test_a_rollback(app: Flask, engine: Engine) -> None:
    """A rollback or closed session drops its mail, and the next transaction has none of it."""
    with Mail(app).record_messages() as outbox:
        with Session(engine) as session:
            first = queue(session)
            session.rollback()
            order(session)
            session.commit()
        with Session(engine) as session:
            second = queue(session)
        with Session(engine) as session:
            order(session, 2)
            session.commit()

    assert not is_queued(first)
    assert not is_queued(second)
    assert outbox == []


def test_a_commit_that_fails(app: Flask, engine: Engine) -> None:
    """A transaction that fails drops its mail."""
    with Session(engine) as session:
        order(session)
        session.commit()
        receipt = queue(session)
        with pytest.raises(IntegrityError):
            order(session)
        session.rollback()
        session.commit()

    assert not is_queued(receipt)


def test_savepoints(app: Flask, engine: Engine) -> None:
    """A mail belongs to the savepoint that it was queued in, and to those around it."""
    kept, lost = [], []
    with Session(engine) as session:
        session.execute(text("SELECT 1"))
        outer = session.begin_nested()
        inner = session.begin_nested()
        lost.append(queue(session, "in both"))
        inner.rollback()
        kept.append(queue(session, "in the outer one"))
        inner = session.begin_nested()
        kept.append(queue(session, "in one that is released"))
        inner.commit()
        outer.commit()
        other = session.begin_nested()
        inner = session.begin_nested()
        lost.append(queue(session, "released, and rolled back with the other"))
        inner.commit()
        other.rollback()
        kept.append(queue(session, "after all"))
        session.commit()

    assert [is_queued(receipt) for receipt in kept] == [True] * 3
    assert [is_queued(receipt) for receipt in lost] == [False] * 2


def test_a_savepoint_that_is_older_than_the_first_mail(app: Flask, engine: Engine) -> None:
    """The rollback of a savepoint older than the first mail drops all mail."""
    with Session(engine) as session:
        session.execute(text("SELECT 1"))
        savepoint = session.begin_nested()
        receipt = queue(session)
        savepoint.rollback()
        session.commit()

    assert not is_queued(receipt)


def test_a_connection_that_is_kept(app: Flask, engine: Engine) -> None:
    """On a connection that is kept, each commit queues the mail of its transaction."""
    with engine.connect() as connection:
        first = queue(connection)
        connection.commit()
        assert is_queued(first)
        second = queue(connection)
        connection.commit()
        with connection.begin():
            assert is_queued(second)
        third = queue(connection)
    assert not is_queued(third)


def test_a_block(app: Flask, engine: Engine) -> None:
    """`with engine.begin()` queues its mail at the end."""
    with engine.begin() as connection:
        receipts = [queue(connection) for _ in range(3)]
    assert all(map(is_queued, receipts))


def test_keys(app: Flask, engine: Engine) -> None:
    """A key makes one mail, in one transaction and in later ones."""
    with Session(engine) as session:
        first = queue(session, idempotency_key="order-1")
        again = queue(session, idempotency_key="order-1")
        with pytest.raises(KeyReused):
            queue(session, "Another", idempotency_key="order-1")
        session.commit()
    with Session(engine) as session:
        later = queue(session, idempotency_key="order-1")
        session.commit()

    assert (again, later) == (first, first)
    assert [receipt.is_new for receipt in (first, again, later)] == [True, False, False]


def test_two_transactions_with_the_same_key(
    app: Flask, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Of two transactions with one key, the first to commit has the mail; the log names both."""
    engine = create_engine(f"sqlite:///{tmp_path}/shop.sqlite3")
    with Session(engine) as one, Session(engine) as other:
        first, second = (queue(session, idempotency_key="order-1") for session in (one, other))
        one.commit()
        other.commit()

    assert is_queued(first)
    assert not is_queued(second)
    assert f"mail_id={second.id} earlier={first.id}" in caplog.text
    engine.dispose()


def test_a_mail_that_can_not_be_queued(
    app: Flask, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A mail that can't be queued after the commit is logged with the reason; nothing is raised."""
    engine = create_engine(f"sqlite:///{tmp_path}/shop.sqlite3")
    refuse = (
        "CREATE TRIGGER refuse BEFORE INSERT ON mailer_message"
        " BEGIN SELECT RAISE(ABORT, 'on strike'); END"
    )
    mailer.statuses([])  # creates the tables
    with app.extensions["mailer"].store.engine.begin() as connection:
        connection.execute(text(refuse))
    with Session(engine) as session:
        receipt = queue(session)
        session.commit()

    assert not is_queued(receipt)
    assert f"A mail was not queued: mail_id={receipt.id}" in caplog.text
    assert "on strike" in caplog.text
    engine.dispose()


def test_memory_that_was_asked_for(tmp_path: Path, engine: Engine) -> None:
    """MAILER_DATABASE_URL=sqlite:// takes a connection of any engine."""
    app = Flask("shop", instance_path=str(tmp_path / "instance"))
    app.config.update(
        MAILER_DATABASE_URL="sqlite://",
        MAIL_SUPPRESS_SEND=True,
        MAIL_DEFAULT_SENDER="shop@example.com",
    )
    mailer.init_app(app)
    with app.app_context():
        with Session(engine) as session:
            receipt = queue(session)
            session.commit()
        assert is_queued(receipt)


def test_two_applications_over_one_engine(app: Flask, engine: Engine) -> None:
    """Two applications in one transaction each get their own mail at its commit."""
    other = Flask("bakery")
    other.config.update(TESTING=True, MAIL_DEFAULT_SENDER="bakery@example.com")
    mailer.init_app(other)
    with Session(engine) as session:
        ours = queue(session)
        with other.app_context():
            theirs = queue(session)
        session.commit()

    assert [is_queued(ours), is_queued(theirs)] == [True, False]
    with other.app_context():
        assert [is_queued(ours), is_queued(theirs)] == [False, True]


def test_flask_sqlalchemy(tmp_path: Path) -> None:
    """With TESTING, mail over `db.session` appears at the commit of a request, as in the guide."""
    app = Flask("shop", instance_path=str(tmp_path))
    app.config.update(
        TESTING=True, SQLALCHEMY_DATABASE_URI="sqlite://", MAIL_DEFAULT_SENDER="shop@example.com"
    )
    db = SQLAlchemy(app)
    mail = Mail(app)

    @app.post("/orders/<outcome>")
    def orders(outcome: str) -> str:
        receipt = queue(db.session)
        (db.session.commit if outcome == "commit" else db.session.rollback)()
        return receipt.id

    with mail.record_messages() as outbox:
        app.test_client().post("/orders/rollback")
        assert outbox == []
        app.test_client().post("/orders/commit")
    assert [message.subject for message in outbox] == ["Your order"]
    assert list(tmp_path.iterdir()) == []
    with app.app_context():
        db.engine.dispose()
