"""A relay that is 30 ms away, where the number of round trips per mail decides."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from bench.contenders import Direct, Queue, Round, python
from bench.contenders.ours import OursOnSqlite, WorkerOptions
from bench.figures import Bound, Figure, Section, at_least, ratio
from bench.plan import Plan
from bench.program import Program, free_port
from bench.rounds import Rounds, alternate
from bench.sink import Sink

ROUND_TRIP = 0.03
_MANY = 32
#: Shares of the mails of a round, so that each takes some seconds.
_SMTPLIB_SHARE, _ONE_SHARE, _MANY_SHARE = 0.0015, 0.0075, 0.3
_FEWEST = 5

#: Mails a second with one round trip per mail on each connection.
_ARITHMETIC = _MANY / ROUND_TRIP

_ONE_BOUND, _MANY_BOUND = (
    at_least(1.9, aim=3.5, of_ratio=True),
    at_least(0.8, aim=0.95, of_ratio=True),
)


class Smtplib(Direct):
    """`smtplib.sendmail` over one open connection."""

    key = "smtplib"
    title = "smtplib.sendmail(), one connection"

    def producer(self) -> Sequence[str]:
        return python("bench.programs.smtp_client")


def measure(plan: Plan) -> Iterator[Section]:
    one, many = (OursOnSqlite(WorkerOptions("threads", connections)) for connections in (1, _MANY))
    rounds = {
        "smtplib": _far_away(Smtplib(), plan.mails * _SMTPLIB_SHARE),
        "one": _far_away(one, plan.mails * _ONE_SHARE),
        "many": _far_away(many, plan.mails * _MANY_SHARE),
    }
    done = alternate("distance", rounds, plan.repeats)
    smtplib, single, together = (
        done[key].median(lambda delivered: delivered.flow.per_second) for key in rounds
    )
    figures = [
        _figure("smtplib", Smtplib.title, done["smtplib"]),
        _figure("one", "Mailer, one connection", done["one"], ratio(single, smtplib), _ONE_BOUND),
        _figure(
            "many",
            f"Mailer, {_MANY} connections",
            done["many"],
            ratio(together, _ARITHMETIC),
            _MANY_BOUND,
        ),
    ]
    note = (
        "with PIPELINING; ratio: one connection / smtplib,"
        f" {_MANY} connections / {_ARITHMETIC:,.0f} mails/s (one round trip per mail)"
    )
    yield Section(f"A relay {1000 * ROUND_TRIP:.0f} ms away", note, figures)


def _figure(
    key: str,
    title: str,
    rounds: Rounds[Round],
    ratio: float | None = None,
    bound: Bound | None = None,
) -> Figure:
    def speed(one: Round) -> float:
        return one.flow.per_second

    return Figure(
        key=f"distance.{key}",
        title=title,
        value=rounds.median(speed),
        unit="mails/s",
        ratio=ratio,
        bound=bound,
        why_none=rounds.why_none,
        samples=rounds.samples(speed),
    )


def _far_away(contender: Direct | Queue, mails: float) -> Callable[[Path], Round]:
    def deliver(folder: Path) -> Round:
        with running_relay(folder) as relay:
            return contender.deliver_to(relay, folder, max(_FEWEST, int(mails)))

    return deliver


@contextmanager
def running_relay(folder: Path) -> Iterator[Sink]:
    port = free_port()
    counter = folder / "relay.count"
    command = [sys.executable, "-m", "bench.relay", str(port), str(ROUND_TRIP)]
    with counter.open("wb") as file, Program(command, folder / "relay.log", stdout=file) as program:
        program.wait_for_port(port)
        with Sink(port, counter) as sink:
            yield sink
