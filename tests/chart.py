"""The state chart as docs/states.md draws it."""

import re
from pathlib import Path

from mailer.message import Status

PAGE = Path(__file__).parents[1] / "docs" / "states.md"

_ARROW = re.compile(r"^ +(?P<source>\w+) --> (?P<target>\w+): (?P<verbs>.+)$", re.MULTILINE)


def drawn() -> dict[tuple[Status, Status], set[str]]:
    """The methods of the store that are written at each arrow."""
    [chart] = re.findall(r"```mermaid\nstateDiagram-v2\n(.*?)```", PAGE.read_text(), re.DOTALL)
    return {
        (Status(arrow["source"]), Status(arrow["target"])): set(arrow["verbs"].split(", "))
        for arrow in _ARROW.finditer(chart)
    }
