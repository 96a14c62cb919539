"""Rounds in alternating order, so that a slow moment of the machine affects all contenders."""

import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Generic, TypeVar

import pytest

from bench.program import Failed, Missing

T = TypeVar("T")


@dataclass(slots=True)
class Rounds(Generic[T]):
    """The results of one contender in each round, or the reason why it has none."""

    results: list[T] = field(default_factory=list)
    why_none: str = ""

    def samples(self, value: Callable[[T], float | None]) -> list[float]:
        return [sample for result in self.results if (sample := value(result)) is not None]

    def median(self, value: Callable[[T], float | None]) -> float | None:
        samples = self.samples(value)
        return median(samples) if samples else None


def alternate(
    part: str, rounds: Mapping[str, Callable[[Path], T]], repeats: int
) -> dict[str, Rounds[T]]:
    """Measure each in a new folder; drop one that fails or is missing."""
    done: dict[str, Rounds[T]] = {title: Rounds() for title in rounds}
    for repeat in range(repeats):
        for title in _order(list(rounds), repeat):
            if done[title].why_none:
                continue
            tell(f"{part} {repeat + 1}/{repeats}: {title}")
            with tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as folder:
                try:
                    done[title].results.append(rounds[title](Path(folder)))
                except Missing as reason:
                    done[title].why_none = f"missing: {reason}"
                except Failed as reason:
                    done[title] = Rounds(why_none=f"failed: {reason}")
                except (Exception, pytest.fail.Exception) as error:  # noqa: BLE001 -- the others go on
                    done[title] = Rounds(why_none=f"failed: {type(error).__name__}: {error}")
            if done[title].why_none:
                tell(f"  {done[title].why_none}")
    return done


def _order(titles: Sequence[str], repeat: int) -> Sequence[str]:
    return titles if repeat % 2 == 0 else titles[::-1]


def tell(words: str) -> None:
    """Print progress to stderr. The table goes to stdout."""
    print(words, file=sys.stderr, flush=True)
