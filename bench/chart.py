"""Draw the figures as bars in an SVG, readable on a light and on a dark page."""

from collections.abc import Iterator, Sequence
from html import escape

from bench.figures import Figure, Section

_WIDTH, _LABELS, _BARS = 800, 330, 380
_ROW, _HEAD = 24, 44
#: The colour of a bar by a part of its key.
_KINDS = {"ours": ".ours-", "limit": ".smtp-source"}

_STYLE = """
text { font: 13px system-ui, sans-serif; fill: #24292f; }
.title { font-weight: 600; }
.value { fill: #57606a; }
.theirs { fill: #8c959f; }
.ours { fill: #0969da; }
.limit { fill: none; stroke: #8c959f; }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3; }
  .value { fill: #9198a1; }
  .theirs { fill: #656c76; }
  .ours { fill: #4493f8; }
}
"""

#: The sections with a panel, by the first part of their keys, and the panels' titles.
_PANELS = {
    "delivered": "Delivered mails a second (longer is better)",
    "queueing": "Median time of a call in a request, in ms (shorter is better)",
}


def draw(sections: Sequence[Section]) -> str:
    parts: list[str] = []
    top = 0
    for kind, title in _PANELS.items():
        figures = [
            one
            for section in sections
            for one in section.figures
            if one.key.startswith(f"{kind}.") and _is_bar(one)
        ]
        if figures:
            parts += _panel(title, figures, top)
            top += _HEAD + _ROW * len(figures)
    size = f'viewBox="0 0 {_WIDTH} {top + 12}" width="{_WIDTH}" height="{top + 12}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">'
    return "\n".join(
        [
            head,
            "<title>The figures of the last benchmark</title>",
            f"<style>{_STYLE}</style>",
            *parts,
            "</svg>",
            "",
        ]
    )


def _is_bar(figure: Figure) -> bool:
    """Return whether the figure gets a bar, or a line that says why it is missing."""
    return figure.value is not None or (bool(figure.why_none) and bool(figure.unit))


def _panel(title: str, figures: Sequence[Figure], top: int) -> Iterator[str]:
    longest = max((figure.value or 0 for figure in figures), default=0) or 1
    yield f'<text class="title" x="12" y="{top + 30}">{escape(title)}</text>'
    for row, figure in enumerate(figures):
        y = top + _HEAD + _ROW * row
        length = _BARS * (figure.value or 0) / longest
        kind = next((kind for kind, mark in _KINDS.items() if mark in figure.key), "theirs")
        words = figure.why_none.partition(":")[0] if figure.value is None else _short(figure.value)
        yield f'<text x="12" y="{y + 15}">{escape(figure.title)}</text>'
        yield (
            f'<rect class="{kind}" x="{_LABELS}" y="{y + 3}" width="{length:.1f}"'
            f' height="{_ROW - 8}" rx="2"/>'
        )
        x = _LABELS + length + 8
        yield f'<text class="value" x="{x:.1f}" y="{y + 15}">{escape(words)}</text>'


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2g}"
