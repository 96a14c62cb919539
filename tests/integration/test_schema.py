"""The schema: migrations make exactly the tables that `mailer.schema` describes."""

import json
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from threading import Barrier
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, create_engine, inspect, text
from sqlalchemy.exc import IntegrityError

from mailer import schema
from mailer.errors import SchemaMismatch
from mailer.message import Lane, OnDoubt, Status
from mailer.store import Store
from tests.mails import NOW, bring, emptied, insert, postgresql_only, table
from tests.services.databases import Databases, sqlite_only


@pytest.fixture
def engine(empty_database_url: str) -> Iterator[Engine]:
    """Yield the engine of a store whose database has no tables yet."""
    store = Store(empty_database_url)
    yield store.engine
    store.engine.dispose()


def tables(engine: Engine) -> set[str]:
    return set(inspect(engine).get_table_names())


def set_revision(engine: Engine, revision: str) -> None:
    with engine.begin() as connection:
        connection.execute(
            schema.version.update().values(version_num=revision, readable_from=revision)
        )


@postgresql_only
def test_two_tenants_in_two_schemas(empty_database_url: str) -> None:
    """The store and its migrations use the `search_path` that is given in the database's URL."""
    owner = create_engine(empty_database_url)
    with owner.begin() as connection:
        connection.exec_driver_sql("CREATE SCHEMA tenant_a; CREATE SCHEMA tenant_b")
    tenants = [
        Store(f"{empty_database_url}&options=-csearch_path%3Dtenant_{letter}") for letter in "ab"
    ]
    for tenant in tenants:
        tenant.migrate()
        tenant.check_schema()
    insert(tenants[0])

    assert [len(table(tenant)) for tenant in tenants] == [1, 0]
    with tenants[0].engine.connect() as connection:
        assert connection.scalar(text("SHOW statement_timeout")) == "15s"
    for engine in (owner, *(tenant.engine for tenant in tenants)):
        engine.dispose()


# --- the tables ---------------------------------------------------------------------------------


def described(engine: Engine) -> dict[str, Any]:
    """Return what the database knows about our tables, with names and conditions."""
    inspector = inspect(engine)
    questions = (
        "columns",
        "pk_constraint",
        "foreign_keys",
        "indexes",
        "unique_constraints",
        "check_constraints",
    )
    return {
        name: {
            question: readable(getattr(inspector, f"get_{question}")(name))
            for question in questions
        }
        for name in schema.metadata.tables
    }


def readable(answer: Any) -> list[str]:
    return sorted(
        json.dumps(one, default=str) for one in (answer if isinstance(answer, list) else [answer])
    )


def test_the_migrations_make_what_the_code_describes(databases: Databases) -> None:
    """Migrations make the same columns, keys, indexes and CHECKs as `metadata.create_all()`."""
    with ExitStack() as stack:
        migrated, created = (
            create_engine(stack.enter_context(databases.empty())) for _ in range(2)
        )
        schema.migrate(migrated)
        schema.complete_metadata().create_all(created)

        assert described(migrated) == described(created)
        assert tables(migrated) == tables(created) | {schema.version.name}
        migrated.dispose()
        created.dispose()


def test_alembic_sees_no_difference(engine: Engine) -> None:
    """Alembic's autogenerate finds no difference between the migrations and the metadata."""
    schema.migrate(engine)

    with engine.connect() as connection:
        options = {"compare_type": True, "version_table": schema.version.name}
        assert (
            compare_metadata(
                MigrationContext.configure(connection, opts=options), schema.complete_metadata()
            )
            == []
        )


def test_the_code_needs_the_newest_migration() -> None:
    """`REVISION` is the only head of the migration scripts."""
    config = Config()
    config.set_main_option("script_location", "mailer.schema:migrations")
    config.set_main_option("path_separator", "os")

    assert ScriptDirectory.from_config(config).get_heads() == [schema.REVISION]


# --- up and down --------------------------------------------------------------------------------


def test_there_and_back_and_there_again(engine: Engine) -> None:
    """A downgrade to the base removes all tables but the one that holds the revision."""
    schema.migrate(engine)
    there = described(engine)
    schema.migrate(engine, "base")
    assert tables(engine) == {schema.version.name}
    schema.migrate(engine, schema.REVISION)

    assert described(engine) == there


def test_a_migration_that_is_done_does_nothing(engine: Engine) -> None:
    """A migration that was done before changes nothing, so each deployment may run it."""
    schema.migrate(engine)
    store = Store(engine.url.render_as_string(hide_password=False))
    insert(store)

    for to in ("head", schema.REVISION):
        schema.migrate(engine, to)

    assert len(table(store)) == 1
    store.engine.dispose()


def test_the_hosts_own_migrations_are_left_alone(engine: Engine) -> None:
    """Migrations do not touch the tables or the Alembic revision of the application."""
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)"))
        connection.execute(text("INSERT INTO alembic_version VALUES ('the host''s')"))
        connection.execute(text("CREATE TABLE message (id INTEGER)"))

    schema.migrate(engine)
    schema.migrate(engine, "base")

    with engine.connect() as connection:
        assert connection.scalar(text("SELECT version_num FROM alembic_version")) == "the host's"
    assert tables(engine) == {"alembic_version", "message", schema.version.name}


