"""Pure arithmetic that decides whether a figure grew during a soak."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median


@dataclass(frozen=True, slots=True)
class Bound:
    """How much more the last quarter may have than the second. The first is for warming up."""

    share: float  #: of the second quarter's value
    beside: float  #: added to it, in the unit of the figure

    def of(self, before: float) -> float:
        return before * (1 + self.share) + self.beside


@dataclass(slots=True)
class Series:
    """One figure over time."""

    plot: str  #: the plot that it is drawn in
    name: str
    unit: str
    bound: Bound | None = None  #: None: it is shown, and not judged
    #: None: it could not be read at that moment
    values: list[float | None] = field(default_factory=list)

    @property
    def before(self) -> float:
        """Return the median of the second quarter, which a short fault does not move."""
        return self._quarter(1)

    @property
    def after(self) -> float:
        """Return the median of the last quarter."""
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
