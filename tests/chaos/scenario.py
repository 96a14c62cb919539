"""A scenario: what is broken, in a short form and in a long one, and what must hold all the same."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TypeVar

from tests.chaos.history import Tally

T = TypeVar("T")


class Size(Enum):
    """How long it goes on."""

    SHORT = "short"  #: each fault happens, a few times
    LONG = "long"  #: in `make chaos`

    def pick(self, short: T, long: T) -> T:
        return short if self is Size.SHORT else long


@dataclass(slots=True)
class Report:
    """What came of it. `broken` are the promises that were not kept, in words."""

    faults: int = 0
    tally: Tally | None = None
    remarks: list[str] = field(default_factory=list)  #: what was measured: "resumed after 2.1 s"
    broken: list[str] = field(default_factory=list)

    def expect(self, is_so: bool, otherwise: str) -> None:
        """A promise: if it was not kept, that is told, and the scenario goes on."""
        if not is_so:
            self.broken.append(otherwise)

    def expect_nothing_lost(self, *, twice: int = 0, in_doubt: int | None = 0) -> None:
        """`twice` and `in_doubt` are what is allowed at most; None: any number, as it is listed."""
        assert self.tally is not None
        tally = self.tally
        self.expect(tally.accepted > 0, "nothing was accepted: the scenario says nothing")
        self.expect(tally.lost == 0, f"{tally.lost} lost")
        self.expect(tally.waiting == 0, f"{tally.waiting} still wait")
        self.expect(tally.twice <= twice, f"{tally.twice} sent twice, {twice} at most")
        if in_doubt is not None:
            self.expect(
                tally.in_doubt <= in_doubt, f"{tally.in_doubt} in doubt, {in_doubt} at most"
            )


@dataclass(frozen=True, slots=True)
class Scenario:
    """A row of the table. `run` gets an empty folder of its own."""

    name: str
    run: Callable[[Path, Size], Report]


def named(name: str, **variants: Callable[[Path, Size], Report]) -> Iterable[Scenario]:
    """The same fault in several settings: "kill -9, prefork", "kill -9, threads"."""
    return [Scenario(f"{name}, {variant}", run) for variant, run in variants.items()]
