"""The import of a bulk send: its speed beside the plainest way to write its rows, its memory."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, Table, insert, select

from bench import mail
from bench.contenders import run_once
from bench.contenders.ours import Ours, program
from bench.figures import Figure, Section, at_least, at_most, ratio
from bench.plan import Plan
from bench.program import Failed
from bench.programs.ours import create_app, send_bulk
from bench.rounds import Rounds, alternate
from bench.sink import running_sink
from mailer import schema
from mailer.store import Store

_BOUND = at_least(0.35, aim=0.6, of_ratio=True)
_MEMORY_BOUND = at_most(1.2, aim=1, of_ratio=True)
_ROWS_OF_A_COMMIT = 1000
#: The memory is compared with that of an import with so many times fewer rows.
_FEWER = 100
#: What an import writes once, and what it writes for each row.
_ONCE, _EACH = (schema.message, schema.bulk), (schema.delivery, schema.bulk_recipient)


@dataclass(frozen=True, slots=True)
class Import:
    """The seconds that an import took, and the plain way."""

    rows: int
    seconds: float
    plain_seconds: float


def measure(plan: Plan) -> Iterator[Section]:
    yield _speed(plan)
    yield _memory(plan)


# --- speed --------------------------------------------------------------------------------------


def _speed(plan: Plan) -> Section:
    imports: dict[str, Callable[[Path], Import]] = {
        one.key: partial(_measure, one, plan.mails) for one in plan.ours
    }
    done = alternate("bulk", imports, plan.repeats)
    figures = [_figure(one, done[one.key]) for one in plan.ours]
    return Section(
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
        bulk = send_bulk(rows, send_at=timedelta(hours=1))
        seconds = time.perf_counter() - began
        if (accepted := bulk.progress().accepted) != rows:
            raise Failed(f"{accepted} of {rows} rows were accepted")
    app.extensions["mailer"].store.engine.dispose()
    return seconds


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


# --- memory -------------------------------------------------------------------------------------


def _memory(plan: Plan) -> Section:
    many = max(plan.depths)
    few = many // _FEWER
    imports = {
        f"{one.key}.{rows}": _imported(one, rows) for one in plan.ours for rows in (few, many)
    }
    done = alternate("bulk, memory", imports, repeats=1)
    return Section(
        "Memory of the importing process",
        f"its peak; ratio: {many:,} / {few:,} recipients",
        [_peak(one, done[f"{one.key}.{few}"], done[f"{one.key}.{many}"]) for one in plan.ours],
    )


def _imported(ours: Ours, rows: int) -> Callable[[Path], float]:
    def measured(folder: Path) -> float:
        """Return the peak in bytes."""
        ours.require()
        with running_sink(folder) as sink, ours.services(folder, sink) as place:
            return run_once(program("send_bulk_later"), place, rows).peak

    return measured


def _peak(ours: Ours, few: Rounds[float], many: Rounds[float]) -> Figure:
    peak = many.median(lambda peak: peak / 1e6)
    return Figure(
        key=f"bulk.memory.{ours.key.removeprefix('ours-')}",
        title=f"send_bulk(): {ours.title}",
        value=peak,
        unit="MB",
        ratio=ratio(peak, few.median(lambda peak: peak / 1e6)),
        bound=_MEMORY_BOUND,
        why_none=many.why_none or few.why_none,
    )
