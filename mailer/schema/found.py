"""The tables of Mailer that a database has, and whether this code can use them."""

from dataclasses import dataclass

from sqlalchemy import Connection, inspect, text

from mailer.errors import SchemaMismatch

#: "MAIL" in the header of a SQLite file, and a sequence in PostgreSQL: they outlast dropped tables.
SQLITE_MARK = 0x4D41494C
POSTGRESQL_MARK = "mailer_was_here"

CURE = (
    " Restore them from a backup, the mail in them is gone; 'flask mail migrate --new-tables' makes"
    " new, empty ones. If a migration of the application dropped them, take the drop_table lines"
    " out of it first (see docs/flask-sqlalchemy.md)."
)
GONE = (
    f"The tables of Mailer are gone: they were in this database, and somebody dropped them.{CURE}"
)


@dataclass(frozen=True, slots=True)
class Found:
    """The tables of a database."""

    revision: str | None
    #: The oldest revision whose code can use these tables; None before 0005.
    readable_from: str | None
    missing: frozenset[str]  #: tables that this code needs
    is_marked: bool  #: the database once had the tables

    @property
    def has_vanished(self) -> bool:
        """Return whether somebody dropped the tables."""
        return self.is_marked and self.revision is None

    def serves(self, revision: str) -> bool:
        """Return whether code of this revision can use the tables."""
        if self.revision is None or self.revision < revision:
            return False
        return self.revision == revision or (
            self.readable_from is not None and self.readable_from <= revision
        )


def look(connection: Connection, needed: frozenset[str], version_table: str) -> Found:
    """Return the tables of a database."""
    names = frozenset(inspect(connection).get_table_names())
    if version_table not in names:
        return Found(None, None, needed - names, _is_marked(connection))
    query = text(f"SELECT * FROM {version_table}")  # noqa: S608 -- a constant
    rows = connection.execute(query).mappings().all()
    row = rows[0] if rows else {}
    return Found(row.get("version_num"), row.get("readable_from"), needed - names, is_marked=False)


def check(found: Found, revision: str) -> None:
    """Raise SchemaMismatch for tables that code of this revision can't use."""
    if found.has_vanished:
        raise SchemaMismatch(GONE)
    if found.revision is None:
        raise SchemaMismatch("The database has no tables of Mailer yet: run 'flask mail migrate'.")
    if found.revision < revision:
        raise SchemaMismatch(
            f"The tables of Mailer are at {found.revision}, this version needs {revision}: run"
            " 'flask mail migrate'."
        )
    if not found.serves(revision):
        raise SchemaMismatch(too_new(found.revision, revision))
    if found.revision == revision and found.missing:
        raise SchemaMismatch(
            f"Somebody dropped tables of Mailer: {', '.join(sorted(found.missing))} is"
            f" missing.{CURE}"
        )


def too_new(revision: str, known: str) -> str:
    """Return the message about tables of a newer version."""
    return (
        f"The tables of Mailer are at {revision}, this version knows {known} at most:"
        " install the newer version, or go back with its 'flask mail migrate --to'."
    )


def _is_marked(connection: Connection) -> bool:
    if connection.dialect.name == "sqlite":
        return bool(connection.scalar(text("PRAGMA application_id")) == SQLITE_MARK)
    return connection.scalar(text(f"SELECT to_regclass('{POSTGRESQL_MARK}')")) is not None
