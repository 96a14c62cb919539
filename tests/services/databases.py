"""A fresh database for each test, copied from one that was migrated once."""

import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Protocol

import pytest
from sqlalchemy import create_engine

from mailer.schema import migrate
from tests.services.postgres import PostgresServer

#: Marks a test that has nothing to learn from a second database.
sqlite_only = pytest.mark.parametrize("databases", ["sqlite"], indirect=True)


class Databases(Protocol):
    """Where a test's database comes from."""

    def empty(self) -> AbstractContextManager[str]:
        """Give the address of a database without any table."""

    def migrated(self) -> AbstractContextManager[str]:
        """Give the address of a database with today's schema."""


class SqliteDatabases:
    """A file for each test."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._numbers = count(1)

    @contextmanager
    def empty(self) -> Iterator[str]:
        yield _sqlite_url(self._next_file())

    @contextmanager
    def migrated(self) -> Iterator[str]:
        file = self._next_file()
        shutil.copyfile(self._template, file)
        yield _sqlite_url(file)

    @cached_property
    def _template(self) -> Path:
        file = self._folder / "template.sqlite3"
        _migrate(_sqlite_url(file))
        return file

    def _next_file(self) -> Path:
        folder = self._folder / str(next(self._numbers))
        folder.mkdir()
        return folder / "mailer.sqlite3"


class PostgresDatabases:
    """A database of the one server for each test, dropped after it."""

    def __init__(self, server: PostgresServer) -> None:
        self._server = server
        self._numbers = count(1)

    def empty(self) -> AbstractContextManager[str]:
        return self._database("template1")

    def migrated(self) -> AbstractContextManager[str]:
        return self._database(self._template)

    @cached_property
    def _template(self) -> str:
        _migrate(self._server.create("template_mailer"))
        return "template_mailer"

    @contextmanager
    def _database(self, template: str) -> Iterator[str]:
        name = f"mailer_{next(self._numbers)}"
        yield self._server.create(name, template)
        self._server.drop(name)


def _sqlite_url(file: Path) -> str:
    return f"sqlite:///{file}"


def _migrate(url: str) -> None:
    engine = create_engine(url)
    migrate(engine)
    engine.dispose()
