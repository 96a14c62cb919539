"""Databases in memory: their tables are copied, and are those of the migrations."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from sqlalchemy import StaticPool, create_engine, text

from mailer import schema
from mailer.store import Store, memory
from tests.mails import claim, insert

#: A database in memory that several connections share.
SHARED = "sqlite:///file:kit-{}?mode=memory&cache=shared&uri=true"
_SCHEMA = "SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY type, name"


def tables_of(execute: Callable[[str], Any]) -> list[tuple[Any, ...]]:
    found = [tuple(row) for row in execute(_SCHEMA)]
    return [*found, *(tuple(row) for row in execute("SELECT * FROM mailer_version"))]


def tables_of_store(url: str = "sqlite://") -> list[tuple[Any, ...]]:
    store = Store(url)
    store.check_schema()
    with store.engine.connect() as connection:
        found = tables_of(connection.exec_driver_sql)
    store.engine.dispose()
    return found


def test_the_copy_has_the_tables_of_the_migrations() -> None:
    """Tables, indexes, checks and the revision of a copy are those of a migrated database."""
    engine = create_engine("sqlite://")
    schema.migrate(engine)
    with engine.connect() as connection:
        migrated = tables_of(connection.exec_driver_sql)
    engine.dispose()

    assert tables_of_store() == migrated


def test_each_store_has_its_own() -> None:
    """What is written to one database in memory is in no other."""
    stores = [Store("sqlite://") for _ in range(2)]
    insert(stores[0])

    assert [len(claim(store)) for store in stores] == [1, 0]
    for store in stores:
        store.engine.dispose()


def test_threads_that_make_stores_at_once() -> None:
    """Threads that make databases at the same moment all get the tables."""
    memory._template._tables = None
    together = threading.Barrier(8)

    def make(_number: int) -> int:
        together.wait()
        return len(tables_of_store())

    with ThreadPoolExecutor(8) as threads:
        counts = set(threads.map(make, range(8)))

    assert counts == {len(tables_of_store())}


def test_tables_of_the_application_stay() -> None:
    """In a database that the application shares with Mailer, its own tables are kept."""
    url = SHARED.format("mixed")
    engine = create_engine(url, poolclass=StaticPool)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE shop_order (number INTEGER PRIMARY KEY)"))
        connection.execute(text("INSERT INTO shop_order VALUES (42)"))

    names = {row[1] for row in tables_of_store(url)}

    assert {"mailer_message", "shop_order"} <= names
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT number FROM shop_order")) == 42
    engine.dispose()
