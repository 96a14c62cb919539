"""Latency from the call to the relay, and the time of a call while Redis is unavailable.

Broker, worker process and SMTP server are real, and SQLite does an fsync for each commit.
"""

import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from flask import Flask

from bench.contenders import Calls, Place
from bench.contenders.ours import OursOnSqlite
from bench.figures import Bound, Figure, Section, at_most
from bench.plan import Plan
from bench.program import Failed, Program
from bench.programs.message import make_message
from bench.programs.ours import create_app
from bench.rounds import Rounds, alternate
from bench.sink import running_sink
from mailer import Mailer
from tests.services.broker import RedisServer

_BURST = 60
_LOOK_EVERY = 0.0002
_LONGEST_WAIT = 60.0

Measurement = Callable[[Path], Calls]


def measure(plan: Plan) -> Iterator[Section]:
    ours = OursOnSqlite(plan.worker)
    few = max(2, plan.calls // 30)
    measurements = {
        "idle": _arriving(ours, lambda line: one_by_one(line, plan.calls // 3)),
        "burst": _arriving(
            ours, lambda line: Calls([line.arrive_after_burst() for _ in range(few)])
        ),
        "lost": _arriving(ours, lambda line: _found_by_the_sweep(line, few)),
        "frozen": _queueing(ours, RedisServer.pause, plan.calls),
        "down": _queueing(ours, RedisServer.stop, plan.calls),
    }
    done = alternate("latency", measurements, repeats=1)
    idle = [
        _figure(
            "idle-p50",
            "median, one mail at a time",
            done["idle"],
            lambda calls: calls.p50,
            at_most(20, aim=8),
        ),
        _figure(
            "idle-p99",
            "99 of 100, one mail at a time",
            done["idle"],
            lambda calls: calls.p99,
            at_most(100, aim=30),
        ),
        _figure(
            "burst", f"median, right after {_BURST} mails", done["burst"], lambda calls: calls.p50
        ),
        _figure(
            "lost", "median, ring lost: found by the sweep", done["lost"], lambda calls: calls.p50
        ),
    ]
    yield Section("Latency when idle", "from enqueue() on SQLite to the relay's reply", idle)
    without_redis = [
        _figure(
            "frozen-first", "frozen: the first call", done["frozen"], lambda calls: calls.times[0]
        ),
        _figure("frozen", "frozen: median", done["frozen"], lambda calls: calls.p50),
        _figure("down-first", "down: the first call", done["down"], lambda calls: calls.times[0]),
        _figure("down", "down: median", done["down"], lambda calls: calls.p50),
    ]
    yield Section("Without Redis", "time of enqueue() on SQLite", without_redis)


def _figure(
    key: str,
    title: str,
    rounds: Rounds[Calls],
    seconds: Callable[[Calls], float],
    bound: Bound | None = None,
) -> Figure:
    value = rounds.median(lambda calls: 1000 * seconds(calls))
    return Figure(
        key=f"latency.{key}",
        title=title,
        value=value,
        unit="ms",
        bound=bound,
        why_none=rounds.why_none,
    )


def _arriving(ours: OursOnSqlite, calls: "Callable[[Line], Calls]") -> Measurement:
    def measured(folder: Path) -> Calls:
        with (
            running_sink(folder) as sink,
            ours.services(folder, sink) as place,
            Program(ours.worker(), folder / "worker.log", env=place.env) as worker,
        ):
            return calls(Line(place, worker))

    return measured


def _queueing(
    ours: OursOnSqlite, disturb: Callable[[RedisServer], None], mails: int
) -> Measurement:
    def measured(folder: Path) -> Calls:
        with running_sink(folder) as sink, ours.services(folder, sink) as place:
            app = create_app(place.env)
            _enqueue(app)
            assert place.redis
            disturb(place.redis)
            return Calls([_enqueue(app) for _ in range(mails)])

    return measured


class Line:
    """One mail at a time from a request to the sink."""

    def __init__(self, place: Place, worker: Program) -> None:
        self._sink = place.sink
        self._worker = worker
        self._app = create_app(place.env)
        self._deaf_app = create_app(
            {**place.env, "MAILER_REDIS_URL": f"unix://{place.folder}/nowhere.sock"}
        )
        self.arrive()  # wait for the start of the worker

    def arrive(self, mails: int = 1, *, after: float = 0.0, deaf: bool = False) -> float:
        """Return the seconds from the first call to the last arrival."""
        app = self._deaf_app if deaf else self._app
        expected = self._sink.count + mails
        time.sleep(after)
        started = time.perf_counter()
        for _ in range(mails):
            _enqueue(app)
        while self._sink.count < expected:
            self._worker.check()
            if time.perf_counter() - started > _LONGEST_WAIT:
                raise Failed(
                    f"a mail did not arrive within {_LONGEST_WAIT:.0f} s:"
                    f" {self._worker.last_words()}"
                )
            time.sleep(_LOOK_EVERY)
        return time.perf_counter() - started

    def arrive_after_burst(self) -> float:
        self.arrive(_BURST)
        return self.arrive()


def one_by_one(line: Line, mails: int) -> Calls:
    """Vary the pauses, so that no mail follows the rhythm of a timer."""
    pauses = [random.uniform(0.02, 0.12) for _ in range(mails)]  # noqa: S311 -- no secret
    return Calls([line.arrive(after=pause) for pause in pauses])


def _found_by_the_sweep(line: Line, mails: int) -> Calls:
    """Queue at any moment between two sweeps, when the worker has stopped looking for more."""
    pauses = [random.uniform(0.2, 1.2) for _ in range(mails)]  # noqa: S311 -- no secret
    return Calls([line.arrive(after=pause, deaf=True) for pause in pauses])


def _enqueue(app: Flask) -> float:
    message = make_message()
    with app.app_context():
        started = time.perf_counter()
        Mailer().enqueue(message)
        return time.perf_counter() - started
