"""Critical mail while bulk mail keeps every slot of a worker busy.

`python -m bench.critical PORT SECONDS` is the relay, which writes when critical mail arrives.
"""

import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from flask import Flask

from bench import mail
from bench.contenders import Calls, Place
from bench.contenders.ours import Ours, WorkerOptions
from bench.figures import Figure, Section, at_least, at_most, ratio
from bench.growth import fill
from bench.plan import Plan
from bench.program import Failed, Program, free_port
from bench.programs.ours import create_app
from bench.relay import Session, main
from bench.rounds import Rounds, alternate
from bench.sink import Sink
from mailer import Mailer

RECIPIENT = "urgent@example.com"
_ROUND_TRIP = 0.05
_SLOTS = 4
_FEWEST = 10
_ALONE_SECONDS = 10.0
_LONGEST_WAIT = 60.0
_LOOK_EVERY = 0.005

_BOUND, _BULK_BOUND = at_most(2, aim=0.3), at_least(0.8, aim=0.9, of_ratio=True)


class Relay(Session):
    """A relay that writes down when each critical mail arrives."""

    def receive(self, recipient: bytes) -> None:
        if RECIPIENT.encode() in recipient:
            os.write(2, b"%.6f\n" % time.monotonic())
        super().receive(recipient)


@dataclass(slots=True)
class Load:
    """The arrivals of critical mail, and the rates of bulk mail alone and beside it."""

    bulk_alone: float
    bulk_beside: float = 0.0
    seconds: list[float] = field(default_factory=list)

    @property
    def arrivals(self) -> Calls:
        return Calls(self.seconds)


def measure(plan: Plan) -> Iterator[Section]:
    worker = WorkerOptions(plan.worker.pool, _SLOTS)
    loads: dict[str, Callable[[Path], Load]] = {
        ours.key: partial(_measure, type(ours)(worker), max(plan.depths), plan.calls // 10)
        for ours in plan.ours
    }
    done = alternate("critical", loads, repeats=1)
    yield Section(
        "Critical mail under full bulk load",
        f"from send_email() to a relay {1000 * _ROUND_TRIP:.0f} ms away, one worker with {_SLOTS}"
        f" slots, {max(plan.depths):,} bulk mails wait; ratio: with / without critical mail",
        [figure for ours in plan.ours for figure in _figures(ours, done[ours.key])],
    )


def _figures(ours: Ours, rounds: Rounds[Load]) -> Iterator[Figure]:
    key, why_none = f"critical.{ours.key.removeprefix('ours-')}", rounds.why_none
    for name, title, value in (
        ("p50", "median", rounds.median(lambda load: load.arrivals.p50)),
        ("p99", "99 of 100", rounds.median(lambda load: load.arrivals.p99)),
    ):
        yield Figure(
            key=f"{key}.{name}",
            title=f"{ours.title}: {title}",
            value=value,
            unit="s",
            bound=_BOUND if name == "p99" else None,
            why_none=why_none,
        )
    beside = rounds.median(lambda load: load.bulk_beside)
    yield Figure(
        key=f"{key}.bulk",
        title=f"{ours.title}: bulk mail beside it",
        value=beside,
        unit="mails/s",
        ratio=ratio(beside, rounds.median(lambda load: load.bulk_alone)),
        bound=_BULK_BOUND,
        why_none=why_none,
    )


def _measure(ours: Ours, depth: int, mails: int, folder: Path) -> Load:
    """Send a critical mail about once a second, while the slots are busy with bulk mail."""
    ours.require()
    with running_relay(folder, _ROUND_TRIP) as relay, ours.services(folder, relay) as place:
        app = create_app(place.env)
        with app.app_context():
            fill(depth, lane="bulk")
        with Program(ours.worker(), folder / "worker.log", env=place.env) as worker:
            relay.wait_for(_SLOTS, check=worker.check, then_more=True)
            load = Load(_rate_alone(relay))
            before, began = relay.count, time.monotonic()
            for _ in range(max(_FEWEST, mails)):
                time.sleep(random.uniform(0.9, 1.1))  # noqa: S311 -- no rhythm, no secret
                load.seconds.append(_arrival(app, place, worker, len(load.seconds)))
            delivered = relay.count - before - len(load.seconds)
            load.bulk_beside = delivered / (time.monotonic() - began)
            if relay.count >= depth:
                raise Failed("all bulk mail was delivered before the last critical mail")
    return load


def _rate_alone(relay: Sink) -> float:
    before, began = relay.count, time.monotonic()
    time.sleep(_ALONE_SECONDS)
    return (relay.count - before) / (time.monotonic() - began)


def _arrival(app: Flask, place: Place, worker: Program, earlier: int) -> float:
    """Return the seconds from the call to the arrival of one critical mail."""
    context = {"name": "Ada", "items": mail.ITEMS}
    with app.app_context():
        began = time.monotonic()
        Mailer().send_email(
            RECIPIENT,
            mail.SUBJECT,
            "mail/order",
            sender=mail.SENDER,
            lane="critical",
            context=context,
        )
    return arrivals(place, worker, earlier + 1)[earlier] - began


def arrivals(place: Place, worker: Program, count: int) -> list[float]:
    """Return the times at which the mails to RECIPIENT arrived, as soon as there are this many."""
    log, ends = place.folder / "relay.log", time.monotonic() + _LONGEST_WAIT
    while len(arrived := log.read_text().split()) < count:
        worker.check()
        if time.monotonic() > ends:
            raise Failed(f"a mail did not arrive: {worker.last_words()}")
        time.sleep(_LOOK_EVERY)
    return [*map(float, arrived)]


@contextmanager
def running_relay(folder: Path, round_trip: float) -> Iterator[Sink]:
    port = free_port()
    counter = folder / "relay.count"
    command = [sys.executable, "-m", "bench.critical", str(port), str(round_trip)]
    with counter.open("wb") as file, Program(command, folder / "relay.log", stdout=file) as program:
        program.wait_for_port(port)
        with Sink(port, counter) as sink:
            yield sink


if __name__ == "__main__":
    main(Relay)
