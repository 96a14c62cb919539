"""`make chaos`: break everything there is to break, in the long form, and print what came of it.

ARGS="kill frozen" runs only what has a word in its name that begins so, ARGS=--short the short
form, ARGS=--list names all. ARGS="--short --minutes 4" runs as many as begin in that time, others
each day. What the long form of a scenario came to last is kept in `results`.
"""

import argparse
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import contextmanager
from datetime import date

from tests.chaos.kept import keep
from tests.chaos.report import HEADING, told
from tests.chaos.running import Row, running
from tests.chaos.scenario import Scenario, Size
from tests.chaos.scenarios import SCENARIOS

_A_DAY = 7  # so many scenarios begin in a few minutes


def main(arguments: Sequence[str]) -> int:
    options = _parser().parse_args(arguments)
    chosen = [
        one
        for one in SCENARIOS
        if not options.words or any(f" {word}" in f" {one.name}" for word in options.words)
    ]
    if options.list:
        print(*(scenario.name for scenario in chosen), sep="\n")
        return 0
    if options.minutes is not None:
        chosen = turned(chosen, date.today().toordinal())  # noqa: DTZ011 -- any day will do
    print(HEADING, flush=True)
    broken = left_out = 0
    size = Size.SHORT if options.short else Size.LONG
    with (
        running(chosen, size, at_once=options.at_once) as futures,
        _time_limit(options.minutes, futures.values()),
    ):
        for future in futures.values():
            try:
                row = future.result()
            except CancelledError:
                left_out += 1
                continue
            _show(row)
            if size is Size.LONG:
                keep(row)
            broken += bool(row.report.broken)
    if left_out:
        print(f"{left_out} scenarios did not begin within {options.minutes:g} minutes.")
    return 1 if broken else 0


def turned(scenarios: Sequence[Scenario], day: int) -> list[Scenario]:
    """Begin at another place of the table each day, so that a run of a few minutes comes to all of them within some days."""
    first = day * _A_DAY % len(scenarios) if scenarios else 0
    return [*scenarios[first:], *scenarios[:first]]


@contextmanager
def _time_limit(minutes: float | None, futures: Iterable[Future[Row]]) -> Iterator[None]:
    """Cancel what has not begun by then."""
    if minutes is None:
        yield
        return
    timer = threading.Timer(60 * minutes, lambda: [future.cancel() for future in futures])
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument(
        "words", nargs="*", help="run only scenarios with a word in their name that begins so"
    )
    parser.add_argument(
        "--short",
        action="store_true",
        help="each only for some seconds: a quarter of an hour in all",
    )
    parser.add_argument(
        "--minutes",
        type=float,
        metavar="N",
        help="begin no scenario after that; each day begins with others",
    )
    parser.add_argument("--list", action="store_true", help="name the scenarios and end")
    parser.add_argument(
        "--at-once", type=int, default=2, metavar="N", help="how many at the same time (2)"
    )
    return parser


def _show(row: Row) -> None:
    """With the logs of the workers if something went wrong."""
    if row.report.broken:
        print(row.log, file=sys.stderr)
    print(told(row), flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
