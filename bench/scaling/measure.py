"""What a mail costs on PostgreSQL: processor time, statements, bytes of WAL, and mails a second.

`python -m bench.scaling.measure` writes bench/results/scaling.json. All mail is queued first, and
paused until all workers are there.
"""

import argparse
import json
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import psycopg

from bench import distance, machine
from bench.contenders import run_producer
from bench.contenders.ours import WorkerOptions
from bench.program import Program, wait_until
from bench.programs.message import make_message
from bench.programs.ours import create_app
from bench.report import RESULTS
from bench.rounds import tell
from bench.scaling.postgres import CountedPostgres, processor_seconds, processor_waits, row, value
from bench.sink import Sink, running_sink
from mailer import Mailer

FILE = RESULTS / "scaling.json"
_LONGEST_START = 120.0
#: They give each copy an id of its own; those of mails sort by time, and keep their length.
_COPIES = (
    """
INSERT INTO mailer_message
SELECT (jsonb_populate_record(NULL::mailer_message, to_jsonb(one) || jsonb_build_object(
    'id', substr(one.id, 1, 24) || lpad(to_hex(number), 8, '0'),
    'message_id', number || one.message_id))).*
FROM (SELECT * FROM mailer_message) AS one, generate_series(2, {mails}) AS number
""",
    """
INSERT INTO mailer_delivery
SELECT (jsonb_populate_record(NULL::mailer_delivery, to_jsonb(one) || jsonb_build_object(
    'id', one.id + number,
    'mail_id', substr(one.mail_id, 1, 24) || lpad(to_hex(number), 8, '0')))).*
FROM (SELECT * FROM mailer_delivery) AS one, generate_series(2, {mails}) AS number
""",
)

_STATEMENTS = """
SELECT COALESCE(sum(calls), 0) FROM pg_stat_statements
WHERE query !~* '^(begin|commit|rollback|set|select set_config)'
"""
_COMMITS = "SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()"
_WAL = "SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')"
_SYNCS = "SELECT wal_sync, wal_sync_time FROM pg_stat_wal"


@dataclass(frozen=True, slots=True)
class Costs:
    """Sums at one moment, or per mail."""

    postgres_cpu: float = 0.0  #: seconds
    postgres_waits: float = 0.0  #: seconds for which its processes waited for a processor
    statements: float = 0.0
    commits: float = 0.0
    wal_bytes: float = 0.0
    syncs: float = 0.0  #: of the WAL
    sync_ms: float = 0.0  #: of all syncs

    @classmethod
    def now(cls, session: psycopg.Connection) -> "Costs":
        syncs, sync_ms = row(session, _SYNCS)
        return cls(
            postgres_cpu=processor_seconds(session),
            postgres_waits=processor_waits(session),
            statements=value(session, _STATEMENTS),
            commits=value(session, _COMMITS),
            wal_bytes=value(session, _WAL),
            syncs=float(syncs),
            sync_ms=float(sync_ms),
        )

    def per_mail(self, until: "Costs", mails: int) -> "Costs":
        before, after = asdict(self), asdict(until)
        return Costs(**{name: (after[name] - before[name]) / mails for name in after})


@dataclass(frozen=True, slots=True)
class Setup:
    """A number of workers, each with so many slots, and a relay."""

    key: str
    workers: int
    pool: str
    slots: int
    far: bool = False  #: the relay is 30 ms away
    signs: bool = False  #: with DKIM, RSA of 2048 bits


SETUPS = [
    *(Setup(f"near-{workers}", workers, "prefork", 1) for workers in (1, 2, 4)),
    *(Setup(f"far-{workers}", workers, "threads", 8, far=True) for workers in (1, 2)),
    Setup("signed-1", 1, "prefork", 1, signs=True),
]


def measure_queueing(mails: int, folder: Path) -> dict[str, float]:
    """Return the costs per mail of `enqueue()`, one mail in a transaction of its own."""
    ours = CountedPostgres(WorkerOptions())
    ours.require()
    with running_sink(folder) as sink, ours.services(folder, sink) as place:
        before = Costs.now(ours.session)
        calls = run_producer(ours.producer(), place, mails).p50
        costs = before.per_mail(Costs.now(ours.session), mails)
        kept = value(ours.session, "SELECT pg_database_size(current_database())")
        ours.session.execute("TRUNCATE mailer_message CASCADE")
        empty = value(ours.session, "SELECT pg_database_size(current_database())")
    return {**asdict(costs), "call_seconds": calls, "kept_bytes": (kept - empty) / mails}


