"""The parts of a scenario: its name, its two sizes and its report."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TypeVar

from tests.chaos.history import Tally

T = TypeVar("T")


class Size(Enum):
    """How long a scenario runs."""

    SHORT = "short"  #: each fault happens a few times
    LONG = "long"  #: the form of `make chaos`

    def pick(self, short: T, long: T) -> T:
        return short if self is Size.SHORT else long


@dataclass(slots=True)
class Report:
    """The results of a scenario. `broken` lists the broken promises in words."""

    faults: int = 0
    tally: Tally | None = None
    remarks: list[str] = field(default_factory=list)  #: measurements: "resumed after 2.1 s"
    broken: list[str] = field(default_factory=list)

    def expect(self, is_so: bool, otherwise: str) -> None:
        """Note a broken promise if the condition is false, and let the scenario go on."""
        if not is_so:
            self.broken.append(otherwise)

    def expect_nothing_lost(self, *, twice: int = 0, in_doubt: int | None = 0) -> None:
        """Allow at most `twice` and `in_doubt` mails, or any number for None."""
        assert self.tally is not None
        tally = self.tally
        self.expect(tally.accepted > 0, "no mail was accepted: the scenario proves nothing")
        self.expect(tally.lost == 0, f"{tally.lost} lost")
        self.expect(tally.waiting == 0, f"{tally.waiting} are still waiting")
        self.expect(tally.twice <= twice, f"{tally.twice} sent twice, {twice} allowed")
        if in_doubt is not None:
            self.expect(
                tally.in_doubt <= in_doubt, f"{tally.in_doubt} in doubt, {in_doubt} allowed"
            )


@dataclass(frozen=True, slots=True)
class Scenario:
    """A row of the table. `run` gets an empty folder of its own."""

    name: str
    run: Callable[[Path, Size], Report]


def named(name: str, **variants: Callable[[Path, Size], Report]) -> Iterable[Scenario]:
    """Name the same fault in several settings: "kill -9, prefork", "kill -9, threads"."""
    return [Scenario(f"{name}, {variant}", run) for variant, run in variants.items()]
