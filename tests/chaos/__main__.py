"""`make chaos`: break everything there is to break, in the long form, and print what came of it.

ARGS="kill frozen" runs only what has a word in its name that begins so, ARGS=--short the short form, ARGS=--list names all.
What the long form of a scenario came to last is kept in `results`.
"""

import argparse
import sys
from collections.abc import Sequence

from tests.chaos.kept import keep
from tests.chaos.report import HEADING, told
from tests.chaos.running import Row, running
from tests.chaos.scenario import Size
from tests.chaos.scenarios import SCENARIOS


def main(arguments: Sequence[str]) -> int:
    options = _parser().parse_args(arguments)
    chosen = [one for one in SCENARIOS if not options.words or any(f" {word}" in f" {one.name}" for word in options.words)]
    if options.list:
        print(*(scenario.name for scenario in chosen), sep="\n")
        return 0
    print(HEADING, flush=True)
    broken = False
    with running(chosen, Size.SHORT if options.short else Size.LONG, at_once=options.at_once) as futures:
        for future in futures.values():
            row = future.result()
            _show(row)
            if not options.short:
                keep(row)
            broken = broken or bool(row.report.broken)
    return 1 if broken else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("words", nargs="*", help="run only scenarios with a word in their name that begins so")
    parser.add_argument("--short", action="store_true", help="each only for some seconds: a quarter of an hour in all")
    parser.add_argument("--list", action="store_true", help="name the scenarios and end")
    parser.add_argument("--at-once", type=int, default=2, metavar="N", help="how many at the same time (2)")
    return parser


def _show(row: Row) -> None:
    """With the logs of the workers if something went wrong."""
    if row.report.broken:
        print(row.log, file=sys.stderr)
    print(told(row), flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
