"""One scenario of `make chaos` for each kind of fault, in the short form.

`.ci/run` runs more of them in a step of its own.
"""

import pytest

from tests.chaos.running import running
from tests.chaos.scenario import Size
from tests.chaos.scenarios import SCENARIOS

_CANARIES = (
    "kill -9 of workers, prefork",
    "a mail that kills the process that composes it",
    "PostgreSQL terminates all connections",
    "SQLite, the disk is full",
    "the clock jumps an hour, backwards",
)
_BY_NAME = {scenario.name: scenario for scenario in SCENARIOS}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", _CANARIES)
def test_the_promises_are_kept(name: str) -> None:
    """No promise is broken, whatever fails."""
    with running([_BY_NAME[name]], Size.SHORT, at_once=1) as futures:
        row = futures[name].result()
    if row.missing:
        pytest.skip(row.missing)
    print(row.log)

    assert not row.report.broken, (row.report.tally, row.report.remarks)
    assert row.report.faults, "no fault was injected: the scenario proves nothing"
