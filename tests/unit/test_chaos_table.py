"""The table of `make chaos` has every scenario, with its latest result."""

from datetime import date
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

from tests.chaos import scenarios
from tests.chaos.__main__ import turned
from tests.chaos.history import Tally
from tests.chaos.kept import keep
from tests.chaos.running import Row
from tests.chaos.scenario import Report
from tests.chaos.scenarios import SCENARIOS


def test_every_scenario_is_in_the_table() -> None:
    """Each scenario is in the table once, under a unique name."""
    modules = [
        import_module(f"{scenarios.__name__}.{module.name}")
        for module in iter_modules(scenarios.__path__)
    ]
    written = [scenario.name for module in modules for scenario in module.SCENARIOS]

    assert sorted(scenario.name for scenario in SCENARIOS) == sorted(written)
    assert len({*written}) == len(written)


def test_the_newest_of_each_scenario_is_kept(tmp_path: Path) -> None:
    """The latest result of each scenario is kept, in the order of the table, failures included."""
    earlier, later = SCENARIOS[0].name, SCENARIOS[1].name
    tally = Tally(
        accepted=1234,
        refused=0,
        once=1234,
        twice=0,
        in_doubt=0,
        failed=0,
        lost=0,
        waiting=0,
        uninvited=0,
    )
    for name, report in (
        (later, Report(faults=7, tally=tally)),
        (earlier, Report()),
        (earlier, Report(broken=["1 lost"])),
    ):
        keep(Row(name=name, taken="2026-11-25 12:00", seconds=1.0, report=report), tmp_path)

    _heading, first, broken, second = (tmp_path / "latest.txt").read_text().splitlines()

    assert first.startswith(earlier)
    assert first.endswith("no  2026-11-25 12:00")
    assert broken == "    BROKEN: 1 lost"
    assert second.startswith(later)
    assert second.split("7", 1)[1].split()[:2] == ["1234", "1234"]


def test_a_run_of_some_minutes_comes_to_all_scenarios() -> None:
    """Daily runs of a few scenarios cover the whole table in turn."""
    today = date(2026, 11, 27).toordinal()
    first = {
        scenario.name
        for day in range(len(SCENARIOS))
        for scenario in turned(SCENARIOS, today + day)[:4]
    }

    assert first == {scenario.name for scenario in SCENARIOS}
    assert sorted(one.name for one in turned(SCENARIOS, today)) == sorted(
        one.name for one in SCENARIOS
    )
    assert turned([], today) == []
