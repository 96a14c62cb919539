"""The cost of the black box: a worker with it and without it, in turns."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from bench.contenders import Place, Round
from bench.contenders.ours import OursOnSqlite
from bench.figures import Figure, Section, at_least, ratio
from bench.plan import Plan
from bench.rounds import alternate
from bench.sink import Sink

#: The difference is small and needs more rounds.
_TIMES_THE_REPEATS = 3
_BOUND = at_least(0.95, aim=0.98, of_ratio=True)


class WithoutBox(OursOnSqlite):
    """A worker without a black box, since its folder can't be created."""

    title = "Mailer on SQLite without its black box"

    @contextmanager
    def services(self, folder: Path, sink: Sink) -> Iterator[Place]:
        with super().services(folder, sink) as place:
            yield replace(place, env={**place.env, "MAILER_BLACK_BOX": os.devnull})


def measure(plan: Plan) -> Iterator[Section]:
    ours = {"with": OursOnSqlite(plan.worker), "without": WithoutBox(plan.worker)}
    rounds = {
        key: lambda folder, one=one: one.deliver(folder, plan.mails) for key, one in ours.items()
    }
    done = alternate("safety", rounds, plan.repeats * _TIMES_THE_REPEATS)
    costs = {key: done[key].median(_microseconds_a_mail) for key in ours}
    figures = [
        Figure(
            key=f"safety.{key}",
            title=one.title,
            value=costs[key],
            unit="µs/mail",
            ratio=ratio(costs["without"], costs["with"]) if key == "with" else None,
            bound=_BOUND if key == "with" else None,
            why_none=done[key].why_none,
            samples=done[key].samples(_microseconds_a_mail),
        )
        for key, one in ours.items()
    ]
    yield Section(
        "The black box",
        "processor time of the workers; ratio: without / with the black box",
        figures,
    )


def _microseconds_a_mail(one: Round) -> float | None:
    """Return the processor time per mail, which other load does not change.

    On a machine whose cores are all busy with mail, it decides the speed.
    """
    return 1e6 * one.cpu_seconds / one.mails if one.cpu_seconds else None
