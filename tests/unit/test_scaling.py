"""The model behind docs/scaling.md, and the page itself."""

from dataclasses import replace

import pytest

from bench.scaling.model import Costs, Site, play_day, simulate
from bench.scaling.page import CURVE, OUTAGE, PAGE, Measured, replaced, tables
from bench.scaling.vacuum import Sample, claim_times, quarter

COSTS = Costs(worker=0.0004, database=0.0003, flushes=1, flush=0.0001, wal_bytes=3000)
ALONE = Site(workers=1, slots=1, cores=2)


def test_one_slot_does_one_thing_after_the_other() -> None:
    """One slot delivers one mail in the sum of its times."""
    flow = simulate(ALONE, COSTS)

    assert flow.per_second == pytest.approx(1 / 0.0008, rel=0.03)
    assert flow.limit == "slots"


def test_the_same_seed_has_the_same_result() -> None:
    """The model is a function of its arguments."""
    site = Site(workers=2, slots=4, cores=2, round_trip=0.03)

    assert simulate(site, COSTS, seed=7) == simulate(site, COSTS, seed=7)
    assert simulate(site, COSTS, seed=7) != simulate(site, COSTS, seed=8)


@pytest.mark.parametrize(
    ("site", "per_second", "limit"),
    [
        (Site(workers=8, slots=1, cores=2), 2 / 0.0007, "processor"),
        (Site(workers=1, slots=8, cores=8), 1 / 0.0004, "worker processes"),
        (Site(workers=32, slots=1, cores=32, database_cores=1), 1 / 0.0003, "database"),
        (Site(workers=2, slots=8, cores=2, round_trip=0.1), 16 / 0.1008, "slots"),
        (
            Site(workers=2, slots=8, cores=2, round_trip=0.1, connections=4),
            4 / 0.1,
            "relay's connections",
        ),
        (Site(workers=2, slots=8, cores=2, rate=14.0), 14, "relay's rate"),
    ],
)
def test_what_saturates_first_decides(site: Site, per_second: float, limit: str) -> None:
    """The flow is that of the tightest resource, which is named."""
    flow = simulate(site, COSTS)

    assert flow.per_second == pytest.approx(per_second, rel=0.05)
    assert flow.limit == limit


def test_commits_share_the_flushes_of_the_log() -> None:
    """With a slow disk, one slot waits for it alone, and many slots share its flushes."""
    slow = replace(COSTS, flush=0.01)
    one = simulate(Site(workers=1, slots=1, cores=64, database_cores=64), slow)
    many = simulate(Site(workers=32, slots=1, cores=64, database_cores=64), slow)

    assert one.per_second == pytest.approx(1 / 0.0107, rel=0.05)
    assert many.per_second > 15 * one.per_second


def test_an_outage_leaves_a_backlog_that_drains() -> None:
    """After an outage, the queue drains with what the site delivers beyond the new mail."""
    day = play_day(86_400, 2.0, [1] * 24, outage=(600, 720))

    assert day.backlog == pytest.approx(7200, rel=0.05)  # a mail a second for two hours
    assert day.drained == pytest.approx(120, rel=0.05)  # 2 - 1 mails a second
    assert day.waits == pytest.approx(7200, rel=0.05)


def test_a_site_that_is_too_small_never_drains() -> None:
    """A site that delivers less than the day brings says so."""
    assert play_day(86_400, 0.5, CURVE, outage=OUTAGE).drained is None


def test_the_times_of_claims_are_those_between_samples() -> None:
    """A sample has sums since the start; the times are those of each interval with a claim."""

    def sample(claims: int, ms: float) -> Sample:
        return Sample(0, 0, 0, 0, 0, 0, {}, claims, claims, ms, 0, 0)

    assert claim_times([sample(0, 0), sample(10, 20), sample(10, 20), sample(20, 80)]) == [2, 6]
    assert quarter([1, 1, 2, 2, 3, 3, 4, 4], 3) == 4


def test_the_page_has_the_tables_of_its_measurements() -> None:
    """Each table of the page is the one that the measurements in bench/results give."""
    page = PAGE.read_text(encoding="utf-8")
    for name, lines in tables(Measured.read()).items():
        assert replaced(page, name, "\n".join(lines)) == page, "call python -m bench.scaling"


def test_a_page_without_marks_is_refused() -> None:
    """A table whose marks are gone is named."""
    with pytest.raises(ValueError, match="'costs'"):
        replaced("no marks", "costs", "a table")
