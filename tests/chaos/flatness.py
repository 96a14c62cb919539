"""Whether a figure stayed where it was: pure arithmetic on what was measured."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median


@dataclass(frozen=True, slots=True)
class Bound:
    """How much more the last quarter may have than the second: the first is for warming up."""

    share: float  #: of what the second quarter had
    beside: float  #: in the unit of the figure

    def of(self, before: float) -> float:
        return before * (1 + self.share) + self.beside


@dataclass(slots=True)
class Series:
    """One figure over time."""

    plot: str  #: which plot it is drawn in
    name: str
    unit: str
    bound: Bound | None = None  #: None: it is shown, and not judged
    values: list[float | None] = field(
        default_factory=list
    )  #: None: it could not be read at that moment

    @property
    def before(self) -> float:
        """What it was in the second quarter.

        The median: a fault is to disturb it, not to hide what remains after it.
        """
        return self._quarter(1)

    @property
    def after(self) -> float:
        """What it was in the last quarter."""
        return self._quarter(3)

    @property
    def most(self) -> float:
        return max(self._known(self.values), default=0.0)

    @property
    def is_flat(self) -> bool:
        return self.bound is None or self.after <= self.bound.of(self.before)

    def _quarter(self, number: int) -> float:
        length = len(self.values)
        known = self._known(self.values[length * number // 4 : length * (number + 1) // 4])
        if not known:
            raise ValueError(
                f"{self.plot}, {self.name}: nothing was measured in quarter {number + 1}: let it"
                " run for longer"
            )
        return median(known)

    @staticmethod
    def _known(values: Sequence[float | None]) -> list[float]:
        return [value for value in values if value is not None]
