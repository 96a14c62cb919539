"""Run all fault scenarios of `make chaos` in their long form and print a table of results.

ARGS="kill frozen" runs the scenarios with a word in their name that begins with one of these.
ARGS=--short runs the short form, ARGS=--list prints all names. ARGS="--short --minutes 4" starts
scenarios for that many minutes, and others on the next day. The last result of the long form of
each scenario is stored in `results`.
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

_A_DAY = 7  # scenarios that a run of a few minutes starts


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
    """Rotate the scenarios by the day, so that short runs cover all of them within some days."""
    first = day * _A_DAY % len(scenarios) if scenarios else 0
    return [*scenarios[first:], *scenarios[:first]]


@contextmanager
def _time_limit(minutes: float | None, futures: Iterable[Future[Row]]) -> Iterator[None]:
    """Cancel the scenarios that have not begun after `minutes`."""
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
        "words", nargs="*", help="run scenarios with a word in their name that begins with this"
    )
    parser.add_argument(
        "--short",
        action="store_true",
        help="run the short form of each: a quarter of an hour in all",
    )
    parser.add_argument(
        "--minutes",
        type=float,
        metavar="N",
        help="start no scenario after N minutes; each day starts with others",
    )
    parser.add_argument("--list", action="store_true", help="print the names of the scenarios")
    parser.add_argument(
        "--at-once", type=int, default=2, metavar="N", help="scenarios at the same time (2)"
    )
    return parser


def _show(row: Row) -> None:
    """Print the row, and the logs of the workers if a promise was broken."""
    if row.report.broken:
        print(row.log, file=sys.stderr)
    print(told(row), flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
