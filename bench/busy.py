"""Time of a call beside a worker on the same machine that delivers as fast as it can."""

from collections.abc import Callable, Iterator
from pathlib import Path

from bench.contenders import Calls
from bench.contenders.ours import Ours
from bench.figures import Figure, Section, at_most, ratio
from bench.plan import Plan
from bench.rounds import Rounds, alternate

_BOUND = at_most(3, aim=2, of_ratio=True)
_METHODS = ("send_email", "enqueue")


def measure(plan: Plan) -> Iterator[Section]:
    calls: dict[str, Callable[[Path], Calls]] = {}
    both = [(ours, method) for ours in plan.ours for method in _METHODS]
    for ours, method in both:
        calls |= {
            f"alone.{method}.{ours.key}": _alone(ours, method, plan.calls),
            f"beside.{method}.{ours.key}": _beside(ours, method, plan.calls),
        }
    done = alternate("busy", calls, plan.repeats)
    figures = [
        _figure(
            ours, method, done[f"alone.{method}.{ours.key}"], done[f"beside.{method}.{ours.key}"]
        )
        for ours, method in both
    ]
    yield Section(
        "Beside a busy worker",
        "median time of the call; ratio: with / without a busy worker",
        figures,
    )


def _alone(ours: Ours, method: str, mails: int) -> Callable[[Path], Calls]:
    return lambda folder: ours.call(method, folder, mails)


def _beside(ours: Ours, method: str, mails: int) -> Callable[[Path], Calls]:
    return lambda folder: ours.call_beside_a_busy_worker(method, folder, mails)


def _figure(ours: Ours, method: str, alone: Rounds[Calls], beside: Rounds[Calls]) -> Figure:
    before, now = _p50(alone), _p50(beside)
    return Figure(
        key=f"busy.{method}.{ours.key}",
        title=f"{ours.title}: {method}()",
        value=now,
        unit="ms",
        ratio=ratio(now, before),
        bound=_BOUND,
        why_none=beside.why_none or alone.why_none,
        samples=beside.samples(lambda calls: 1000 * calls.p50),
    )


def _p50(rounds: Rounds[Calls]) -> float | None:
    return rounds.median(lambda calls: 1000 * calls.p50)
