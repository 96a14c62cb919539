"""`make chaos`: break everything there is to break, in the long form, and print what came of it.

ARGS="kill frozen" runs only what has one of these words in its name, ARGS=--short the short form, ARGS=--list names all.
"""

import argparse
import io
import json
import sys
import time
import traceback
from collections.abc import Sequence
from contextlib import redirect_stdout
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.chaos.report import Row, table
from tests.chaos.scenario import Report, Scenario, Size
from tests.chaos.scenarios import SCENARIOS

RESULTS = Path(__file__).with_name("results")


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("words", nargs="*", help="run only scenarios with one of these words in their name")
    parser.add_argument("--short", action="store_true", help="the form of make test")
    parser.add_argument("--list", action="store_true", help="name the scenarios and end")
    options = parser.parse_args(arguments)
    chosen = [one for one in SCENARIOS if not options.words or any(word in one.name for word in options.words)]
    if options.list:
        print(*(scenario.name for scenario in chosen), sep="\n")
        return 0
    rows = [_run(scenario, Size.SHORT if options.short else Size.LONG) for scenario in chosen]
    print(table(rows), end="")
    if not options.short and not options.words:
        _keep(rows)
    return 1 if any(row.report.broken for row in rows) else 0


def _run(scenario: Scenario, size: Size) -> Row:
    print(f"… {scenario.name}", file=sys.stderr)
    started, logs = time.monotonic(), io.StringIO()  # of workers: shown if it went wrong
    with TemporaryDirectory(prefix="mailer-chaos-", ignore_cleanup_errors=True) as folder:
        try:
            with redirect_stdout(logs):
                report = scenario.run(Path(folder), size)
        except pytest.skip.Exception as reason:
            report = Report(remarks=[f"skipped: {reason}"])
        except (Exception, pytest.fail.Exception) as error:  # noqa: BLE001 -- the others are run all the same
            sys.stderr.write(logs.getvalue())
            traceback.print_exc()
            report = Report(broken=[f"it could not be carried through: {type(error).__name__}: {error}"])
    return Row(scenario.name, time.monotonic() - started, report)


def _keep(rows: Sequence[Row]) -> None:
    RESULTS.mkdir(exist_ok=True)
    taken = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    (RESULTS / "latest.txt").write_text(f"{taken}\n\n{table(rows)}")
    (RESULTS / "latest.json").write_text(json.dumps({"taken": taken, "rows": [row.as_json() for row in rows]}, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
