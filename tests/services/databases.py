"""A database for each test: a copied file, or an emptied database of the one server."""

import os
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any, Protocol

import psycopg
import pytest
from sqlalchemy import create_engine

from mailer.schema import migrate
from tests.services.postgres import PostgresServer

#: Marks a test that does not depend on the kind of database.
sqlite_only = pytest.mark.parametrize("databases", ["sqlite"], indirect=True)


class Databases(Protocol):
    """A source of databases for tests."""

    def empty(self) -> AbstractContextManager[str]:
        """Yield the URL of a database without tables."""

    def migrated(self) -> AbstractContextManager[str]:
        """Yield the URL of a database with the current schema."""


#: A commit to disk takes some milliseconds, and no test cuts the power. The 64 MB of Docker's
#: default are too little.
_MEMORY, _ENOUGH = Path("/dev/shm"), 1_000_000_000  # noqa: S108 -- for a folder of ours


def fast_folder() -> Path | None:
    """Return a folder in memory, if this machine has room there, and None otherwise."""
    if os.access(_MEMORY, os.W_OK) and shutil.disk_usage(_MEMORY).free > _ENOUGH:
        return _MEMORY
    return None


class SqliteDatabases:
    """A database file for each test, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._numbers = count(1)

    @contextmanager
    def empty(self) -> Iterator[str]:
        folder = self._folder / str(next(self._numbers))
        folder.mkdir()
        yield _sqlite_url(folder / "mailer.sqlite3")
        shutil.rmtree(folder, ignore_errors=True)  # a test may have made it large

    @contextmanager
    def migrated(self) -> Iterator[str]:
        with self.empty() as url:
            shutil.copyfile(self._template, url.removeprefix("sqlite:///"))
            yield url

    @cached_property
    def _template(self) -> Path:
        file = self._folder / "template.sqlite3"
        _migrate(_sqlite_url(file))
        return file


class PostgresDatabases:
    """Databases of one server. Migrated ones are emptied after a test and reused."""

    def __init__(self, server: PostgresServer) -> None:
        self._server = server
        self._numbers = count(1)
        self._emptied: list[str] = []

    @contextmanager
    def empty(self) -> Iterator[str]:
        name = self._create("template1")
        yield self._server.url(name)
        self._server.drop(name)

    @contextmanager
    def migrated(self) -> Iterator[str]:
        name = self._emptied.pop() if self._emptied else self._create(self._template)
        yield self._server.url(name)
        if self._is_emptied(name):
            self._emptied.append(name)
        else:
            self._server.drop(name)

    def _create(self, template: str) -> str:
        name = f"mailer_{next(self._numbers)}"
        self._server.create(name, template)
        return name

    @cached_property
    def _template(self) -> str:
        _migrate(self._server.create("template_mailer"))
        return "template_mailer"

    @cached_property
    def _pristine(self) -> list[tuple[Any, ...]]:
        """Return the fingerprint of an unused database."""
        with self._server.connect(self._template) as connection:
            return connection.execute(_FINGERPRINT).fetchall()

    def _is_emptied(self, name: str) -> bool:
        """Empty the database and return True if it can be used again.

        It can't if a test changed more than rows.
        """
        with suppress(psycopg.Error), self._server.connect(name) as connection:
            connection.execute(_HANG_UP)
            connection.execute(_EMPTY)
            return connection.execute(_FINGERPRINT).fetchall() == self._pristine
        return False


_HANG_UP = """
SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'
"""

#: Truncates the tables that hold or held rows, except the one with the schema's revision.
_EMPTY = """
DO $$ DECLARE filled text; BEGIN
    SELECT string_agg(oid::regclass::text, ', ') INTO filled FROM pg_class
    WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace AND relname <> 'mailer_version'
    AND pg_relation_size(oid) > 0;
    IF filled IS NOT NULL THEN EXECUTE 'TRUNCATE ' || filled || ' RESTART IDENTITY CASCADE'; END IF;
END $$
"""

_CATALOGS = (
    "attrdef attribute collation constraint extension index namespace policy proc rewrite sequence"
    " trigger type"
)

#: A copy has the catalog rows of its template, with the ids of the transactions that wrote them.
#: Each change of the schema has a later id.
_FINGERPRINT = "".join(
    f"SELECT '{one}', count(*), max(xmin::text::bigint) FROM pg_{one} UNION ALL "  # noqa: S608 -- constants
    for one in _CATALOGS.split()
)
_FINGERPRINT += """
SELECT 'revision', count(*), max(xmin::text::bigint) FROM mailer_version
UNION ALL
SELECT 'class', count(*), count(reloptions) + count(relacl) + count(DISTINCT relowner) FROM pg_class
UNION ALL
SELECT 'database', datconnlimit, (datacl IS NULL)::int FROM pg_database
WHERE datname = current_database()
UNION ALL
SELECT 'setting', count(setconfig), 0 FROM pg_database
LEFT JOIN pg_db_role_setting ON setdatabase = pg_database.oid
WHERE datname = current_database()
"""


def _sqlite_url(file: Path) -> str:
    return f"sqlite:///{file}"


def _migrate(url: str) -> None:
    engine = create_engine(url)
    migrate(engine)
    engine.dispose()
