"""The figures of a run, each with its bounds."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any


class Reached(StrEnum):
    """The result of a comparison with a bound."""

    AIM = "goal reached"
    AT_LEAST = "limit kept"
    MISSED = "MISSED"
    UNKNOWN = "not measured"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """A limit, which must be kept, and a goal, in the unit of the figure or as a ratio."""

    at_least: float | None
    aim: float
    of_ratio: bool = False
    less_is_better: bool = False

    def judge(self, value: float | None) -> Reached:
        if value is None:
            return Reached.UNKNOWN
        if self._is_met(value, self.aim):
            return Reached.AIM
        if self.at_least is None or self._is_met(value, self.at_least):
            return Reached.AT_LEAST if self.at_least is not None else Reached.MISSED
        return Reached.MISSED

    def _is_met(self, value: float, limit: float) -> bool:
        return value <= limit if self.less_is_better else value >= limit


def at_least(least: float | None, *, aim: float, of_ratio: bool = False) -> Bound:
    """Return bounds of a figure that should be large."""
    return Bound(at_least=least, aim=aim, of_ratio=of_ratio)


def at_most(most: float, *, aim: float, of_ratio: bool = False) -> Bound:
    """Return bounds of a figure that should be small."""
    return Bound(at_least=most, aim=aim, of_ratio=of_ratio, less_is_better=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One line of the table."""

    key: str
    title: str
    value: float | None
    unit: str
    p99: float | None = None
    ratio: float | None = None
    bound: Bound | None = None
    why_none: str = ""  #: the reason if there is no value
    samples: Sequence[float] = field(default=())  #: one per round; the value is their median

    @property
    def reached(self) -> Reached | None:
        if self.bound is None:
            return None
        return self.bound.judge(self.ratio if self.bound.of_ratio else self.value)


@dataclass(frozen=True, slots=True)
class Section:
    """A group of figures."""

    title: str
    note: str
    figures: Sequence[Figure]


def ratio(ours: float | None, theirs: float | None) -> float | None:
    return ours / theirs if ours is not None and theirs else None


def to_json(sections: Sequence[Section]) -> list[dict[str, Any]]:
    return [_shortened(asdict(section)) for section in sections]


def from_json(given: Sequence[Mapping[str, Any]]) -> list[Section]:
    return [
        Section(one["title"], one["note"], [_figure(figure) for figure in one["figures"]])
        for one in given
    ]


def _figure(given: Mapping[str, Any]) -> Figure:
    bound = given["bound"]
    return Figure(**{**given, "bound": Bound(**bound) if bound else None})


def _shortened(value: Any) -> Any:
    """Round to six digits, which are more than a run can tell."""
    match value:
        case float():
            return float(f"{value:.6g}")
        case dict():
            return {key: _shortened(inner) for key, inner in value.items()}
        case list() | tuple():
            return [_shortened(inner) for inner in value]
    return value
