"""Rolling deployments: old processes work with new tables, and migrations block nobody."""

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import Engine, create_engine, make_url, text

from mailer import SchemaMismatch, StoreUnavailable, schema, send_email
from mailer.schema import online
from mailer.store import Store
from tests.application import create_app
from tests.mails import insert, postgresql_only, table
from tests.services.databases import Databases
from tests.services.sink import Sink
from tests.services.waiting import wait_until
from tests.shop import close

NEXT = """
import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade():
    op.add_column("mailer_message", sa.Column("news", sa.Text()))
    op.execute("UPDATE mailer_version SET readable_from = '{readable_from}'")
"""


def deploy_next(engine: Engine, folder: Path, readable_from: str) -> None:
    """Run the migration of the next version, as its `flask mail migrate` will."""
    scripts = folder / "migrations"
    shutil.copytree(Path(schema.__file__).parent / "migrations", scripts)
    (scripts / "versions" / "0008_next.py").write_text(NEXT.format(readable_from=readable_from))
    config = Config()
    config.set_main_option("script_location", str(scripts))
    config.set_main_option("path_separator", "os")
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


# --- old processes beside new tables ------------------------------------------------------------


def test_an_old_process_starts_after_the_next_migration(
    store: Store, database_url: str, config: dict[str, str], sink: Sink, tmp_path: Path
) -> None:
    """An old process starts, queues and delivers with tables of the next version."""
    deploy_next(store.engine, tmp_path, readable_from="0007")
    app = create_app(config)

    with app.app_context():
        mailer = app.extensions["mailer"]
        mailer.store.migrate()
        mailer.store.check_schema()
        send_email("ada@example.com", "Hello", "welcome", name="Ada")
        mailer.outbound.dispatcher.deliver_batch()
    assert len(sink.wait_for(1)) == 1
    close(app)


def test_tables_that_it_could_not_work_with(
    store: Store, database_url: str, tmp_path: Path
) -> None:
    """An old process refuses tables that the next version declared unreadable for it."""
    deploy_next(store.engine, tmp_path, readable_from="0008")
    old = Store(database_url)

    for use in (old.counts, old.migrate, lambda: insert(old)):
        with pytest.raises(
            SchemaMismatch,
            match="at 0008, this version knows 0007 at most: install the newer version",
        ):
            use()
    old.engine.dispose()


def test_only_the_newer_version_knows_the_way_back(store: Store, tmp_path: Path) -> None:
    """Only the newer version can downgrade its tables, even if an older one can read them."""
    deploy_next(store.engine, tmp_path, readable_from="0007")

    for to in ("base", "0004", schema.REVISION):
        with pytest.raises(SchemaMismatch, match="install the newer version, or go back with its"):
            store.migrate(to)


# --- migrations that nobody waits for -----------------------------------------------------------


@pytest.fixture
def old_tables(store: Store) -> Store:
    """Return a store with one mail in the tables of an earlier version."""
    insert(store)
    store.migrate("0004")
    return store


@pytest.fixture
def reader(old_tables: Store) -> Iterator[Engine]:
    """Yield the engine of another program, whose report reads all deliveries for long."""
    engine = create_engine(old_tables.engine.url, connect_args={"application_name": "report"})
    yield engine
    engine.dispose()


def waits_for_a_lock(engine: Engine) -> bool:
    with engine.connect() as connection:
        return bool(
            connection.scalar(
                text(
                    "SELECT COUNT(*) FROM pg_locks WHERE NOT granted AND mode ="
                    " 'AccessExclusiveLock'"
                )
            )
        )


@postgresql_only
def test_behind_a_long_reader(old_tables: Store, reader: Engine) -> None:
    """A migration that waits for a long transaction does not block other queries meanwhile."""
    with ThreadPoolExecutor(1) as threads:
        with reader.connect() as report:
            report.execute(text("SELECT * FROM mailer_delivery"))
            migration = threads.submit(old_tables.migrate)
            for _ in range(2):
                wait_until(lambda: waits_for_a_lock(reader))
                with reader.connect() as other:
                    other.execute(text("SET lock_timeout = '20s'"))
                    assert other.scalar(text("SELECT COUNT(*) FROM mailer_delivery")) == 1
                assert not migration.done()
        migration.result(30)

    assert len(table(old_tables)) == 1
    old_tables.check_schema()


@postgresql_only
def test_a_reader_that_never_ends(
    old_tables: Store, reader: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A migration that gets no lock changes nothing, and its error names the lock's holder."""
    monkeypatch.setattr(online, "_LIMIT", 0.0)
    with reader.connect() as report:
        report.execute(text("SELECT * FROM mailer_delivery"))
        pid = report.scalar(text("SELECT pg_backend_pid()"))

        with pytest.raises(
            StoreUnavailable,
            match=rf"locked by pid {pid} \(report of mailer, idle in transaction for",
        ):
            old_tables.migrate()
    with reader.connect() as connection:
        assert schema.revision_of(connection) == "0004"

    old_tables.migrate()
    assert len(table(old_tables)) == 1


@pytest.fixture
def deployer(postgres_databases: Databases) -> Iterator[Store]:
    """Yield a store of an unprivileged role, whose tables the role `reporter` may read."""
    with postgres_databases.empty() as url:
        engine = create_engine(url, isolation_level="AUTOCOMMIT")
        with engine.connect() as administrator, postgres_databases.empty() as own_url:
            own = make_url(own_url)
            for statement in (
                "CREATE ROLE deployer LOGIN",
                "CREATE ROLE reporter LOGIN",
                f'ALTER DATABASE "{own.database}" OWNER TO deployer',
            ):
                administrator.exec_driver_sql(statement)
            store = Store(own.set(username="deployer").render_as_string())
            store.migrate("0004")
            with store.engine.begin() as connection:
                connection.exec_driver_sql("GRANT SELECT ON mailer_delivery TO reporter")
            yield store
            store.engine.dispose()
        with engine.connect() as administrator:
            administrator.exec_driver_sql("DROP ROLE deployer, reporter")
        engine.dispose()


def test_a_session_of_another_role(deployer: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names a lock's holder even if PostgreSQL hides details of other roles' sessions."""
    monkeypatch.setattr(online, "_LIMIT", 0.0)
    reporter = create_engine(deployer.engine.url.set(username="reporter"))
    with reporter.connect() as report:
        report.execute(text("SELECT * FROM mailer_delivery"))
        pid = report.scalar(text("SELECT pg_backend_pid()"))
        with pytest.raises(
            StoreUnavailable, match=rf"locked by pid {pid} \(unknown of reporter\)\. Wait until"
        ):
            deployer.migrate()

        look = online._sessions

        def look_once_it_has_ended(engine: Engine) -> list[str]:
            report.close()
            return look(engine)

        monkeypatch.setattr(online, "_sessions", look_once_it_has_ended)
        with pytest.raises(
            StoreUnavailable, match="Nobody has a lock on them any more: run 'flask mail"
        ) as caught:
            deployer.migrate()
    assert "pg_terminate_backend" not in str(caught.value)
    reporter.dispose()
