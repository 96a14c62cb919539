"""Nobody waits for the open transaction of another caller."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from traceback import format_exception
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

from mailer import Attachment, KeyInUse, Mailer, Receipt, send_email
from tests.mails import postgresql_only
from tests.shop import close, rows, store_of, stored

pytestmark = postgresql_only

mailer = Mailer()

LOGO, TERMS = Attachment("logo.png", b"\x89PNG"), Attachment("terms.pdf", b"%PDF")
LEVELS = ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"]


@pytest.fixture
def engine(shop: Flask, database_url: str) -> Iterator[Engine]:
    """Yield the application's own engine, where a wait for a lock soon fails."""
    engine = create_engine(
        database_url, poolclass=NullPool, connect_args={"options": "-c lock_timeout=700ms"}
    )
    yield engine
    engine.dispose()


@pytest.fixture(autouse=True)
def impatient(shop: Flask) -> None:
    """Make a wait for a lock soon fail in Mailer's own connections, too."""
    store_of(shop).check_schema()
    with store_of(shop).engine.begin() as connection:
        connection.exec_driver_sql(
            "DO $$ BEGIN EXECUTE 'ALTER DATABASE ' || current_database() || ' SET lock_timeout ="
            " 700'; END $$"
        )
    store_of(shop).engine.dispose()


def send(connection: Any, *files: Attachment, **options: Any) -> Receipt:
    given = {
        "to": "ada@example.com",
        "subject": "Hello",
        "template": "only_text",
        "context": {"name": "Ada"},
    }
    return send_email(**{**given, **options}, attachments=files, connection=connection)


def files_of(shop: Flask, receipt: Receipt) -> list[bytes]:
    return [one.data for one in stored(shop, receipt).attachments]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("known", [False, True], ids=["new", "known"])
def test_a_file_in_an_open_transaction(
    shop: Flask, engine: Engine, level: str, *, known: bool
) -> None:
    """A file in an open transaction can be queued by others, at any level of isolation."""
    if known:
        send(None, LOGO, TERMS)
        with store_of(shop).engine.begin() as connection:
            connection.execute(text("UPDATE mailer_blob SET used_at = 0"))
    with (
        Session(engine.execution_options(isolation_level=level)) as one,
        Session(engine) as another,
    ):
        for session in (one, another):
            session.execute(text("SELECT pg_current_snapshot()"))  # keeps a snapshot from here on
        receipts = [
            send(one, LOGO, TERMS),
            send(another, TERMS, LOGO),
            send(None, LOGO, TERMS),
            send(one, TERMS, LOGO),
        ]
        one.commit()
        another.commit()

    assert [files_of(shop, receipt) for receipt in receipts] == [
        [LOGO.data, TERMS.data],
        [TERMS.data, LOGO.data],
        [LOGO.data, TERMS.data],
        [TERMS.data, LOGO.data],
    ]


def test_a_commit_that_could_not_be_serialized(shop: Flask, engine: Engine) -> None:
    """A serialization failure is raised as without Mailer, and that transaction's mail is gone."""
    theirs = engine.execution_options(isolation_level="SERIALIZABLE")
    with Session(theirs) as one, Session(theirs) as another:
        for session in (one, another):
            session.execute(text("SELECT COUNT(*) FROM mailer_message"))
        receipts = [send(one), send(another)]
        kept = []
        for session, receipt in zip((one, another), receipts, strict=True):
            try:
                session.commit()
                kept.append(receipt.id)
            except OperationalError as error:
                session.rollback()
                # PostgreSQL chooses which of the two fails.
                assert "could not serialize" in str(error)  # noqa: PT017

    assert len(kept) < 2
    assert set(mailer.statuses([receipt.id for receipt in receipts])) == set(kept)


def test_many_open_transactions(shop: Flask, engine: Engine) -> None:
    """More open transactions than Mailer has connections hold up no other mail."""
    sessions = [Session(engine) for _ in range(20)]
    for session in sessions:
        send(session, LOGO)
    send(None)
    send(None, LOGO)
    for session in sessions:
        session.commit()

    assert rows(shop)["mailer_message"] == 22
    assert rows(shop)["mailer_blob"] == 1


def test_bytes_of_a_long_transaction_are_kept(shop: Flask, engine: Engine) -> None:
    """The purge keeps the files of an open transaction and does not wait for it."""
    store = store_of(shop)
    with Session(engine) as session:
        receipt = send(session, LOGO)
        store.purge_blobs(1e11, after="", most=10)
        session.commit()
    store.purge_blobs(1e11, after="", most=10)

    assert files_of(shop, receipt) == [LOGO.data]


def test_a_copy_where_no_connection_is_left(
    shop: Flask, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    """With no connection left, new files go into the caller's transaction, and that is logged."""
    send(None, TERMS)
    store = store_of(shop)
    with store.engine.begin() as connection:
        connection.execute(text("UPDATE mailer_blob SET used_at = 0"))
    close(shop)  # the check for workers, which takes a connection, is over for a minute
    store.engine.pool._timeout = 0.01  # type: ignore[attr-defined]
    with Session(engine) as session:
        send(session)  # checks the database once
        taken = [store.engine.connect() for _ in range(15)]
        send(session, TERMS)  # known bytes; the date of their last use stays old
        assert "could not be stored" not in caplog.text
        receipt = send(session, LOGO)
        assert (
            f"The files of mail {receipt.id} could not be stored beside the caller's transaction"
            in caplog.text
        )
        session.commit()
    for connection in taken:
        connection.close()

    assert files_of(shop, receipt) == [LOGO.data]


def test_a_sensitive_file_leaves_nothing(shop: Flask, engine: Engine) -> None:
    """A sensitive file in a transaction that is rolled back is nowhere in the database."""
    with Session(engine) as session:
        send(session, LOGO, sensitive=True)
        session.rollback()

    assert rows(shop) == {}


def test_a_key_in_an_open_transaction(shop: Flask, engine: Engine) -> None:
    """A key in another's open transaction soon raises KeyInUse, and the own transaction goes on."""
    with Session(engine) as one, Session(engine) as another:
        first = send(one, idempotency_key="order-1")
        another.execute(text("SET LOCAL lock_timeout = '650ms'"))
        for connection in (another, None):
            with pytest.raises(
                KeyInUse, match=r"idempotency_key: 'order-1' .* another transaction"
            ) as caught:
                send(connection, idempotency_key="order-1")
            assert "ada@example.com" not in "".join(format_exception(caught.value))
        other = send(another, idempotency_key="order-2")
        assert another.scalar(text("SHOW lock_timeout")) == "650ms"
        one.commit()
        assert send(another, idempotency_key="order-1").id == first.id
        another.commit()

    assert send(None, idempotency_key="order-2").id == other.id
    assert rows(shop) == {"mailer_message": 2, "mailer_delivery": 2}


def test_a_key_that_is_committed_meanwhile(shop: Flask, engine: Engine) -> None:
    """A call that waited for a key returns the receipt of the mail that has it."""
    waits = text("SELECT 1 FROM pg_locks WHERE NOT granted")
    with ThreadPoolExecutor(1) as threads, Session(engine) as one:
        first = send(one, idempotency_key="order-1")

        def call() -> Receipt:
            with shop.app_context():
                return send(None, idempotency_key="order-1")

        second = threads.submit(call)
        while not second.done() and one.scalar(waits) is None:
            pass
        one.commit()

        assert second.result().id == first.id