@postgresql_only
def test_two_deploys_at_the_same_time(engine: Engine) -> None:
    """Two migrations at the same time both succeed: the second waits for the first."""
    together = Barrier(2)

    def deploy(_number: int) -> None:
        together.wait()
        schema.migrate(engine)

    with ThreadPoolExecutor(2) as threads:
        list(threads.map(deploy, range(2)))

    with engine.connect() as connection:
        assert schema.revision_of(connection) == schema.REVISION


# --- what does not fit --------------------------------------------------------------------------


@postgresql_only
def test_tables_that_are_missing(empty_database_url: str) -> None:
    """On PostgreSQL, missing tables are an error that names the command to create them."""
    store = Store(empty_database_url)

    with pytest.raises(
        SchemaMismatch, match="has no tables of Mailer yet: run 'flask mail migrate'"
    ):
        insert(store)
    store.migrate()
    insert(store)

    assert len(table(store)) == 1
    store.engine.dispose()


@sqlite_only
def test_a_new_file_gets_its_tables(empty_database_url: str) -> None:
    """A new SQLite file gets its tables at the first use."""
    store = Store(empty_database_url)

    insert(store)

    assert len(table(store)) == 1
    store.engine.dispose()


@pytest.mark.parametrize(
    ("revision", "cure"),
    [
        ("0000", f"at 0000, this version needs {schema.REVISION}: run 'flask mail migrate'"),
        (
            "9999",
            f"at 9999, this version knows {schema.REVISION} at most: install the newer version",
        ),
    ],
)
def test_tables_of_another_version(store: Store, revision: str, cure: str) -> None:
    """A schema of another version is refused before any write, with the command to run."""
    with store.engine.begin() as connection:
        connection.execute(
            schema.version.update().values(version_num=revision, readable_from=revision)
        )

    for use in (lambda: insert(store), lambda: store.is_due(NOW), store.check_schema):
        with pytest.raises(SchemaMismatch, match=cure):
            use()
    assert table(store) == {}


def test_a_migration_of_tables_that_are_too_new(store: Store) -> None:
    """An older version refuses to migrate tables of a newer one."""
    store.migrate()
    set_revision(store.engine, "9999")

    for to in ("head", "base", schema.REVISION):
        with pytest.raises(SchemaMismatch, match="install the newer version"):
            store.migrate(to)


@pytest.mark.parametrize(
    ("to", "words"),
    [
        ("1234", f"There is no migration to '1234'.*The newest is {schema.REVISION}"),
        ("+1", "'\\+1' is not a revision: give head, base, or a number"),
        ("-1", "'-1' is not a revision"),
        ("heads", "'heads' is not a revision"),
    ],
)
def test_a_migration_to_nowhere(store: Store, to: str, words: str) -> None:
    """A migration to an unknown revision is refused and changes nothing."""
    with pytest.raises(SchemaMismatch, match=words):
        store.migrate(to)

    store.check_schema()


def test_the_log_of_alembic(empty_database_url: str, caplog: pytest.LogCaptureFixture) -> None:
    """A migration does not log each step, and the application's own migrations still do."""
    logger = logging.getLogger("alembic.runtime.migration")
    caplog.set_level(logging.INFO, "alembic")
    store = Store(empty_database_url)
    store.migrate()
    store.engine.dispose()
    logger.info("Running upgrade of the application")

    steps = [one.message for one in caplog.records if one.name.startswith("alembic")]
    assert steps == ["Running upgrade of the application"]


# --- what the tables refuse ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("nonsense", "name"),
    [
        ("status = 'sending'", "status_is_known"),
        ("on_doubt = 'maybe'", "on_doubt_is_known"),
        (f"lane = {max(Lane) + 1}", "lane_is_known"),
        ("lane = -1", "lane_is_known"),
        ("status = 'sent'", "finished_if_and_only_if_final"),
        ("finished_at = 1", "finished_if_and_only_if_final"),
        ("due_at = NULL", "queued_is_due_some_day"),
        ("status = 'claimed'", "held_by_somebody"),
        ("status = 'claimed', token = 'mine'", "held_by_somebody"),
        ("status = 'transmitting', lease_until = 1", "held_by_somebody"),
    ],
)
def test_nonsense_is_refused(shared_store: Store, nonsense: str, name: str) -> None:
    """The CHECKs of the tables refuse rows whose columns contradict each other."""
    bring(emptied(shared_store), Status.QUEUED)

    with (
        pytest.raises(IntegrityError, match=f"mailer_delivery_{name}"),
        shared_store.engine.begin() as connection,
    ):
        connection.execute(text(f"UPDATE mailer_delivery SET {nonsense}"))  # noqa: S608 -- it is written above


@pytest.mark.parametrize("on_doubt", OnDoubt)
@pytest.mark.parametrize("lane", Lane)
def test_all_that_makes_sense_is_accepted(
    shared_store: Store, lane: Lane, on_doubt: OnDoubt
) -> None:
    """The CHECKs accept every status, lane and `on_doubt` value that the code knows."""
    for status in Status:
        bring(emptied(shared_store), status, lane=lane, on_doubt=on_doubt)


def test_no_delivery_without_a_mail(store: Store) -> None:
    """A delivery needs a mail, and is deleted with it, on SQLite too."""
    delivery = bring(store, Status.QUEUED)
    with pytest.raises(IntegrityError), store.engine.begin() as connection:
        connection.execute(text("UPDATE mailer_delivery SET mail_id = 'nobody''s'"))

    with store.engine.begin() as connection:
        connection.execute(schema.message.delete().where(schema.message.c.id == delivery.mail_id))

    assert table(store) == {}