def measure_delivery(setup: Setup, mails: int, folder: Path) -> dict[str, float]:
    """Return the costs per mail of a delivery, and the mails a second."""
    ours = CountedPostgres(WorkerOptions(setup.pool, setup.slots))
    ours.require()
    with (
        _relay(setup, folder) as relay,
        ours.services(folder, relay) as plain,
        ExitStack() as stack,
    ):
        place = replace(plain, env={**plain.env, **_signing(setup, folder)})
        app = create_app(place.env)
        with app.app_context():
            Mailer().pause(reason="bench")
            _queue(ours.session, mails)
            ours.session.execute("VACUUM ANALYZE")
            workers = [
                stack.enter_context(
                    Program(
                        [*ours.worker(), "--hostname", f"worker{number}@bench"],
                        folder / f"worker{number}.log",
                        env=place.env,
                    )
                )
                for number in range(setup.workers)
            ]
            wait_until(lambda: _present(ours.session) == setup.workers, timeout=_LONGEST_START)
            Mailer().resume()

        def check() -> None:
            for worker in workers:
                worker.check()

        relay.wait_for(1, check=check, then_more=True)
        first, before = relay.count, Costs.now(ours.session)
        worker_cpu = sum(worker.cpu_seconds() for worker in workers)
        worker_waits = sum(worker.waiting_seconds() for worker in workers)
        flow = relay.wait_for(mails, check=check)
        worker_cpu = sum(worker.cpu_seconds() for worker in workers) - worker_cpu
        worker_waits = sum(worker.waiting_seconds() for worker in workers) - worker_waits
        costs = before.per_mail(Costs.now(ours.session), mails - first)
        return {
            **asdict(costs),
            "worker_cpu": worker_cpu / (mails - first),
            "worker_waits": worker_waits / (mails - first),
            "mails_per_second": flow.per_second,
        }


def _queue(session: psycopg.Connection, mails: int) -> None:
    """Queue a mail, and copy it, which takes less time than as many calls."""
    Mailer().enqueue(make_message())
    for copy in _COPIES:
        session.execute(copy.format(mails=mails).encode())


def _present(session: psycopg.Connection) -> int:
    return int(value(session, "SELECT count(*) FROM mailer_worker"))


@contextmanager
def _relay(setup: Setup, folder: Path) -> Iterator[Sink]:
    with distance.running_relay(folder) if setup.far else running_sink(folder) as relay:
        yield relay


def _signing(setup: Setup, folder: Path) -> Mapping[str, str]:
    if not setup.signs:
        return {}
    key = folder / "dkim.pem"
    command = ["openssl", "genrsa", "-out", str(key), "2048"]
    subprocess.run(command, check=True, capture_output=True)
    keys = [{"domain": "example.com", "selector": "bench", "key_file": str(key)}]
    return {"MAILER_DKIM_KEYS": json.dumps(keys)}


def medians(rounds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: median(one[name] for one in rounds) for name in rounds[0]}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.scaling.measure", description=__doc__)
    parser.add_argument("--mails", type=int, default=10_000, help="delivered in a round")
    parser.add_argument("--calls", type=int, default=1000, help="of enqueue() in a round")
    parser.add_argument("--repeats", type=int, default=3, help="rounds, of which medians count")
    parser.add_argument("--out", type=Path, default=FILE)
    options = parser.parse_args()
    machine.work_on_disk()
    load = machine.load()
    queueing = []
    deliveries: dict[str, list[dict[str, float]]] = {setup.key: [] for setup in SETUPS}
    for number in range(options.repeats):
        for setup in [None, *SETUPS]:
            with TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as folder:
                tell(f"{number + 1}/{options.repeats} {setup.key if setup else 'queueing'}")
                if setup is None:
                    queueing.append(measure_queueing(options.calls, Path(folder)))
                else:
                    done = measure_delivery(setup, options.mails, Path(folder))
                    deliveries[setup.key].append(done)
                    tell(f"  {done}")
    result = {
        "taken": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "machine": machine.describe(),
        "load": [load, machine.load()],
        "mails": options.mails,
        "repeats": options.repeats,
        "round_trip": distance.ROUND_TRIP,
        "queueing": medians(queueing),
        "delivery": {
            setup.key: {**asdict(setup), **medians(deliveries[setup.key])} for setup in SETUPS
        },
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
