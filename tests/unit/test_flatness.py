"""The rule by which a soak judges whether a figure stayed flat."""

from itertools import repeat

import pytest

from tests.chaos.flatness import Bound, Series


def series(*quarters: float, bound: Bound | None) -> Series:
    """Return a series with ten equal values in each quarter."""
    return Series(
        "Memory",
        "worker",
        "MB",
        bound,
        [value for quarter in quarters for value in repeat(quarter, 10)],
    )


BOUND = Bound(share=0.1, beside=5)


@pytest.mark.parametrize(
    ("last", "is_flat"), [(100, True), (115, True), (115.1, False), (20, True)]
)
def test_the_last_quarter_is_compared_with_the_second(last: float, is_flat: bool) -> None:
    """The last quarter may exceed the second by the bound; the first and third do not count."""
    assert series(10, 100, 500, last, bound=BOUND).is_flat is is_flat


def test_a_fault_is_no_growth() -> None:
    """A short peak or a missing value does not count as growth."""
    disturbed = series(100, 100, 100, 100, bound=BOUND)
    disturbed.values[-4:] = [900.0, None, 900.0, None]

    assert disturbed.is_flat
    assert disturbed.most == 900


def test_what_has_no_bound_is_not_judged() -> None:
    """A figure without a bound counts as flat."""
    assert series(1, 1, 1, 100, bound=None).is_flat


def test_a_run_too_short_to_judge_says_so() -> None:
    """A run with a quarter without values is too short to judge, which is an error."""
    with pytest.raises(ValueError, match="let it run for longer"):
        _ = Series("Queue", "waiting", "", BOUND, [None, None, None, None]).after
