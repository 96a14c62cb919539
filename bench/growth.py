"""The figures with more and more mails in the queue."""

import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from shutil import disk_usage
from statistics import median
from typing import Any

from flask import Flask
from flask_mail import Message

from bench import mail
from bench.contenders import Calls, Place, used_memory
from bench.contenders.ours import Ours
from bench.figures import Bound, Figure, Section, at_most, ratio
from bench.latency import Line, one_by_one
from bench.plan import Plan
from bench.program import Memory, Missing, Program
from bench.programs.message import make_message
from bench.programs.ours import create_app
from bench.rounds import Rounds, alternate
from bench.sink import Flow, running_sink
from mailer import Mailer

#: The queue is filled with mails of this many recipients, which one call queues.
_RECIPIENTS = [f"reader{number}@example.com" for number in range(1000)]
_SLICE = 100
_SLICES = 5  # as many as the smallest queue has
_CLAIM_ROUNDS = 4
_ENQUEUED = 300
_DELIVERED = 1000
_ARRIVALS = 40
_TOMORROW = timedelta(days=1)
_BYTES_A_MAIL = 2000  # on disk, at most


@dataclass(frozen=True, slots=True)
class Depth:
    """The measurements at one number of queued mails."""

    claim: float
    enqueue: Calls
    flow: Flow
    arrivals: Calls  # of one mail, while all others are due tomorrow
    worker: Memory
    redis_bytes: int


def measure(plan: Plan) -> Iterator[Section]:
    for ours in plan.ours:
        done = alternate(
            f"growth, {ours.key}",
            {str(depth): _at(ours, depth) for depth in plan.depths},
            repeats=1,
        )
        grown = {int(depth): rounds for depth, rounds in done.items()}
        filled = f"filled with mails of {len(_RECIPIENTS)} recipients"
        yield Section(
            f"Growth: {ours.title}",
            f"ratio: this line / the smallest queue; {filled}",
            [figure for kind in _KINDS for figure in kind.figures(ours.key, grown)],
        )


# --- one number of queued mails -----------------------------------------------------------------


def _at(ours: Ours, depth: int) -> Callable[[Path], Depth]:
    def measured(folder: Path) -> Depth:
        ours.require()
        _require_disk(folder, 2 * depth * _BYTES_A_MAIL)
        with _services(ours, folder / "due") as place:
            app = create_app(place.env)
            with app.app_context():
                fill(depth)
                claim = median(_claims(app))
                enqueue = Calls([_timed(make_message()) for _ in range(_ENQUEUED)])
            with Program(ours.worker(), place.folder / "worker.log", env=place.env) as worker:
                flow = place.sink.wait_for(
                    min(_DELIVERED, depth), check=worker.check, then_more=True
                )
                memory = worker.memory()
            assert place.redis
            redis_bytes = used_memory(place.redis)
        with _services(ours, folder / "scheduled") as place:
            with create_app(place.env).app_context():
                fill(depth, send_at=_TOMORROW)
            with Program(ours.worker(), place.folder / "worker.log", env=place.env) as worker:
                arrivals = one_by_one(Line(place, worker), _ARRIVALS)
        return Depth(claim, enqueue, flow, arrivals, memory, redis_bytes)

    return measured


@contextmanager
def _services(ours: Ours, folder: Path) -> Iterator[Place]:
    folder.mkdir()
    with running_sink(folder) as sink, ours.services(folder, sink) as place:
        yield place


def _require_disk(folder: Path, needed: int) -> None:
    free = disk_usage(folder).free
    if free < needed:
        raise Missing(f"{needed / 1e9:.1f} GB of disk needed, {free / 1e9:.1f} GB free")


def fill(depth: int, **options: Any) -> None:
    """Queue mail to this many recipients, with options of `enqueue()`."""
    left = depth
    while left > 0:
        first, *others = _RECIPIENTS[:left]
        message = Message(
            mail.SUBJECT, [first], mail.TEXT, mail.HTML, sender=mail.SENDER, bcc=[*others]
        )
        Mailer().enqueue(message, **options)
        left -= 1 + len(others)


def _claims(app: Flask) -> list[float]:
    """Return the seconds of each claim, and release the claimed mails."""
    store = app.extensions["mailer"].store
    times = []
    for _ in range(_CLAIM_ROUNDS):
        for _ in range(_SLICES):
            now = time.time()
            started = time.perf_counter()
            store.claim_due(_SLICE, token=secrets.token_hex(8), now=now, lease_until=now)
            times.append(time.perf_counter() - started)
        store.requeue_lapsed_claims(time.time())
    return times


def _timed(message: Message) -> float:
    started = time.perf_counter()
    Mailer().enqueue(message)
    return time.perf_counter() - started


# --- figures ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Kind:
    """A figure that is measured at each number of queued mails."""

    key: str
    title: str
    unit: str
    value: Callable[[Depth], float]
    p99: Callable[[Depth], float] | None = None
    bound: Bound | None = None  # with a million queued

    def figures(self, of: str, grown: Mapping[int, Rounds[Depth]]) -> Iterator[Figure]:
        first = next(iter(grown.values())).median(self.value)
        for depth, rounds in grown.items():
            value = rounds.median(self.value)
            yield Figure(
                key=f"growth.{of}.{self.key}.{depth}",
                title=f"{self.title}, {depth:,} queued",
                value=value,
                p99=rounds.median(self.p99) if self.p99 else None,
                unit=self.unit,
                ratio=ratio(value, first),
                bound=self.bound if depth == _MILLION else None,
                why_none=rounds.why_none,
            )


_MILLION = 1_000_000
_KINDS = (
    Kind(
        "claim",
        f"claim of {_SLICE} mails",
        "ms",
        lambda at: 1000 * at.claim,
        bound=at_most(2, aim=2, of_ratio=True),
    ),
    Kind(
        "enqueue",
        "enqueue()",
        "ms",
        lambda at: 1000 * at.enqueue.p50,
        lambda at: 1000 * at.enqueue.p99,
    ),
    Kind("delivered", f"delivery of {_DELIVERED} mails", "mails/s", lambda at: at.flow.per_second),
    Kind(
        "arrival",
        "latency when idle",
        "ms",
        lambda at: 1000 * at.arrivals.p50,
        lambda at: 1000 * at.arrivals.p99,
    ),
    Kind(
        "worker",
        "memory of a worker",
        "MB",
        lambda at: at.worker.largest_process / 1e6,
        bound=at_most(150, aim=90),
    ),
    Kind(
        "redis", "memory of Redis", "MB", lambda at: at.redis_bytes / 1e6, bound=at_most(10, aim=5)
    ),
)
