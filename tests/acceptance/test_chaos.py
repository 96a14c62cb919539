"""A sample of `make chaos`, in the short form: each fault happens for real, and every promise is kept."""

from collections.abc import Iterator, Mapping
from concurrent.futures import Future

import pytest

from tests.chaos.running import Row, running
from tests.chaos.scenario import Scenario, Size
from tests.chaos.scenarios import SCENARIOS

_AT_ONCE = 2
# One of each kind. All of them take a quarter of an hour: `make chaos ARGS=--short`.
_SAMPLE = (
    "kill -9 of workers, prefork",
    "a mail that kills whoever composes it",
    "Rolling restart, prefork",
    "Redis FLUSHALL",
    "PostgreSQL restarted",
    "SQLite, the disk is full",
    "SMTP: the only relay is away",
    "the clock jumps an hour, forwards",
    "an application killed in its transaction, PostgreSQL",
    "Forged into Redis, prefork",
)
_BY_NAME = {scenario.name: scenario for scenario in SCENARIOS}


@pytest.fixture(scope="module")
def rows(request: pytest.FixtureRequest) -> Iterator[Mapping[str, "Future[Row]"]]:
    """Those that are chosen, all on their way when the first is waited for."""
    items = [item for item in request.session.items if isinstance(item, pytest.Function) and item.module is request.module]
    chosen = {item.callspec.params["scenario"] for item in items}
    with running([one for one in SCENARIOS if one in chosen], Size.SHORT, at_once=_AT_ONCE) as futures:
        yield futures


@pytest.mark.timeout(600)  # it waits for its turn, too
@pytest.mark.parametrize("scenario", [_BY_NAME[name] for name in _SAMPLE], ids=_SAMPLE)
def test_the_promises_are_kept(rows: Mapping[str, "Future[Row]"], scenario: Scenario) -> None:
    """Whatever breaks: what the histories tell is what was promised."""
    row = rows[scenario.name].result()
    if row.missing:
        pytest.skip(row.missing)
    print(row.log)

    assert not row.report.broken, (row.report.tally, row.report.remarks)
    assert row.report.faults, "nothing was broken: the scenario says nothing"
