"""The import of a bulk send, beside the plainest way to write the same rows."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, Table, insert, select

from bench import mail
from bench.contenders.ours import Ours
from bench.figures import Figure, Section, at_least
from bench.plan import Plan
from bench.program import Failed
from bench.programs.ours import ITEMS, create_app
from bench.rounds import Rounds, alternate
from mailer import Mailer, schema
from mailer.store import Store

_BOUND = at_least(0.35, aim=0.6, of_ratio=True)
_ROWS_OF_A_COMMIT = 1000
#: What an import writes once, and what it writes for each row.
_ONCE, _EACH = (schema.message, schema.bulk), (schema.delivery, schema.bulk_recipient)


@dataclass(frozen=True, slots=True)
class Import:
    """The seconds that an import took, and the plain way."""

    rows: int
    seconds: float
    plain_seconds: float


def measure(plan: Plan) -> Iterator[Section]:
    imports: dict[str, Callable[[Path], Import]] = {
        one.key: partial(_measure, one, plan.mails) for one in plan.ours
    }
    done = alternate("bulk", imports, plan.repeats)
    figures = [_figure(one, done[one.key]) for one in plan.ours]
    yield Section(
        "Import of a bulk send",
        f"rows a second; ratio: to executemany or COPY, {_ROWS_OF_A_COMMIT} rows a commit",
        figures,
    )


def _figure(ours: Ours, rounds: Rounds[Import]) -> Figure:
    return Figure(
        key=f"bulk.import.{ours.key.removeprefix('ours-')}",
        title=f"send_bulk(): {ours.title}",
        value=rounds.median(_rate),
        unit="rows/s",
        ratio=rounds.median(lambda one: one.plain_seconds / one.seconds),
        bound=_BOUND,
        why_none=rounds.why_none,
        samples=rounds.samples(_rate),
    )


def _rate(one: Import) -> float:
    return one.rows / one.seconds


def _measure(ours: Ours, rows: int, folder: Path) -> Import:
    """Import the rows into one database, and copy what is stored into another one."""
    ours.require()
    places = [folder / "import", folder / "plain"]
    for place in places:
        place.mkdir(mode=0o755)
    with ours.running_database(places[0]) as first, ours.running_database(places[1]) as second:
        stores = [Store(url) for url in (first, second)]
        try:
            for store in stores:
                store.migrate()
            seconds = _import(first, rows)
            plain_seconds = _copy(stores[0].engine, stores[1].engine)
        finally:
            for store in stores:
                store.engine.dispose()
    return Import(rows, seconds, plain_seconds)


def _import(url: str, rows: int) -> float:
    app = create_app({"MAILER_DATABASE_URL": url, "MAIL_DEFAULT_SENDER": mail.SENDER})
    with app.app_context():
        began = time.perf_counter()
        bulk = Mailer().send_bulk(
            mail.SUBJECT,
            "mail/order",
            _recipients(rows),
            shared={"items": ITEMS},
            send_at=timedelta(hours=1),
        )
        seconds = time.perf_counter() - began
        if (accepted := bulk.progress().accepted) != rows:
            raise Failed(f"{accepted} of {rows} rows were accepted")
    app.extensions["mailer"].store.engine.dispose()
    return seconds


def _recipients(rows: int) -> Iterator[tuple[str, dict[str, object]]]:
    for number in range(rows):
        link = f"https://shop.example.com/readers/{number}"
        context = {"name": f"Reader {number}", "number": number, "link": link}
        yield f"reader{number}@mail{number % 50}.example.com", context


def _copy(source: Engine, target: Engine) -> float:
    """Return the seconds in which the rows of an import are written with nothing else."""
    with source.connect() as connection:
        once, each = [[_rows(connection, table) for table in tables] for tables in (_ONCE, _EACH)]
    with target.begin() as connection:
        for table, rows in zip(_ONCE, once, strict=True):
            connection.execute(insert(table), [row._asdict() for row in rows])
    raw = target.raw_connection()
    cursor, total = raw.cursor(), len(each[0])
    began = time.perf_counter()
    for start in range(0, total, _ROWS_OF_A_COMMIT):
        if target.dialect.name == "sqlite":
            cursor.execute("BEGIN IMMEDIATE")
        for table, rows in zip(_EACH, each, strict=True):
            _write(cursor, table, rows[start : start + _ROWS_OF_A_COMMIT])
        raw.commit()
    seconds = time.perf_counter() - began
    cursor.close()
    raw.close()
    return seconds


def _rows(connection: Connection, table: Table) -> Sequence[Any]:
    [key, *_others] = table.primary_key.columns
    return connection.execute(select(table).order_by(key)).all()


def _write(cursor: Any, table: Table, rows: Sequence[Any]) -> None:
    names = ", ".join(f'"{column.name}"' for column in table.columns)
    if not hasattr(cursor, "copy"):
        marks = ", ".join("?" * len(table.columns))
        statement = f"INSERT INTO {table.name} ({names}) VALUES ({marks})"  # noqa: S608 -- names
        cursor.executemany(statement, [tuple(row) for row in rows])
        return
    with cursor.copy(f"COPY {table.name} ({names}) FROM STDIN") as copy:
        for row in rows:
            copy.write_row(row)
