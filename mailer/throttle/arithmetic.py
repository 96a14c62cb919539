"""Limits, and what a process can say about them by itself. The clock and the dice are passed in."""

import math
from collections import deque
from dataclasses import dataclass, field
from typing import Self

from limits import RateLimitItem

from mailer.message import Lane

#: However slow a limit is, what waits for it looks again after so many seconds: the limit may have been raised.
LONGEST_WAIT = 15 * 60.0


@dataclass(frozen=True, slots=True)
class Limit:
    """What a relay or a domain is given at most, by all workers together."""

    key: str
    rates: tuple[RateLimitItem, ...]
    seats: int | None

    def pace(self, seconds_per_mail: float) -> float:
        """About how many mails a second get through."""
        paces = [rate.amount / rate.get_expiry() for rate in self.rates]
        return min([*paces, self.seats / seconds_per_mail] if self.seats else paces)


@dataclass(frozen=True, slots=True)
class Count:
    """How many mails of a rate are left, and in how many seconds there will be more."""

    limit: Limit
    rate: RateLimitItem
    free: int
    wait: float


# --- while nobody counts for all ------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Share:
    """What a process may send by itself: so many mails in any period of so many seconds."""

    amount: int
    period: float
    is_stretched: bool  #: it is less than one mail in the time of the rate, so it is one mail in a longer time

    @classmethod
    def of(cls, rate: RateLimitItem, processes: int) -> Self:
        """Its part of a rate, in whole mails."""
        if processes > rate.amount:
            return cls(1, rate.get_expiry() * processes / rate.amount, is_stretched=True)
        return cls(rate.amount // processes, rate.get_expiry(), is_stretched=False)


class Window:
    """How much of its share a process has used, as far as it knows."""

    def __init__(self) -> None:
        self._used: deque[tuple[float, float]] = deque()  # (when, how many mails), the oldest first

    def learn(self, used: float, share: Share, now: float, dice: float) -> None:
        """This part of the whole rate is used, says who counts for all. Where a share is less than a mail, the dice say when."""
        if share.is_stretched:
            self._used = deque([(now - dice * share.period, 1)])
        else:
            self._used = deque([(now, used * share.amount)])

    def free(self, share: Share, now: float) -> int:
        """How many mails are left."""
        while self._used and self._used[0][0] <= now - share.period:
            self._used.popleft()
        used = sum(mails for _when, mails in self._used)
        return max(0, math.floor(share.amount - used + 1e-9))

    def take(self, mails: float, share: Share, now: float) -> None:
        """Mails of about the same moment are kept as one number, as if all were the last of them."""
        moment = share.period / 100
        when = math.ceil(now / moment) * moment
        if self._used and self._used[-1][0] >= when:
            when, before = self._used.pop()
            mails += before
        self._used.append((when, mails))

    def opens_in(self, share: Share, now: float) -> float:
        """Seconds until more is left; a whole period if nothing was used."""
        return max(0.0, self._used[0][0] + share.period - now) if self._used else share.period


# --- who waits ------------------------------------------------------------------------------------


def spread(first: float, count: int, pace: float) -> list[float]:
    """So many waits, one after the other, and none longer than what waits may be."""
    return [min(first + place / pace, LONGEST_WAIT) for place in range(count)]


@dataclass(slots=True)
class Line:
    """What a process remembers of a limit and of those who wait there."""

    full_until: float = -math.inf
    full_pace: float | None = None  #: how many mails a second the rates let through that were full last
    booked_until: dict[Lane, float] = field(default_factory=dict)  #: behind whom new mail is booked
    rebooked_until: dict[Lane, float] = field(default_factory=dict)  #: of those that came at their time and were refused
    windows: dict[RateLimitItem, Window] = field(default_factory=dict)
    counted_until: float = -math.inf  #: until when nobody else knows what this process has sent

    def window(self, rate: RateLimitItem) -> Window:
        return self.windows.setdefault(rate, Window())

    def book(self, count: int, lane: Lane, pace: float, *, not_before: float, now: float) -> list[float]:
        """Due times in seconds from now, at this pace, behind those that were booked before.

        Each lane has a row of its own: urgent mail is not put behind the bulk mail that waits.
        """
        first = max(max(self.booked_until.get(lane, now), now) + 1 / pace, not_before) - now
        if count and first <= LONGEST_WAIT:
            self.booked_until[lane] = now + min(first + (count - 1) / pace, LONGEST_WAIT)
        return spread(first, count, pace)

    def rebook(self, count: int, lane: Lane, pace: float, *, not_before: float, now: float) -> list[float]:
        """Due times of mail that came at its time and was refused: as soon as the limit opens, before newer mail."""
        before, opens = self.rebooked_until.get(lane, now), max(0.0, not_before - now)
        first = max(before - now + 1 / pace, opens) if before > now else opens or 1 / pace
        if count and first <= LONGEST_WAIT:
            self.rebooked_until[lane] = now + min(first + (count - 1) / pace, LONGEST_WAIT)
            self.booked_until[lane] = max(self.booked_until.get(lane, now), self.rebooked_until[lane])
        return spread(first, count, pace)

    def behind(self, lane: Lane, now: float) -> float:
        """In how many seconds all are through that waited before, in this lane or a more urgent one."""
        return max((until - now for its, until in self.booked_until.items() if its <= lane), default=0.0)

    def forget(self, lane: Lane) -> None:
        """Nobody waits in this lane, nor in a more urgent one."""
        for rows in (self.booked_until, self.rebooked_until):
            for its in [its for its in rows if its <= lane]:
                del rows[its]

    def is_over(self, now: float) -> bool:
        """Whether there is nothing left to remember."""
        return max(self.full_until, self.counted_until, *self.booked_until.values()) <= now
