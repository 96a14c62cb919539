"""The report of a soak: a table, a page, and a plot for each kind of figure."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from xml.etree import ElementTree as ET

import pytest

from tests.chaos.flatness import Bound, Series
from tests.chaos.history import Tally
from tests.chaos.scenario import Report
from tests.chaos.soak_page import Soak, publish, table
from tests.chaos.watch import Watch

TALLY = Tally(
    accepted=12_345,
    refused=1,
    once=12_343,
    twice=1,
    in_doubt=2,
    failed=0,
    lost=0,
    waiting=0,
    uninvited=0,
)


def soak(*, growth: float = 0, broken: tuple[str, ...] = ()) -> Soak:
    moments = [6.0 * number for number in range(40)]
    memory = Series(
        "Memory",
        "worker",
        "MB",
        Bound(share=0.03, beside=1),
        [100 + growth * moment for moment in moments],
    )
    redis = Series(
        "Connections",
        "to Redis",
        "",
        Bound(share=0, beside=2),
        [None if 7 < at < 9 else 5.0 for at in range(40)],
    )
    mails = Series("Mails", "taken by the relay", "a second", None, [None, *range(39)])
    watch: Any = SimpleNamespace(moments=moments, series=[memory, redis, mails])
    report = Report(faults=7, tally=TALLY, broken=list(broken))
    return Soak("sqlite", 240.0, cast(Watch, watch), {"kill -9 of a worker": 7}, report)


def test_a_run_that_kept_everything() -> None:
    """A run with flat figures and nothing lost passes."""
    assert soak().is_kept
    assert (
        "In 4 minutes on SQLite, with 7 faults, 12,345 mails were accepted: 12,343 sent once, 1"
        " twice," in table(soak())
    )


@pytest.mark.parametrize(
    ("run", "says"), [(soak(growth=1), " no\n"), (soak(broken=("3 lost",)), "BROKEN: 3 lost")]
)
def test_a_run_that_did_not(run: Soak, says: str) -> None:
    """A run with a growing figure or a lost mail fails, and the table says why."""
    assert not run.is_kept
    assert says in table(run)


def test_the_page_and_its_plots(tmp_path: Path) -> None:
    """The page has a row for each figure, and plots with gaps where values are missing."""
    publish(soak(), tmp_path)

    page = (tmp_path / "soak.md").read_text()
    assert "| Memory, worker (MB) | 100 | 100 | 104 | 100 | yes |" in page
    for plot in (plots := re.findall(r"\]\((soak/[a-z-]+\.svg)\)", page)):
        assert ET.fromstring((tmp_path / plot).read_text()).tag == "{http://www.w3.org/2000/svg}svg"  # noqa: S314 -- we have just drawn it
    assert plots == ["soak/memory.svg", "soak/connections.svg", "soak/mails.svg"]
    assert (tmp_path / "soak" / "memory.svg").read_text().count("<polyline") == 1
    assert (tmp_path / "soak" / "connections.svg").read_text().count("<polyline") == 2
