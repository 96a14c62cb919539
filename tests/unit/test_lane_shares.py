"""The parts of claims that are kept for less urgent lanes."""

from collections import Counter

import pytest

from mailer.message import Lane
from mailer.policy import LaneShares


@pytest.mark.parametrize("limit", [1, 3, 6, 20, 500])
def test_each_less_urgent_lane_gets_a_twentieth(limit: int) -> None:
    """However small the claims are, a twentieth of the mail is kept for each less urgent lane."""
    shares, kept = LaneShares(), Counter[Lane]()
    for _ in range(1000):
        kept.update(shares.take(limit, Lane))

    assert kept.keys() == {Lane.NORMAL, Lane.BULK}
    assert all(abs(number - 50 * limit) <= 1 for number in kept.values())


def test_lanes_take_turns_in_claims_of_one_mail() -> None:
    """Two lanes are not owed a mail in the same claim of one."""
    shares = LaneShares()

    assert all(sum(shares.take(1, Lane).values()) <= 1 for _ in range(100))


def test_the_most_urgent_lane_needs_no_share() -> None:
    """Nothing is kept for the most urgent of the lanes that are claimed."""
    assert LaneShares().take(20, [Lane.BULK, Lane.NORMAL]).keys() == {Lane.BULK}
    assert LaneShares().take(20, [Lane.BULK]) == {}
