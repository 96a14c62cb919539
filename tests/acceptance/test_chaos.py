"""The short form of every row of `make chaos`: each fault happens for real, and every promise is kept."""

from pathlib import Path

import pytest

from tests.chaos.scenario import Scenario, Size
from tests.chaos.scenarios import SCENARIOS


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_the_promises_are_kept(scenario: Scenario, tmp_path: Path) -> None:
    """Whatever breaks: what the histories tell is what was promised."""
    report = scenario.run(tmp_path, Size.SHORT)

    assert not report.broken, (report.tally, report.remarks)
    assert report.faults, "nothing was broken: the scenario says nothing"
