"""The report of a run: a table, JSON, and the page `docs/benchmarks.md`."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench import chart
from bench.figures import Figure, Reached, Section, from_json, to_json
from bench.program import PROJECT

RESULTS = Path(__file__).with_name("results")
PAGE = PROJECT / "docs" / "benchmarks.md"
BEGIN, END = "<!-- bench: written by make bench -->\n", "<!-- bench: end -->"

_COLUMNS = ("ratio", "measured", "p99", "limit", "goal", "result")
_WIDTHS = (9, 16, 8, 10, 9, 15)
#: The meaning of the columns.
LEGEND = (
    "ratio: of the two figures that the heading of the section names",
    "measured: the median of the rounds; p99: 99 of 100 calls took no longer",
    (
        "limit: the worst accepted value; goal: the value to aim for; with an x, both apply to the"
        " ratio, otherwise to the measured value"
    ),
    "result: goal reached, limit kept, or MISSED",
)
_TITLE_WIDTH = 54
#: The load before the run above which the machine counts as busy.
_BUSY = 0.5
#: The page shows this section completely, and the figures with a bound of all others.
_ALL_OF = "Delivered"


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """The options, the machine and the figures of a run."""

    taken: str
    machine: str
    load: tuple[float, float]  #: of the machine before and after
    worker: str  #: the command of Mailer's worker
    mails: int
    repeats: int
    sections: Sequence[Section]

    def to_json(self) -> str:
        values = {name: getattr(self, name) for name in self.__slots__}
        return (
            json.dumps({**values, "sections": to_json(self.sections)}, indent=1, ensure_ascii=False)
            + "\n"
        )

    @classmethod
    def from_json(cls, text: str) -> "Run":
        values = json.loads(text)
        return cls(
            **{**values, "load": tuple(values["load"]), "sections": from_json(values["sections"])}
        )


def write(run: Run, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "latest.json").write_text(run.to_json(), encoding="utf-8")
    (folder / "latest.txt").write_text(table(run), encoding="utf-8")
    (folder / "chart.svg").write_text(chart.draw(run.sections), encoding="utf-8")


def publish(run: Run) -> None:
    """Store this run and write its table into the page.

    `python -m bench.report` does so with the stored run.
    """
    write(run, RESULTS)
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8"), run), encoding="utf-8")


# --- the table ----------------------------------------------------------------------------------


def table(run: Run) -> str:
    sections = (line for section in run.sections for line in _section(section))
    return "\n".join([*_heading(run), "", *misses(run), *sections, "", *LEGEND, ""])


def misses(run: Run) -> list[str]:
    """Return a sentence for each missed bound, or one that says that all are kept."""
    figures = [(section, figure) for section in run.sections for figure in section.figures]
    missed = [
        _miss(section, figure) for section, figure in figures if figure.reached is Reached.MISSED
    ]
    return missed or ["Every limit is kept."]


def _miss(section: Section, figure: Figure) -> str:
    bound = figure.bound
    assert bound is not None
    limit, kind = (
        (bound.at_least, "must be") if bound.at_least is not None else (bound.aim, "should be")
    )
    unit = "x" if bound.of_ratio else figure.unit
    value = figure.ratio if bound.of_ratio else figure.value
    side = "at most" if bound.less_is_better else "at least"
    name = f"{section.title}: {figure.title}"
    return f"Missed: {name} is {number(value)} {unit} and {kind} {side} {number(limit)} {unit}."


def _heading(run: Run) -> Iterator[str]:
    yield f"{run.taken}, {run.machine}"
    busy = " (busy: repeat the run on a quiet machine)" if run.load[0] > _BUSY else ""
    yield (
        f"load {run.load[0]:.1f} before{busy}, {run.load[1]:.1f} after;"
        f" rounds of {run.mails:,} mails, medians of {run.repeats}"
    )
    yield f"worker: {run.worker}"


def _section(section: Section) -> Iterator[str]:
    heads = "".join(f"{column:>{width}}" for column, width in zip(_COLUMNS, _WIDTHS, strict=True))
    yield ""
    yield f"{section.title:{_TITLE_WIDTH}}{heads}   {section.note}"
    for figure in section.figures:
        title = f"  {figure.title:{_TITLE_WIDTH - 2}}"
        if _is_without_value(figure):
            yield f"{title}   {_why_none(figure)}"
        else:
            yield (
                title
                + "".join(
                    f"{cell:>{width}}" for cell, width in zip(_cells(figure), _WIDTHS, strict=True)
                ).rstrip()
            )


def _is_without_value(figure: Figure) -> bool:
    return figure.value is None and figure.ratio is None


def _why_none(figure: Figure) -> str:
    return figure.why_none or "not measured"


def _cells(figure: Figure) -> tuple[str, ...]:
    bound, unit = figure.bound, ""
    if bound:
        unit = " x" if bound.of_ratio else f" {figure.unit}"
    return (
        f"{number(figure.ratio)} x" if figure.ratio is not None else "",
        f"{number(figure.value)} {figure.unit}" if figure.value is not None else "",
        number(figure.p99),
        f"{number(bound.at_least)}{unit}" if bound and bound.at_least is not None else "",
        f"{number(bound.aim)}{unit}" if bound else "",
        str(figure.reached or ""),
    )


def number(value: float | None) -> str:
    """Format a number with three digits, which are all that a run can tell."""
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


# --- the page -----------------------------------------------------------------------------------


def with_table(page: str, run: Run) -> str:
    """Return the page with the table of this run between the two marks."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(
            f"{PAGE.name} lacks the marks {BEGIN.strip()!r} and {END!r}. Put them around the table."
        )
    return f"{before}{begin}{_markdown(run)}{end}{after}"


def _markdown(run: Run) -> str:
    lines = ["| | " + " | ".join(_COLUMNS) + " |", "|---|" + "--:|" * len(_COLUMNS)]
    for section in run.sections:
        if shown := [
            figure
            for figure in section.figures
            if section.title == _ALL_OF or figure.bound or not figure.value
        ]:
            lines.append(f"| **{section.title}** ({section.note}) |" + " |" * len(_COLUMNS))
            lines += [_markdown_line(figure) for figure in shown]
    place = (
        f"Measured on {run.taken[:10]}: {run.machine}; medians of {run.repeats};"
        f" worker: `{run.worker}`."
    )
    return "\n".join(
        [place, "", *misses(run), "", *lines, "", *(f"- {line}" for line in LEGEND), "", ""]
    )


def _markdown_line(figure: Figure) -> str:
    cells = (
        ("", _why_none(figure), *[""] * (len(_COLUMNS) - 2))
        if _is_without_value(figure)
        else _cells(figure)
    )
    return f"| {figure.title} | " + " | ".join(cells) + " |"


if __name__ == "__main__":
    publish(Run.from_json((RESULTS / "latest.json").read_text(encoding="utf-8")))
