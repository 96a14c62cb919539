"""Our tables in the application's database: safe from its migrations, and missed if dropped."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import flask_migrate
import pytest
from alembic.autogenerate import produce_migrations
from alembic.migration import MigrationContext
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import Column, Engine, Integer, MetaData, Table, inspect, text

from mailer import Mailer, SchemaMismatch
from mailer.schema import include_name, include_object, metadata, version
from mailer.store import Store
from tests.mails import NOW, insert
from tests.services.databases import sqlite_only
from tests.shop import store_of

OURS = {*metadata.tables, version.name}
DROP_ALL = [f"DROP TABLE {table.name}" for table in [*reversed(metadata.sorted_tables), version]]

Migrated = Callable[..., Flask]


@pytest.fixture
def migrated(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Migrated]:
    """Return a factory of applications that ran `flask db migrate` and `flask db upgrade`."""
    # The env.py that Flask-Migrate writes would switch off the loggers of this process.
    monkeypatch.setattr("logging.config.fileConfig", lambda *_: None)
    stores = []

    def make(*, mailer_first: bool = True, **hooks: Any) -> Flask:
        app = Flask("shop", root_path=str(tmp_path), instance_path=str(tmp_path))
        own = database_url.replace("postgresql://", "postgresql+psycopg://")
        app.config.update(SQLALCHEMY_DATABASE_URI=own, MAILER_DATABASE_URL=database_url)
        db = SQLAlchemy()
        Table("shop_order", db.metadata, Column("number", Integer, primary_key=True))
        extensions: list[Mailer | SQLAlchemy] = [Mailer(), db] if mailer_first else [db, Mailer()]
        for extension in extensions:
            extension.init_app(app)
        flask_migrate.Migrate(app, db, directory=str(tmp_path / "migrations"), **hooks)
        stores.append(store_of(app))
        insert(store_of(app))
        with app.app_context():
            for step in (flask_migrate.init, flask_migrate.migrate, flask_migrate.upgrade):
                step()
            db.engine.dispose()
        return app

    yield make
    for store in stores:
        store.engine.dispose()


def tables(app: Flask) -> set[str]:
    return set(inspect(store_of(app).engine).get_table_names())


def written(tmp_path: Path) -> str:
    [script] = (tmp_path / "migrations" / "versions").glob("*.py")
    return script.read_text()


WITHOUT_OURS = ["alembic.autogenerate.*", "~alembic.autogenerate.mailer"]


def with_own_hook(*arguments: Any) -> bool:
    return include_object(*arguments)


# In the env.py that Flask-Migrate writes.
@pytest.mark.filterwarnings("ignore:'get_engine' is deprecated")
@pytest.mark.parametrize(
    "hooks",
    [
        pytest.param({}, id="by default"),
        pytest.param({"mailer_first": False}, id="in the other order"),
    ],
)
def test_flask_migrate(migrated: Migrated, tmp_path: Path, hooks: dict[str, Any]) -> None:
    """`flask db migrate` ignores our tables, and `flask db upgrade` leaves the mail in them."""
    app = migrated(**hooks)

    assert "shop_order" in written(tmp_path)
    assert "mailer_" not in written(tmp_path)
    assert tables(app) > OURS
    assert len(store_of(app).counts()) == 1


@sqlite_only
@pytest.mark.filterwarnings("ignore:'get_engine' is deprecated")
@pytest.mark.parametrize(
    "hooks",
    [
        pytest.param(
            {"include_name": include_name, "autogenerate_plugins": WITHOUT_OURS}, id="include_name"
        ),
        pytest.param(
            {"include_object": with_own_hook, "autogenerate_plugins": WITHOUT_OURS},
            id="with a hook of its own",
        ),
        pytest.param(
            {"include_object": include_object, "autogenerate_plugins": WITHOUT_OURS},
            id="include_object",
        ),
    ],
)
def test_hooks(migrated: Migrated, tmp_path: Path, hooks: dict[str, Any]) -> None:
    """Each documented Alembic hook protects our tables even without the plugin."""
    app = migrated(**hooks)

    assert "mailer_" not in written(tmp_path)
    assert tables(app) > OURS


def test_a_table_of_the_application(engine: Engine) -> None:
    """A table of the application may have a name that begins with `mailer_`."""
    models = MetaData()
    Table("mailer_template", models, Column("id", Integer, primary_key=True))

    with engine.connect() as connection:
        [operation] = produce_migrations(
            MigrationContext.configure(connection), models
        ).upgrade_ops.ops  # type: ignore[union-attr]
    assert type(operation).__name__ == "CreateTableOp"


@pytest.fixture
def engine(store: Store) -> Engine:
    return store.engine


def drop(store: Store, statements: list[str]) -> None:
    with store.engine.begin() as connection:
        for statement in statements:
            connection.execute(text(statement))


USES: list[Callable[[Store], object]] = [
    insert,
    Store.counts,
    lambda store: store.is_due(NOW),
    Store.migrate,
]


@pytest.mark.parametrize("use", USES)
def test_all_tables_are_gone(
    store: Store, database_url: str, use: Callable[[Store], object]
) -> None:
    """A new process raises an error if all tables were dropped, and does not recreate them."""
    insert(store)
    drop(store, DROP_ALL)
    fresh = Store(database_url)

    with pytest.raises(SchemaMismatch, match="in this database, and somebody dropped them"):
        use(fresh)

    assert inspect(store.engine).get_table_names() == []
    fresh.engine.dispose()


@pytest.mark.parametrize("use", USES[:-1])
def test_they_go_while_a_process_runs(store: Store, use: Callable[[Store], object]) -> None:
    """A running process whose tables were dropped raises an error that names the command to run."""
    insert(store)
    drop(store, DROP_ALL)

    for _ in range(2):
        with pytest.raises(SchemaMismatch, match="flask mail migrate --new-tables"):
            use(store)


def test_some_tables_are_gone(store: Store, database_url: str) -> None:
    """If some tables were dropped, the error names them."""
    drop(store, ["DROP TABLE mailer_attempt", "DROP TABLE mailer_pause"])
    fresh = Store(database_url)

    with pytest.raises(SchemaMismatch, match="mailer_attempt, mailer_pause is missing"):
        fresh.counts()
    fresh.engine.dispose()


def test_new_tables(store: Store, database_url: str) -> None:
    """Dropped tables are recreated only on request, and each drop needs a new request."""
    insert(store)
    drop(store, DROP_ALL)

    store.migrate(new_tables=True)
    assert store.counts() == []
    drop(store, DROP_ALL)
    fresh = Store(database_url)
    with pytest.raises(SchemaMismatch, match="somebody dropped them"):
        fresh.counts()
    fresh.engine.dispose()


def test_back_to_the_base(store: Store) -> None:
    """A database that was downgraded to the base can be migrated again."""
    store.migrate("base")
    drop(store, [f"DROP TABLE {version.name}"])

    store.migrate()
    assert store.counts() == []
