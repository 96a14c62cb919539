"""Draw figures over time as an SVG, readable on a light and on a dark page."""

from collections.abc import Iterator, Sequence
from html import escape

from tests.chaos.flatness import Series

_WIDTH, _HEIGHT = 800, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 60, 780, 44, 250

_STYLE = """
text { font: 12px system-ui, sans-serif; fill: #24292f; }
.title { font-weight: 600; }
.axis { fill: #57606a; }
.quarter { fill: #8c959f; opacity: 0.12; }
.grid { stroke: #8c959f; opacity: 0.4; }
polyline { fill: none; stroke-width: 1.5; }
.c0 { stroke: #0969da; } .c1 { stroke: #bc4c00; } .c2 { stroke: #1a7f37; } .c3 { stroke: #8250df; }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3; }
  .axis { fill: #9198a1; }
  .c0 { stroke: #4493f8; } .c1 { stroke: #f0883e; }
  .c2 { stroke: #3fb950; } .c3 { stroke: #ab7df8; }
}
"""
_COLOURS = 4


def draw(title: str, moments: Sequence[float], series: Sequence[Series]) -> str:
    """Draw a line for each figure, and shade the two quarters that are compared."""
    most = max((one.most for one in series), default=0.0) or 1.0
    unit = series[0].unit
    size = f'viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" height="{_HEIGHT}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">',
        f"<title>{escape(title)} over time</title>",
        f"<style>{_STYLE}</style>",
        f'<text class="title" x="12" y="24">{escape(title + (f", {unit}" if unit else ""))}</text>',
        *_frame(most, moments[-1]),
        *_legend(series),
        *(line for number, one in enumerate(series) for line in _lines(one, moments, most, number)),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _frame(most: float, seconds: float) -> Iterator[str]:
    quarter = (_RIGHT - _LEFT) / 4
    for number in (1, 3):
        x = _LEFT + number * quarter
        yield (
            f'<rect class="quarter" x="{x:.0f}" y="{_TOP}"'
            f' width="{quarter:.0f}" height="{_BOTTOM - _TOP}"/>'
        )
    for share in (0.0, 0.5, 1.0):
        y = _BOTTOM - share * (_BOTTOM - _TOP)
        yield f'<line class="grid" x1="{_LEFT}" x2="{_RIGHT}" y1="{y:.0f}" y2="{y:.0f}"/>'
        yield (
            f'<text class="axis" x="{_LEFT - 8}" y="{y + 4:.0f}"'
            f' text-anchor="end">{share * most:.3g}</text>'
        )
    for number in range(5):
        x, minute = _LEFT + number * quarter, number * seconds / 240
        anchor = "end" if number == 4 else "middle"
        yield (
            f'<text class="axis" x="{x:.0f}" y="{_BOTTOM + 18}"'
            f' text-anchor="{anchor}">{minute:.3g} min</text>'
        )


def _legend(series: Sequence[Series]) -> Iterator[str]:
    for number, one in enumerate(series):
        x = _LEFT + number * (_RIGHT - _LEFT) / _COLOURS
        yield (
            f'<line class="{_colour(number)}" x1="{x:.0f}" x2="{x + 16:.0f}"'
            ' y1="285" y2="285" stroke-width="3"/>'
        )
        yield f'<text class="axis" x="{x + 22:.0f}" y="289">{escape(one.name)}</text>'


def _lines(one: Series, moments: Sequence[float], most: float, number: int) -> Iterator[str]:
    """Draw one polyline, or several with gaps where a value could not be read."""
    pieces: list[list[str]] = [[]]
    for moment, value in zip(moments, one.values, strict=True):
        if value is None:
            pieces.append([])
            continue
        x = _LEFT + (_RIGHT - _LEFT) * moment / (moments[-1] or 1.0)
        pieces[-1].append(f"{x:.1f},{_BOTTOM - (_BOTTOM - _TOP) * value / most:.1f}")
    for piece in pieces:
        if piece:
            yield f'<polyline class="{_colour(number)}" points="{" ".join(piece)}"/>'


def _colour(number: int) -> str:
    return f"c{number % _COLOURS}"
