"""The SQL in `deploy/`, on real tables."""

import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from ruamel.yaml import YAML
from sqlalchemy import make_url

from mailer.message import Lane, Status
from mailer.store import Store
from tests.mails import bring, insert
from tests.services.databases import Databases

DEPLOY = Path(__file__).parents[2] / "deploy"
ROLE = "mailer_scaler"


@pytest.fixture
def store(postgres_databases: Databases) -> Iterator[Store]:
    """Yield a store whose tables may be changed, since they are dropped afterwards."""
    with postgres_databases.empty() as url:
        store = Store(url)
        store.migrate()
        yield store
        store.engine.dispose()


@pytest.fixture
def scaler(store: Store) -> Iterator[psycopg.Connection]:
    """Yield a connection of the role that KEDA uses."""
    with owner(store) as connection:
        connection.execute((DEPLOY / "postgresql" / "scaler.sql").read_bytes())
    with connect(store, ROLE) as connection:
        yield connection
    with owner(store) as connection:  # roles belong to the server, which other tests use
        connection.execute(f"DROP OWNED BY {ROLE}; DROP ROLE {ROLE}".encode())


def test_the_age_of_the_queue(store: Store, scaler: psycopg.Connection) -> None:
    """The scaler's query is the longest time for which mail of any lane has been due."""
    assert age(scaler) == 0

    now = time.time()
    insert(store, due_at=now - 60, lane=Lane.BULK)
    insert(store, due_at=now - 30, lane=Lane.CRITICAL)
    assert 60 <= age(scaler) < 90


def test_mail_that_no_worker_could_send_does_not_count(
    store: Store, scaler: psycopg.Connection
) -> None:
    """Scheduled, expired, paused and finished mail asks for no more workers."""
    now = time.time()
    insert(store, due_at=now + 3600)
    insert(store, due_at=now - 60, expires_at=now - 1)
    bring(store, Status.SENT)
    assert age(scaler) == 0

    insert(store, due_at=now - 60, lane=Lane.BULK)
    store.pause(Lane.BULK, reason="test", now=now)
    assert age(scaler) == 0


def test_the_scaler_sees_no_address(scaler: psycopg.Connection) -> None:
    """The role of the scaler can read neither recipients nor texts."""
    for refused in (b"SELECT recipient FROM mailer_delivery", b"SELECT text FROM mailer_message"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            scaler.execute(refused)


def test_the_age_costs_the_same_however_long_the_queue_is(
    store: Store, scaler: psycopg.Connection
) -> None:
    """The scaler's query finds the first mail of each lane by the index of due mail."""
    for _ in range(20):
        insert(store, *(f"reader{number}@example.com" for number in range(100)), due_at=1.0)
    with owner(store) as connection:
        connection.execute("ANALYZE")

    plan = scaler.execute(f"EXPLAIN {query()}".encode()).fetchall()

    for index in ("mailer_delivery_due", "mailer_delivery_ranked"):
        assert any(index in line for (line,) in plan), plan
    assert not any("Seq Scan on mailer_delivery" in line for (line,) in plan), plan


def test_the_settings_of_autovacuum_can_be_applied_twice(store: Store) -> None:
    """The settings of autovacuum are accepted, and stay."""
    with owner(store) as connection:
        for _ in range(2):
            connection.execute((DEPLOY / "postgresql" / "autovacuum.sql").read_bytes())
        options = connection.execute(
            "SELECT reloptions FROM pg_class WHERE relname = 'mailer_delivery'"
        ).fetchone()

    assert options is not None
    assert "autovacuum_vacuum_scale_factor=0.01" in options[0]


def query() -> str:
    text = (DEPLOY / "kubernetes" / "scaling.yaml").read_text(encoding="utf-8")
    [scaled] = [one for one in YAML(typ="safe").load_all(text) if one["kind"] == "ScaledObject"]
    found: str = scaled["spec"]["triggers"][0]["metadata"]["query"]
    return found


def age(scaler: psycopg.Connection) -> float:
    row = scaler.execute(query().encode()).fetchone()
    assert row is not None
    return float(row[0])


def owner(store: Store) -> psycopg.Connection:
    return connect(store, "mailer")


def connect(store: Store, user: str) -> psycopg.Connection:
    url = make_url(str(store.engine.url))
    return psycopg.connect(
        host=str(url.query["host"]), dbname=url.database, user=user, autocommit=True
    )
