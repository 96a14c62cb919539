"""PostgreSQL behind PgBouncer in transaction mode, where sessions are shared."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from flask import Flask
from sqlalchemy import create_engine, make_url, text
from sqlalchemy.orm import Session

from mailer import Mailer, Message
from mailer.errors import StoreUnavailable
from mailer.message import Status
from mailer.store import Store
from tests.mails import NOW, bring, claim, emptied, insert, mark, record, table
from tests.services.databases import Databases, sqlite_only
from tests.services.pgbouncer import running_pgbouncer
from tests.services.requirement import find_program, require
from tests.services.sink import Sink
from tests.services.waiting import wait_until
from tests.services.worker import StartWorkers
from tests.shop import close


@pytest.fixture
def direct_url(postgres_databases: Databases) -> Iterator[str]:
    with postgres_databases.empty() as url:
        yield url


@pytest.fixture
def pooled_url(direct_url: str) -> Iterator[str]:
    program = require("PgBouncer", find_program("pgbouncer"))
    with running_pgbouncer(program, direct_url) as url:
        yield url


@pytest.fixture
def pooled(pooled_url: str) -> Iterator[Store]:
    """Yield a store whose tables were made through PgBouncer."""
    store = Store(pooled_url, pgbouncer=True)
    store.migrate()
    yield store
    store.engine.dispose()


def test_many_threads_share_few_sessions(pooled: Store) -> None:
    """Queueing and delivering work with more clients than the server has sessions."""

    def deliver(number: int) -> None:
        token = f"worker{number}"
        for _ in range(20):
            insert(pooled, "ada@example.com", "bob@example.com")
            claimed = claim(pooled, token=token)
            mark(pooled, *claimed, token=token)
            record(pooled, *claimed, to=Status.SENT)
            pooled.counts()
            pooled.is_due(NOW)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(deliver, range(8)))
    rest = claim(pooled, 1000)
    mark(pooled, *rest)
    record(pooled, *rest, to=Status.SENT)

    assert [row["status"] for row in table(pooled).values()] == ["sent"] * 320


def test_a_statement_has_its_limit(pooled: Store) -> None:
    """Each transaction sets its own time limits, and leaves none in the shared session."""
    with pooled._write() as transaction:
        limits = transaction.execute(
            "SELECT current_setting('statement_timeout'),"
            " current_setting('idle_in_transaction_session_timeout')",
            {},
        )
    with pooled._look() as transaction:
        after = transaction.execute("SELECT current_setting('statement_timeout')", {})

    assert limits == [("15s", "10s")]
    assert after == [("0",)], "it is left in a session that somebody else gets"


def test_there_and_back(pooled: Store) -> None:
    """Migrations run through PgBouncer."""
    bring(pooled, Status.SENT)
    emptied(pooled)
    pooled.migrate("base")
    pooled.migrate()

    insert(pooled)
    assert len(table(pooled)) == 1


@pytest.mark.parametrize("ends_well", [True, False])
def test_the_callers_transaction_through_it(
    pooled: Store, pooled_url: str, *, ends_well: bool
) -> None:
    """Mail can be queued in the caller's transaction through PgBouncer."""
    app = Flask("shop")
    app.config.update(
        MAILER_DATABASE_URL=pooled_url,
        MAILER_PGBOUNCER=True,
        MAIL_DEFAULT_SENDER="shop@example.com",
    )
    mailer = Mailer(app)
    engine = create_engine(make_url(pooled_url), connect_args={"prepare_threshold": None})
    with app.app_context(), Session(engine) as session:
        for number in range(8):
            session.execute(text("SELECT 1"))
            mailer.enqueue(_flask_mail_message(number), connection=session)
            (session.commit if ends_well else session.rollback)()
    engine.dispose()

    assert len(table(pooled)) == (8 if ends_well else 0)
    close(app)


def _flask_mail_message(number: int) -> Message:
    return Message(f"Order {number}", recipients=["ada@example.com"], body="Thank you")


@sqlite_only  # once: the database of `config` is replaced below
def test_workers_deliver_through_it(
    pooled: Store, pooled_url: str, config: dict[str, str], start_workers: StartWorkers, sink: Sink
) -> None:
    """The workers of a prefork pool deliver through PgBouncer."""
    config |= {"MAILER_DATABASE_URL": pooled_url, "MAILER_PGBOUNCER": "true"}
    start_workers(pool="prefork", concurrency=2)
    for _ in range(60):
        insert(pooled, due_at=time.time())

    wait_until(lambda: len(sink.messages) == 60, timeout=60)
    wait_until(lambda: {row["status"] for row in table(pooled).values()} == {"sent"}, timeout=30)


def test_without_the_setting_the_error_names_it(pooled: Store, pooled_url: str) -> None:
    """Without MAILER_PGBOUNCER, the error says to set it."""
    store = Store(pooled_url)

    with pytest.raises(
        StoreUnavailable, match=r"unsupported startup parameter.*set MAILER_PGBOUNCER to true"
    ):
        insert(store)


def test_prepared_statements_of_another_session_name_it_too(pooled: Store) -> None:
    """Errors about prepared statements of other sessions say to set MAILER_PGBOUNCER."""
    errors = (psycopg.errors.DuplicatePreparedStatement(), psycopg.errors.InvalidSqlStatementName())
    for error in errors:
        with (
            pytest.raises(StoreUnavailable, match="set MAILER_PGBOUNCER to true"),
            pooled._mapped_errors(),
        ):
            raise error


@sqlite_only
def test_sqlite_has_no_use_for_it(make_app: Callable[..., Flask]) -> None:
    """MAILER_PGBOUNCER is ignored with SQLite."""
    app = make_app(MAILER_PGBOUNCER=True)
    with app.app_context():
        assert app.extensions["mailer"].store.counts() == []
