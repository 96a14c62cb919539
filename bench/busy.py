"""Time of `send_email()` beside a worker on the same machine that delivers as fast as it can."""

from collections.abc import Callable, Iterator
from pathlib import Path

from bench.contenders import Calls
from bench.contenders.ours import Ours
from bench.figures import Figure, Section, at_most, ratio
from bench.plan import Plan
from bench.rounds import Rounds, alternate

_BOUND = at_most(3, aim=2, of_ratio=True)


def measure(plan: Plan) -> Iterator[Section]:
    calls: dict[str, Callable[[Path], Calls]] = {}
    for ours in plan.ours:
        calls |= {
            f"alone.{ours.key}": _alone(ours, plan.calls),
            f"beside.{ours.key}": _beside(ours, plan.calls),
        }
    done = alternate("busy", calls, plan.repeats)
    figures = [
        _figure(ours, done[f"alone.{ours.key}"], done[f"beside.{ours.key}"]) for ours in plan.ours
    ]
    yield Section(
        "Beside a busy worker",
        "median time of send_email(); ratio: with / without a busy worker",
        figures,
    )


def _alone(ours: Ours, mails: int) -> Callable[[Path], Calls]:
    return lambda folder: ours.render_and_queue(folder, mails)


def _beside(ours: Ours, mails: int) -> Callable[[Path], Calls]:
    return lambda folder: ours.render_beside_a_busy_worker(folder, mails)


def _figure(ours: Ours, alone: Rounds[Calls], beside: Rounds[Calls]) -> Figure:
    before, now = _p50(alone), _p50(beside)
    return Figure(
        key=f"busy.{ours.key}",
        title=f"{ours.title}: send_email()",
        value=now,
        unit="ms",
        ratio=ratio(now, before),
        bound=_BOUND,
        why_none=beside.why_none or alone.why_none,
        samples=beside.samples(lambda calls: 1000 * calls.p50),
    )


def _p50(rounds: Rounds[Calls]) -> float | None:
    return rounds.median(lambda calls: 1000 * calls.p50)
