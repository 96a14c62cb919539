"""The floor of a queue in SQL: COUNT transactions, each with the two rows of a mail.

The rows are those of a mail that Mailer has queued before, written by the driver alone, with the
same fsync. `COUNT` is the only argument.
"""

import secrets
from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import JSON, Engine, Table, Text, cast, select

from bench import producer
from bench.programs.message import make_message
from bench.programs.ours import create_app
from mailer import Mailer, schema

Rows = tuple[tuple[Any, ...], tuple[Any, ...]]


def main() -> None:
    app = create_app()
    with app.app_context():
        receipt = Mailer().enqueue(make_message())
    engine: Engine = app.extensions["mailer"].store.engine
    message, delivery = schema.message, schema.delivery
    ready = (
        _row(engine, message, message.c.id == receipt.id),
        _row(engine, delivery, delivery.c.mail_id == receipt.id),
    )
    write = _writer(engine, _insert(engine, message), _insert(engine, delivery))
    producer.run(lambda: _renamed(*ready), write)


def _columns(table: Table) -> list[str]:
    """Return the columns that the database does not fill in itself."""
    return [column.name for column in table.columns if column.autoincrement is not True]


def _row(engine: Engine, table: Table, condition: Any) -> tuple[Any, ...]:
    columns = [table.c[name] for name in _columns(table)]
    as_stored = [cast(one, Text) if isinstance(one.type, JSON) else one for one in columns]
    with engine.connect() as connection:
        return tuple(connection.execute(select(*as_stored).where(condition)).one())


def _insert(engine: Engine, table: Table) -> str:
    names = _columns(table)
    marks = ", ".join(["?" if engine.dialect.name == "sqlite" else "%s"] * len(names))
    quoted = ", ".join(f'"{name}"' for name in names)
    return f"INSERT INTO {table.name} ({quoted}) VALUES ({marks})"  # noqa: S608 -- names


def _renamed(message: Sequence[Any], delivery: Sequence[Any]) -> Rows:
    """Return the rows with another id of the mail, which is the first column of both."""
    mail_id = secrets.token_hex(16)
    return (mail_id, *message[1:]), (mail_id, *delivery[1:])


def _writer(engine: Engine, message: str, delivery: str) -> Callable[[Rows], None]:
    """Return the plainest way to write both rows with the driver."""
    connection = engine.raw_connection()
    cursor, begins = connection.cursor(), engine.dialect.name == "sqlite"

    def write(rows: Rows) -> None:
        if begins:
            cursor.execute("BEGIN IMMEDIATE")
        cursor.execute(message, rows[0])
        cursor.execute(delivery, rows[1])
        connection.commit()

    return write


if __name__ == "__main__":
    main()
