"""Storage for the last result of the long form of each scenario.

`results/latest.json` is for programs, `results/latest.txt` for people.
"""

import json
from pathlib import Path
from typing import Any

from tests.chaos.history import Tally
from tests.chaos.report import table
from tests.chaos.running import Row
from tests.chaos.scenario import Report
from tests.chaos.scenarios import SCENARIOS

RESULTS = Path(__file__).with_name("results")


def keep(row: Row, folder: Path = RESULTS) -> None:
    """Replace the stored row of this scenario, and drop rows of scenarios that no longer exist."""
    kept = {**_kept(folder / "latest.json"), row.name: row}
    rows = [kept[scenario.name] for scenario in SCENARIOS if scenario.name in kept]
    folder.mkdir(exist_ok=True)
    (folder / "latest.json").write_text(
        json.dumps([one.as_json() for one in rows], indent=1) + "\n"
    )
    (folder / "latest.txt").write_text(table(rows))


def _kept(file: Path) -> dict[str, Row]:
    rows = map(_row, json.loads(file.read_text())) if file.exists() else ()
    return {row.name: row for row in rows}


def _row(values: dict[str, Any]) -> Row:
    report = values["report"]
    tally = report["tally"] and Tally(**report["tally"])
    return Row(**{**values, "report": Report(**{**report, "tally": tally})})
