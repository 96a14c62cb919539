"""The results of a soak: a table to print, and a page with plots."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from bench.machine import describe
from tests.chaos.flatness import Series
from tests.chaos.plot import draw
from tests.chaos.scenario import Report
from tests.chaos.site import Database
from tests.chaos.watch import Watch

_DATABASES: Mapping[Database, str] = {"sqlite": "SQLite", "postgresql": "PostgreSQL"}
_COLUMNS = ("", "second quarter", "last quarter", "limit", "maximum", "flat")


@dataclass(frozen=True, slots=True)
class Soak:
    """One finished run."""

    database: Database
    seconds: float
    watch: Watch
    faults: Mapping[str, int]
    report: Report

    @property
    def is_kept(self) -> bool:
        """Return whether all figures stayed flat and nothing was lost."""
        return not self.report.broken and all(one.is_flat for one in self.watch.series)


def table(soak: Soak) -> str:
    """Format the figures for a terminal."""
    first, *others = _COLUMNS
    lines = [f"{first:42}" + "".join(f"{column:>16}" for column in others)]
    for one in soak.watch.series:
        name, *figures = _row(one)
        lines.append(f"{name:42}" + "".join(f"{figure:>16}" for figure in figures))
    lines += ["", _sentence(soak), *(f"BROKEN: {promise}" for promise in soak.report.broken)]
    return "\n".join(lines) + "\n"


def publish(soak: Soak, folder: Path) -> None:
    """Write soak.md, and a plot for each kind of figure beside it."""
    plots = folder / "soak"
    plots.mkdir(parents=True, exist_ok=True)
    for name, series in _by_plot(soak).items():
        (plots / _file(name)).write_text(draw(name, soak.watch.moments, series))
    (folder / "soak.md").write_text("\n".join(_page(soak)) + "\n")


def _page(soak: Soak) -> Iterator[str]:
    yield "# Soak\n\nWritten by `make soak`: change `tests/chaos/soak_page.py`, not this page.\n"
    yield f"Taken on {datetime.now(UTC):%Y-%m-%d}: {describe()}.\n"
    yield (
        "Five web processes queue at a steady pace: small, urgent, scheduled and greylisted mails,"
        " and mails with a file. They, a prefork worker and a worker of threads run from the"
        " beginning to the end and are measured; a third worker is there to be killed. Finished"
        " mails are purged after a twentieth of the time.\n"
    )
    yield f"{_sentence(soak)}\n"
    yield from (f"**Broken:** {promise}\n" for promise in soak.report.broken)
    yield "| fault | times |\n|---|--:|"
    yield from (f"| {name} | {times} |" for name, times in sorted(soak.faults.items()))
    yield (
        "\nFlat means: the median of the last quarter is not above the limit, which is the median"
        " of the second quarter plus an allowance. The first quarter is for warming up. Memory is"
        " the proportional set size: pages that processes share are divided among them.\n"
    )
    yield f"| {' | '.join(_COLUMNS)} |\n|---|--:|--:|--:|--:|---|"
    yield from (f"| {' | '.join(_row(one))} |" for one in soak.watch.series)
    yield ""
    yield from (f"![{name} over time](soak/{_file(name)})\n" for name in _by_plot(soak))


def _sentence(soak: Soak) -> str:
    tally = soak.report.tally
    assert tally is not None
    minutes, database = f"{soak.seconds / 60:g} minutes", _DATABASES[soak.database]
    results = {
        "sent once": tally.once,
        "twice": tally.twice,
        "in doubt": tally.in_doubt,
        "failed": tally.failed,
        "lost": tally.lost,
    }
    figures = ", ".join(f"{count:,} {result}" for result, count in results.items())
    return (
        f"In {minutes} on {database}, with {soak.report.faults} faults,"
        f" {tally.accepted:,} mails were accepted: {figures}."
    )


def _row(one: Series) -> list[str]:
    name = f"{one.plot}, {one.name}" + (f" ({one.unit})" if one.unit else "")
    limit = _shown(one.bound.of(one.before)) if one.bound else ""
    verdict = "" if one.bound is None else "yes" if one.is_flat else "no"
    return [name, _shown(one.before), _shown(one.after), limit, _shown(one.most), verdict]


def _shown(value: float) -> str:
    return f"{value:,.1f}".removesuffix(".0")


def _by_plot(soak: Soak) -> dict[str, list[Series]]:
    plots: dict[str, list[Series]] = {}
    for one in soak.watch.series:
        plots.setdefault(one.plot, []).append(one)
    return plots


def _file(plot: str) -> str:
    return f"{plot.lower().replace(' ', '-')}.svg"
