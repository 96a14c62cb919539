"""The table of `make chaos`."""

from collections.abc import Iterable

from tests.chaos.running import Row
from tests.chaos.scenario import Report

_COLUMNS = ("faults", "accepted", "once", "twice", "in doubt", "failed", "lost")


def _line(name: str, figures: Iterable[object], seconds: str, passed: str, run_at: str) -> str:
    return (
        f"{name:62}"
        + "".join(f"{figure!s:>10}" for figure in figures)
        + f"{seconds:>10}{passed:>8}  {run_at}"
    )


HEADING = _line("scenario", _COLUMNS, "seconds", "passed", "run at (UTC)")


def told(row: Row) -> str:
    """Return the lines of the table for this scenario."""
    lines = [_line(row.name, _figures(row.report), f"{row.seconds:.0f}", _verdict(row), row.taken)]
    lines += [f"    {remark}" for remark in row.report.remarks]
    lines += [f"    BROKEN: {promise}" for promise in row.report.broken]
    lines += [f"    {row.missing}"] if row.missing else []
    return "\n".join(lines)


def table(rows: Iterable[Row]) -> str:
    return "\n".join([HEADING, *map(told, rows), ""])


def _verdict(row: Row) -> str:
    if row.missing:
        return "?"
    return "no" if row.report.broken else "yes"


def _figures(report: Report) -> list[object]:
    tally = report.tally
    if tally is None:
        return [report.faults, *([""] * (len(_COLUMNS) - 1))]
    return [
        report.faults,
        tally.accepted,
        tally.once,
        tally.twice,
        tally.in_doubt,
        tally.failed,
        tally.lost,
    ]
