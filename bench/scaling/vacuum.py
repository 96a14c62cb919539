"""Dead rows, sizes of indexes and vacuum while mail flows at a steady rate, on PostgreSQL.

`python -m bench.scaling.vacuum` runs for an hour with the defaults of PostgreSQL, for another one
with deploy/postgresql/autovacuum.sql, and for a third one with these and a transaction that stays
open. The tables are filled with finished mail first, and as much is purged as is queued.
"""

import argparse
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import psycopg
from flask import Flask
from sqlalchemy import Engine, create_engine

from bench import machine
from bench.contenders import Place
from bench.contenders.ours import WorkerOptions
from bench.program import PROJECT, Program
from bench.programs.message import make_message
from bench.programs.ours import create_app
from bench.report import RESULTS
from bench.rounds import tell
from bench.scaling.postgres import CountedPostgres, row, value
from bench.sink import running_sink
from mailer import Mailer
from mailer.celery.app import PURGE

FILE = RESULTS / "vacuum.json"
SETTINGS = PROJECT / "deploy" / "postgresql" / "autovacuum.sql"
RUNS = {
    "default": "PostgreSQL's defaults",
    "tuned": "autovacuum.sql",
    "held": "autovacuum.sql, and a transaction that stays open",
}
INDEXES = {
    "due": "mailer_delivery_due",
    "leased": "mailer_delivery_leased",
    "finished": "mailer_delivery_finished",
    "mail": "ix_mailer_delivery_mail_id",
    "key": "mailer_delivery_pkey",
}
_KEEP_DAYS = 1.0
_STEP_SECONDS = 0.1
_SAMPLE_SECONDS = 10.0
_PURGE_SECONDS = 20.0
_RECIPIENTS = 10  # of each mail that is queued, so that queueing takes little of the processor
_MAILS_OF = 1000  # recipients of each mail that is there at the beginning

_FILL = """
WITH mails AS (
    INSERT INTO mailer_message (id, message_id, created_at, sender, subject, "to", cc, reply_to,
        headers, text, alternatives, tags, mail_options, rcpt_options)
    SELECT lpad(n::text, 32, '0'), n || '@bench', 0, 'shop@example.com', 'News', '[]', '[]', '[]',
        '[]', 'News', '[]', '[]', '[]', '[]'
    FROM generate_series(0, ({kept} - 1) / {mails_of}) AS n)
SELECT 1;
INSERT INTO mailer_delivery (mail_id, recipient, domain, status, lane, on_doubt, queued_at,
    attempts, doubts, finished_at, reply, relay, size)
SELECT lpad((n / {mails_of})::text, 32, '0'), 'reader' || n || '@example.com', 'example.com',
    'sent', 2, 'resend', 0, 1, 0, {first} + n / {rate}::float, '250 2.0.0 Ok', 'default', 2000
FROM generate_series(0, {kept} - 1) AS n;
"""
_TABLE = """
SELECT n_dead_tup, autovacuum_count, n_tup_upd, n_tup_hot_upd, pg_table_size(relid)
FROM pg_stat_user_tables WHERE relname = 'mailer_delivery'
"""
_CLAIMS = """
SELECT COALESCE(sum(calls), 0), COALESCE(sum(total_exec_time), 0), COALESCE(sum(rows), 0)
FROM pg_stat_statements
WHERE query LIKE '%WITH due AS MATERIALIZED%'
"""


@dataclass(frozen=True, slots=True)
class Sample:
    """What PostgreSQL says at one moment."""

    seconds: float
    dead_rows: int
    vacuums: int  #: automatic ones of mailer_delivery so far
    updates: int
    hot_updates: int
    table: int  #: bytes
    indexes: Mapping[str, int]  #: bytes
    claims: int  #: so far
    claimed: int  #: mails so far
    claim_ms: float  #: of all claims so far
    queued: int  #: mails so far
    delivered: int  #: mails so far


def claim_times(samples: Sequence[Sample]) -> list[float]:
    """Return the milliseconds of a claim in each interval that had one."""
    return [
        (after.claim_ms - before.claim_ms) / (after.claims - before.claims)
        for before, after in pairwise(samples)
        if after.claims > before.claims
    ]


