"""The report of `make bench`, and docs/benchmarks.md, which shows the latest kept run."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from bench import chart, report
from bench.figures import Bound, Figure, Reached, Section, at_least, at_most
from bench.program import Failed, Missing
from bench.rounds import alternate

OURS = Figure(
    key="delivered.ours-sqlite",
    title="ours",
    value=9000.0,
    unit="mails/s",
    samples=[8000.0, 9000.0, 9500.0],
)
MISSING = Figure(
    key="delivered.peer",
    title="peer & co",
    value=None,
    unit="mails/s",
    why_none="missing: it is not installed",
)
SLOW = Figure(
    key="delivered.slow",
    title="slow",
    value=600.0,
    unit="mails/s",
    ratio=15.0,
    bound=at_least(10, aim=20, of_ratio=True),
)
RUN = report.Run(
    taken="2026-01-02 03:04 UTC",
    machine="2 cores",
    load=(0.1, 1.9),
    worker="celery -A worker worker",
    mails=1000,
    repeats=3,
    sections=[Section("Delivered", "a note", [OURS, MISSING, SLOW])],
)


@pytest.mark.parametrize(
    ("bound", "value", "reached"),
    [
        (at_least(15, aim=25), 25.0, Reached.AIM),
        (at_least(15, aim=25), 24.9, Reached.AT_LEAST),
        (at_least(15, aim=25), 14.9, Reached.MISSED),
        (at_least(None, aim=0.3), 0.29, Reached.MISSED),
        (at_most(20, aim=8), 8.0, Reached.AIM),
        (at_most(20, aim=8), 20.0, Reached.AT_LEAST),
        (at_most(20, aim=8), 20.1, Reached.MISSED),
        (at_most(20, aim=8), None, Reached.UNKNOWN),
    ],
)
def test_a_figure_is_held_against_its_bound(
    bound: Bound, value: float | None, reached: Reached
) -> None:
    """A value equal to its bound is enough, and a value that was not measured is unknown."""
    assert Figure(key="key", title="title", value=value, unit="ms", bound=bound).reached is reached


def test_a_bound_of_the_ratio_looks_at_the_ratio() -> None:
    """A bound on the ratio is compared with the ratio, not with the value."""
    assert SLOW.reached is Reached.AT_LEAST


@pytest.mark.parametrize("shown", [report.table, lambda run: chart.draw(run.sections)])
def test_what_is_missing_is_named(shown: Callable[[report.Run], str]) -> None:
    """A peer that is not installed appears in the table and in the chart."""
    assert "peer" in shown(RUN)
    assert "missing" in shown(RUN)


def test_a_missed_bound_is_a_sentence() -> None:
    """Each missed bound is a sentence with the figure, its value and the bound."""
    few = Figure(
        key="few",
        title="few",
        value=1.0,
        unit="mails/s",
        ratio=9.0,
        bound=at_least(10, aim=20, of_ratio=True),
    )
    slow = Figure(key="slow", title="slow", value=21.0, unit="ms", bound=at_most(20, aim=8))
    worse = replace(RUN, sections=[Section("Delivered", "a note", [few, slow])])

    assert report.misses(worse) == [
        "Missed: Delivered: few is 9 x and must be at least 10 x.",
        "Missed: Delivered: slow is 21 ms and must be at most 20 ms.",
    ]
    assert all(sentence in report.table(worse) for sentence in report.misses(worse))
    assert report.misses(RUN) == ["Every limit is kept."]


def test_each_column_is_explained() -> None:
    """A legend below the table explains each column."""
    legend = report.table(RUN).partition("ratio: of the two")[2]

    assert all(
        f"{column}:" in f"ratio:{legend}"
        for column in ("ratio", "measured", "p99", "limit", "goal", "result")
    )


def test_who_is_missing_or_fails_stops_nobody_else(tmp_path: Path) -> None:
    """A peer that fails is not measured again, its reason is kept, and the others go on."""
    asked: list[str] = []

    def answer(name: str, error: Exception | None = None) -> Callable[[Path], str]:
        def measure(folder: Path) -> str:
            asked.append(name)
            if error:
                raise error
            return name

        return measure

    rounds = {
        "a": answer("a"),
        "b": answer("b", Missing("no b")),
        "c": answer("c", Failed("c broke")),
        "d": answer("d"),
    }
    done = alternate("test", rounds, repeats=3)

    assert asked == ["a", "b", "c", "d", "d", "a", "a", "d"]
    assert done["a"].results == ["a", "a", "a"]
    assert done["b"].why_none == "missing: no b"
    assert done["c"].why_none == "failed: c broke"


def test_a_run_survives_being_kept() -> None:
    """A run that is stored as JSON and read again gives the same table."""
    kept = report.Run.from_json(RUN.to_json())

    assert report.table(kept) == report.table(RUN)
    assert kept.to_json() == RUN.to_json()


def test_the_chart_is_an_image_for_light_and_dark_pages() -> None:
    """The chart is a valid SVG with colours for light and dark pages."""
    drawn = chart.draw(RUN.sections)

    assert ET.fromstring(drawn).tag == "{http://www.w3.org/2000/svg}svg"  # noqa: S314 -- we have just drawn it
    assert "prefers-color-scheme: dark" in drawn
    assert "peer &amp; co" in drawn


def test_the_page_shows_the_run_that_is_kept() -> None:
    """The table and chart in the documentation are those of `bench/results/latest.json`."""
    run = report.Run.from_json((report.RESULTS / "latest.json").read_text(encoding="utf-8"))
    page = report.PAGE.read_text(encoding="utf-8")

    assert report.with_table(page, run) == page
    assert "bench/results/chart.svg" in page
    assert (report.RESULTS / "chart.svg").read_text(encoding="utf-8") == chart.draw(run.sections)
    assert (report.RESULTS / "latest.txt").read_text(encoding="utf-8") == report.table(run)


def test_a_page_without_its_marks_is_refused() -> None:
    """A page without the marks around the table is an error, and is not overwritten."""
    with pytest.raises(ValueError, match=r"benchmarks\.md lacks the marks"):
        report.with_table("no marks", RUN)
