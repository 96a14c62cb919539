"""Delivery of a bulk send, whose mails the workers render, beside that of mails that are ready."""

from collections.abc import Callable, Iterator
from pathlib import Path

from bench.contenders import run_once
from bench.contenders.ours import Ours, program
from bench.figures import Figure, Section, at_least, ratio
from bench.plan import Plan
from bench.program import Program
from bench.rounds import Rounds, alternate
from bench.sink import Flow, running_sink

_BOUND = at_least(0.6, aim=0.85, of_ratio=True)
#: The plain mails are rendered one by one before the round, which takes longer than their delivery.
_SHARE = 0.5


def measure(plan: Plan) -> Iterator[Section]:
    mails = int(plan.mails * _SHARE)
    rounds: dict[str, Callable[[Path], Flow]] = {}
    for ours in plan.ours:
        rounds |= {
            f"bulk.{ours.key}": _delivered(ours, "send_bulk", mails),
            f"plain.{ours.key}": _delivered(ours, "personal", mails),
        }
    done = alternate("personal", rounds, plan.repeats)
    yield Section(
        "Delivery of personalised mail",
        "rendered by the workers; ratio: this line / the same mails, queued ready to send",
        [
            figure
            for ours in plan.ours
            for figure in _figures(ours, done[f"bulk.{ours.key}"], done[f"plain.{ours.key}"])
        ],
    )


def _delivered(ours: Ours, method: str, mails: int) -> Callable[[Path], Flow]:
    def measured(folder: Path) -> Flow:
        ours.require()
        with running_sink(folder) as sink, ours.services(folder, sink) as place:
            run_once(program(method), place, mails)
            with Program(ours.worker(), folder / "worker.log", env=place.env) as worker:
                return sink.wait_for(mails, check=worker.check)

    return measured


def _figures(ours: Ours, bulk: Rounds[Flow], plain: Rounds[Flow]) -> Iterator[Figure]:
    database = ours.key.removeprefix("ours-")
    speed, plain_speed = bulk.median(_speed), plain.median(_speed)
    yield Figure(
        key=f"personal.bulk.{database}",
        title=f"send_bulk(): {ours.title}",
        value=speed,
        unit="mails/s",
        ratio=ratio(speed, plain_speed),
        bound=_BOUND,
        why_none=bulk.why_none or plain.why_none,
        samples=bulk.samples(_speed),
    )
    yield Figure(
        key=f"personal.plain.{database}",
        title=f"ready mails: {ours.title}",
        value=plain_speed,
        unit="mails/s",
        why_none=plain.why_none,
        samples=plain.samples(_speed),
    )


def _speed(flow: Flow) -> float:
    return flow.per_second