def quarter(values: Sequence[float], number: int) -> float:
    """Return the median of one of the four quarters."""
    size = max(1, len(values) // 4)
    return median(values[number * size : (number + 1) * size] or values)


# --- a run --------------------------------------------------------------------------------------


def measure(kind: str, *, minutes: float, rate: int, kept: int, folder: Path) -> list[Sample]:
    ours = CountedPostgres(WorkerOptions())
    ours.require()
    with running_sink(folder) as sink, ours.services(folder, sink) as place:
        _fill(ours.session, kept, rate)
        if kind != "default":
            ours.session.execute(SETTINGS.read_bytes())
        env = {**place.env, "MAILER_KEEP_DAYS": str(_KEEP_DAYS)}
        with (
            Program(ours.worker(), folder / "worker.log", env=env) as worker,
            _held(ours, held=kind == "held"),
        ):
            samples = []
            for sample in _flow(ours, place, minutes, rate):
                worker.check()
                samples.append(sample)
                tell(f"  {sample.seconds:5.0f} s  {sample}")
            return samples


def _fill(session: psycopg.Connection, kept: int, rate: int) -> None:
    """Store finished mail: from now on, as much is old enough for the purge as is queued."""
    first = time.time() - 86400 * _KEEP_DAYS
    query = _FILL.format(kept=kept, rate=rate, mails_of=_MAILS_OF, first=first)
    session.execute(query.encode())
    session.execute("VACUUM ANALYZE")
    session.execute("CHECKPOINT")
    session.execute("SELECT pg_stat_reset()")


@contextmanager
def _held(ours: CountedPostgres, *, held: bool) -> Iterator[None]:
    """Keep a transaction open that sees the tables as they are now."""
    if not held:
        yield
        return
    with psycopg.connect(ours.session.info.dsn, host=ours.session.info.host) as connection:
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        connection.execute("SELECT count(*) FROM mailer_pause")
        yield


def _flow(ours: CountedPostgres, place: Place, minutes: float, rate: int) -> Iterator[Sample]:
    """Queue mail at this rate, let workers purge, and take samples."""
    app = create_app({**place.env})
    engine = create_engine(place.env["MAILER_DATABASE_URL"])
    began = time.monotonic()
    queued, sampled, purged = 0, 0.0, 0.0
    while (seconds := time.monotonic() - began) < 60 * minutes:
        # On a machine that is too busy the rate is lower: no transaction is longer for it.
        queued += _queue(app, engine, min(rate, int(seconds * rate) - queued))
        if seconds >= sampled:
            yield _sample(ours.session, seconds, queued, place.sink.count)
            sampled += _SAMPLE_SECONDS
        if seconds >= purged:
            app.extensions["celery"].send_task(PURGE, ignore_result=True)
            purged += _PURGE_SECONDS
        time.sleep(_STEP_SECONDS)
    engine.dispose()


def _queue(app: Flask, engine: Engine, mails: int) -> int:
    """Queue mails in one transaction of the caller. Return the number of mails."""
    full = mails // _RECIPIENTS
    with app.app_context(), engine.begin() as connection:
        for _ in range(full):
            message = make_message()
            message.bcc = [f"reader{number}@example.com" for number in range(1, _RECIPIENTS)]
            Mailer().enqueue(message, connection=connection)
    return full * _RECIPIENTS


def _sample(session: psycopg.Connection, seconds: float, queued: int, delivered: int) -> Sample:
    dead, vacuums, updates, hot, table = row(session, _TABLE)
    claims, claim_ms, claimed = row(session, _CLAIMS)
    indexes = {
        key: int(value(session, f"SELECT pg_relation_size('{name}')"))
        for key, name in INDEXES.items()
    }
    return Sample(
        seconds=seconds,
        dead_rows=dead,
        vacuums=vacuums,
        updates=updates,
        hot_updates=hot,
        table=table,
        indexes=indexes,
        claims=int(claims),
        claimed=int(claimed),
        claim_ms=float(claim_ms),
        queued=queued,
        delivered=delivered,
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.scaling.vacuum", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0, help="the length of each run")
    parser.add_argument("--rate", type=int, default=500, help="mails a second")
    parser.add_argument("--kept", type=int, default=2_000_000, help="finished mails at the start")
    parser.add_argument("--runs", default=",".join(RUNS), help=f"some of {', '.join(RUNS)}")
    parser.add_argument("--out", type=Path, default=FILE)
    options = parser.parse_args()
    machine.work_on_disk()
    done = json.loads(options.out.read_text()) if options.out.exists() else {}
    for kind in options.runs.split(","):
        tell(f"vacuum: {RUNS[kind]}")
        with TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as folder:
            samples = measure(
                kind,
                minutes=options.minutes,
                rate=options.rate,
                kept=options.kept,
                folder=Path(folder),
            )
        done[kind] = {
            "machine": machine.describe(),
            "minutes": options.minutes,
            "rate": options.rate,
            "kept": options.kept,
            "load": machine.load(),
            "samples": [asdict(sample) for sample in samples],
        }
        options.out.write_text(json.dumps(done, indent=None, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
