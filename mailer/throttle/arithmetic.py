"""The arithmetic of limits within a process. Time and jitter are passed in."""

import math
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from mailer.message import Lane

if TYPE_CHECKING:
    from limits import RateLimitItem

#: The maximum of seconds that mail waits at a limit: the limit may be raised in the meantime.
LONGEST_WAIT = 15 * 60.0


@dataclass(frozen=True, slots=True)
class Limit:
    """The limit of a relay or a domain, for all workers together."""

    key: str
    rates: "tuple[RateLimitItem, ...]"
    slots: int | None

    def pace(self, seconds_per_mail: float) -> float:
        """Return the approximate number of mails per second."""
        paces = [rate.amount / rate.get_expiry() for rate in self.rates]
        return min([*paces, self.slots / seconds_per_mail] if self.slots else paces)


@dataclass(frozen=True, slots=True)
class Count:
    """The rest of a rate in mails, and the seconds until there will be more."""

    limit: Limit
    rate: "RateLimitItem"
    free: int
    wait: float


# --- while Redis is down ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Share:
    """The share of a process: a number of mails within any period of some seconds."""

    amount: int
    period: float
    #: True if the share is below one mail in the period of the rate: one mail in a longer period.
    is_stretched: bool

    @classmethod
    def of(cls, rate: "RateLimitItem", processes: int) -> Self:
        """Return the share of a process in a rate, in whole mails."""
        if processes > rate.amount:
            return cls(1, rate.get_expiry() * processes / rate.amount, is_stretched=True)
        return cls(rate.amount // processes, rate.get_expiry(), is_stretched=False)


class Window:
    """The mails that a process has used of its share, as far as it knows."""

    def __init__(self) -> None:
        self._used: deque[tuple[float, float]] = deque()  # (when, how many mails), the oldest first

    def learn(self, used: float, share: Share, now: float, jitter: float) -> None:
        """Start from the used part of the whole rate. Shares below one mail start at random."""
        if share.is_stretched:
            self._used = deque([(now - jitter * share.period, 1)])
        else:
            self._used = deque([(now, used * share.amount)])

    def free(self, share: Share, now: float) -> int:
        """Return the number of mails that are left."""
        while self._used and self._used[0][0] <= now - share.period:
            self._used.popleft()
        used = sum(mails for _when, mails in self._used)
        return max(0, math.floor(share.amount - used + 1e-9))

    def take(self, mails: float, share: Share, now: float) -> None:
        """Count mails. Those of about the same time are one entry, with the time of the last."""
        moment = share.period / 100
        when = math.ceil(now / moment) * moment
        if self._used and self._used[-1][0] >= when:
            when, before = self._used.pop()
            mails += before
        self._used.append((when, mails))

    def opens_in(self, share: Share, now: float) -> float:
        """Return the seconds until more is left: a whole period if nothing was used."""
        return max(0.0, self._used[0][0] + share.period - now) if self._used else share.period


# --- waiting mail -------------------------------------------------------------------------------


def spread(first: float, count: int, pace: float) -> list[float]:
    """Return waits in order, at this pace, none above the maximum."""
    return [min(first + place / pace, LONGEST_WAIT) for place in range(count)]


@dataclass(slots=True)
class LimitState:
    """The state of a limit and of the mail that waits there."""

    full_until: float = -math.inf
    full_pace: float | None = None  #: mails per second of the rates that were full last
    #: New mail is booked behind these times.
    booked_until: dict[Lane, float] = field(default_factory=dict)
    #: The same for mail that came back in time and was refused.
    rebooked_until: dict[Lane, float] = field(default_factory=dict)
    windows: "dict[RateLimitItem, Window]" = field(default_factory=dict)
    counted_until: float = -math.inf  #: until then, only this process knows its sent mails

    def window(self, rate: "RateLimitItem") -> Window:
        return self.windows.setdefault(rate, Window())

    def book(
        self, count: int, lane: Lane, pace: float, *, not_before: float, now: float
    ) -> list[float]:
        """Return due times in seconds from now, at this pace, behind earlier bookings.

        Each lane has its own order: urgent mail never waits behind bulk mail.
        """
        first = max(max(self.booked_until.get(lane, now), now) + 1 / pace, not_before) - now
        if count and first <= LONGEST_WAIT:
            self.booked_until[lane] = now + min(first + (count - 1) / pace, LONGEST_WAIT)
        return spread(first, count, pace)

    def rebook(
        self, count: int, lane: Lane, pace: float, *, not_before: float, now: float
    ) -> list[float]:
        """Return due times of mail that came back in time and was refused: before newer mail."""
        before, opens = self.rebooked_until.get(lane, now), max(0.0, not_before - now)
        first = max(before - now + 1 / pace, opens) if before > now else opens or 1 / pace
        if count and first <= LONGEST_WAIT:
            self.rebooked_until[lane] = now + min(first + (count - 1) / pace, LONGEST_WAIT)
            self.booked_until[lane] = max(
                self.booked_until.get(lane, now), self.rebooked_until[lane]
            )
        return spread(first, count, pace)

    def behind(self, lane: Lane, now: float) -> float:
        """Return the seconds until all waiting mail of this lane and more urgent ones has gone."""
        return max(
            (until - now for its, until in self.booked_until.items() if its <= lane), default=0.0
        )

    def forget(self, lane: Lane) -> None:
        """Forget the waiting mail of this lane and more urgent ones."""
        for rows in (self.booked_until, self.rebooked_until):
            for its in [its for its in rows if its <= lane]:
                del rows[its]

    def is_over(self, now: float) -> bool:
        """Return whether nothing is left to remember."""
        return max(self.full_until, self.counted_until, *self.booked_until.values()) <= now
