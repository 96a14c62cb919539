"""How much mail goes where, and how fast: limits of relays and of recipient domains, which all workers share.

Nobody waits here: what is over a limit is refused, and told when to come back. The counts are in Redis. While it is away, each
process goes on with its fair share of what was left when Redis was last heard.
"""

import math
import random
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Self, TypeVar

import redis
from limits import RateLimitItem

from mailer.forks import notice_fork, survive_forks
from mailer.logs import get_logger
from mailer.message import Lane
from mailer.settings import Settings
from mailer.settings.rates import OTHERS, read_rates
from mailer.throttle.arithmetic import LONGEST_WAIT, Count, Limit, Line, Share, spread
from mailer.throttle.keeper import Keeper
from mailer.throttle.shared import SEAT_SECONDS, Seat, Shared

_RENEWED_EVERY = 5.0
_ANNOUNCED_EVERY = 10.0
# While Redis is away, a process tries again this seldom.
_QUIET_SECONDS = 10.0
# Others may take what one has just seen free; after so many looks it is their turn.
_LOOKS = 3
_MANY_LINES = 1000

T = TypeVar("T")

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Grant:
    """How many mails may go now, and in how many seconds to ask again for the others."""

    granted: int
    wait: float = 0.0


class Throttle:
    """The limits of one app in one process. Threads share it."""

    def __init__(self, settings: Settings, redis_url: str | None) -> None:
        self._relays, self._domains = ({}, {}) if settings.mail_suppress_send else _configured(settings)
        self.limits_anything = bool(self._relays or self._domains)
        self._shared = Shared(redis_url, settings.installation) if redis_url and self.limits_anything else None
        self._here = _Process()
        self._keeper = Keeper()
        survive_forks(self)

    def admit(self, relay: str, domain: str, wanted: int) -> Grant:
        """How many of so many mails to a domain may go over a relay now. What is granted and not sent is lost.

        An empty domain stands for those without a limit, whichever they are.
        """
        limits = [limit for limit in self._limits(relay, domain) if limit.rates]
        if not limits:
            return Grant(wanted)
        return self._over_redis(lambda shared: self._admit_together(shared, limits, wanted)) or self._admit_alone(limits, wanted)

    def book(
        self,
        relay: str,
        domain: str,
        count: int,
        lane: Lane,
        *,
        seconds_per_mail: float,
        again: bool = False,
        is_refused: bool = True,
    ) -> list[float]:
        """When so many mails that must wait are to come back, in seconds from now: not all at once, and each in its turn.

        `again`: they came when it was their turn, and the limit was full: they are not put behind those who came later.
        Not `is_refused`: they have not asked, since others waited before them.
        `seconds_per_mail` is for a limit of connections alone, which says nothing about mails.
        """
        limits = self._limits(relay, domain)
        if not limits or not count:
            return [0.0] * count
        now, here = time.monotonic(), self._here
        with here.lock:
            full_until = here.full_until(limits)
            limit, pace = here.tightest(limits, lane, seconds_per_mail, is_refused=is_refused, now=now)
        booked = self._over_redis(
            lambda shared: shared.book(
                limit, lane, count, pace, opens=max(0.0, full_until - now), again=again, is_refused=is_refused
            )
        )
        with here.lock:
            line = here.line(limit)
            row = line.rebook if again else line.book
            waits = row(count, lane, booked[1] if booked else pace, not_before=full_until, now=now)
        return spread(booked[0], count, booked[1]) if booked else waits

    def behind(self, relay: str, domain: str, lane: Lane) -> float:
        """In how many seconds all are through that wait at one of the limits, in this lane or a more urgent one."""
        return max((self._behind(limit, lane) for limit in self._limits(relay, domain)), default=0.0)

    def forget_line(self, relay: str, domain: str, lane: Lane) -> None:
        """Nobody waits there any more, in this lane or a more urgent one."""
        for limit in self._limits(relay, domain):
            with self._here.lock:
                self._here.line(limit).forget(lane)
            self._over_redis(lambda shared, limit=limit: shared.forget(limit, lane))  # type: ignore[misc]

    def _behind(self, limit: Limit, lane: Lane) -> float:
        seconds = self._over_redis(lambda shared: shared.behind(limit, lane))
        now = time.monotonic()
        with self._here.lock:
            line = self._here.line(limit)
            if seconds is None:
                return line.behind(lane, now)
            if seconds > 0:  # known here as well, should Redis go away
                line.booked_until[lane] = max(line.booked_until.get(lane, now), now + seconds)
        return seconds

    def seats(self) -> "Seats":
        """An empty hand, to take seats with: connections of a relay, senders to a domain."""
        notice_fork()
        return Seats(self)

    # --- which limits -----------------------------------------------------------------------------

    def of_relay(self, name: str) -> Limit | None:
        return self._relays.get(name)

    def of_domain(self, domain: str) -> Limit | None:
        """The limit of exactly this domain, or of each domain that is not named."""
        if not self._domains or not domain:
            return None
        domain = domain.lower()
        limit = self._domains.get(domain)
        if limit is None and (others := self._domains.get(OTHERS)):
            limit = Limit(f"domain/{domain}", others.rates, others.seats)
        return limit if limit and (limit.rates or limit.seats) else None

    def _limits(self, relay: str, domain: str) -> list[Limit]:
        return [limit for limit in (self.of_relay(relay), self.of_domain(domain)) if limit]

    # --- rates ------------------------------------------------------------------------------------

    def _admit_together(self, shared: Shared, limits: list[Limit], wanted: int) -> Grant:
        """Look at all counts, then take, first from the one with least left: if others are faster, little is lost."""
        with self._here.lock:
            full_for = self._here.full_until(limits) - time.monotonic()
        if full_for > 0:
            return Grant(0, full_for)
        for _look in range(_LOOKS):
            counts = sorted((shared.count(limit, rate) for limit, rate in _rates(limits)), key=lambda count: count.free)
            granted = min(wanted, counts[0].free)
            if all(shared.take(granted, count.limit, count.rate) for count in counts):
                with self._here.lock:
                    self._here.learn(counts, granted)
                    return Grant(granted, self._here.close(counts, granted, wanted))
        return Grant(0, counts[0].wait)

    def _admit_alone(self, limits: list[Limit], wanted: int) -> Grant:
        """The same from this process's share."""
        with self._here.lock:
            counts = [self._here.count(limit, rate) for limit, rate in _rates(limits)]
            granted = min(wanted, *(count.free for count in counts))
            if granted:
                self._here.take(granted, counts)
            return Grant(granted, self._here.close(counts, granted, wanted))

    # --- seats ------------------------------------------------------------------------------------

    def take_seat(self, seat: Seat) -> bool:
        heard = self._over_redis(lambda shared: shared.take_seat(seat))
        here, limit = self._here, seat.limit
        with here.lock:
            least = max(1, (limit.seats or 0) // here.processes)
            taken = here.seats[limit.key] < least if heard is None else heard
            here.seats[limit.key] += taken
        if heard is None and not taken and self._shared is not None:
            here.note_left([seat])  # it may have been taken there, and the answer lost
        return taken

    def keep_seats(self, seats: Sequence[Seat]) -> list[Seat]:
        """Return those that are somebody else's by now."""
        lost = self._over_redis(lambda shared: shared.keep_seats(seats)) or []
        self._here.leave(lost)
        return lost

    def look_after(self, hand: "Seats") -> None:
        """Keep what is in this hand, however long it does nothing about it."""
        if self._shared is not None:
            self._keeper.add(hand)

    def extend_seats(self, seats: Sequence[Seat]) -> None:
        """Keep them, and take again what Redis lost, if it is free."""
        self._over_redis(lambda shared: shared.keep_seats(seats))

    def leave_seats(self, hand: "Seats", seats: Sequence[Seat]) -> None:
        """Give seats back; if Redis does not answer, the keeper sees to it that this is done later."""
        if hand.is_empty:
            self._keeper.discard(hand)
        self._here.leave(seats)
        if self._shared is not None:
            self._here.note_left(seats)
            self.extend()

    def extend(self) -> None:
        """Give back what Redis has not heard of yet: until it has, this is one more hand of the keeper."""
        self._keeper.discard(self)
        if self._here.left:
            self._over_redis(lambda _shared: None)
        if self._here.has_left():
            self._keeper.add(self)

    # --- over Redis, or alone ---------------------------------------------------------------------

    def _over_redis(self, ask: Callable[[Shared], T]) -> T | None:
        """The answer, or None while Redis is away: one time-out finds out, and then it is left alone for a while."""
        here, now = self._here, time.monotonic()
        if self._shared is None or now < here.quiet_until:
            return None
        if here.is_alone:
            here.quiet_until = now + _QUIET_SECONDS  # this thread looks; the others go on
        try:
            if now >= here.announced_at + _ANNOUNCED_EVERY:
                here.hear(self._shared.announce(here.name), now)
            if left := here.left.copy():
                self._shared.leave_seats(left)
                here.forget_left(left)
            return ask(self._shared)
        except (redis.RedisError, OSError) as error:
            here.quiet_until = time.monotonic() + _QUIET_SECONDS
            if not here.is_alone:
                log.warning("Redis does not answer (%s): this process keeps to 1/%d of the limits.", error, here.processes)
            here.is_alone = True
            return None

    def after_fork_in_child(self) -> None:
        """In a child: what the parent knew and held is not the child's. Redis' own client opens new connections."""
        self._here = _Process()
        self._keeper = Keeper()


class Seats:
    """What somebody holds while a relay or a domain is in use. Each limit has so many seats and no more."""

    def __init__(self, throttle: Throttle) -> None:
        self._throttle = throttle
        self._held: dict[str, Seat] = {}  # by the key of the limit
        self._renewed_at = time.monotonic()
        self._lock = threading.Lock()  # the keeper takes again what was lost, but not what was given back
        survive_forks(self)

    def take_relay(self, name: str) -> bool:
        """Whether one more connection of this relay may be used, which it is from now on. It never waits."""
        return self._take(self._throttle.of_relay(name))

    def take_domain(self, domain: str) -> bool:
        """The same for one more that sends to this domain."""
        return self._take(self._throttle.of_domain(domain))

    def _take(self, limit: Limit | None) -> bool:
        self.renew()
        if limit is None or not limit.seats or limit.key in self._held:
            return True
        taken = self._throttle.take_seat(seat := Seat(limit))
        if taken:
            self._held[limit.key] = seat
            self._throttle.look_after(self)
        return taken

    def renew(self) -> None:
        """Say that all seats are still used, and drop those that were lost, as by a long freeze.

        To be called between mails, which costs nothing most of the time.
        """
        if self._held and time.monotonic() >= self._renewed_at + _RENEWED_EVERY:
            self._renewed_at = time.monotonic()
            with self._lock:
                for seat in self._throttle.keep_seats([*self._held.values()]):
                    del self._held[seat.limit.key]

    def extend(self) -> None:
        """Keep all seats for longer: for another thread than the one that uses them."""
        with self._lock:
            if self._held:
                self._throttle.extend_seats([*self._held.values()])

    @property
    def is_empty(self) -> bool:
        return not self._held

    def has_relay(self, name: str) -> bool:
        """Whether a connection of this relay is taken."""
        limit = self._throttle.of_relay(name)
        return limit is not None and limit.key in self._held

    def leave_relay(self, name: str) -> None:
        """Give one of this relay back, if it is taken."""
        limit = self._throttle.of_relay(name)
        if limit is not None and limit.key in self._held:
            with self._lock:
                seat = self._held.pop(limit.key)
            self._throttle.leave_seats(self, [seat])

    def release(self) -> None:
        """Give all seats back."""
        with self._lock:
            held, self._held = self._held, {}
        if held:
            self._throttle.leave_seats(self, [*held.values()])

    def after_fork_in_child(self) -> None:
        """In a child: the seats are the parent's, whose keeper may have held the lock."""
        self._lock = threading.Lock()
        self._held = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.release()


class _Process:
    """What this process knows by itself. Whoever uses the lines and the seats holds the lock, and never while asking Redis."""

    def __init__(self) -> None:
        self.name = secrets.token_hex(8)
        self.lock = threading.Lock()
        self.seats: Counter[str] = Counter()
        self.left: dict[Seat, float] = {}  #: when they were given back, until Redis has heard of it
        self.processes = 1  #: how many shared the limits when Redis was last heard
        self.announced_at = -math.inf
        self.is_alone = False
        self.quiet_until = -math.inf
        self._lines: dict[str, Line] = {}
        self._many_lines = _MANY_LINES

    def hear(self, processes: int, now: float) -> None:
        """Redis answers, and says how many processes share the limits."""
        with self.lock:
            if self.is_alone:  # what is full is for Redis to say from now on
                for line in self._lines.values():
                    line.full_until = -math.inf
            self.processes, self.announced_at = processes, now
            self.is_alone, self.quiet_until = False, -math.inf

    def leave(self, seats: Iterable[Seat]) -> None:
        """Free these seats here."""
        with self.lock:
            self.seats -= Counter(seat.limit.key for seat in seats)

    def note_left(self, seats: Iterable[Seat]) -> None:
        """Redis has to hear of these."""
        with self.lock:
            self.left.update(dict.fromkeys(seats, time.monotonic()))

    def forget_left(self, seats: Iterable[Seat]) -> None:
        """Redis has heard of these."""
        with self.lock:
            for seat in seats:
                self.left.pop(seat, None)

    def has_left(self) -> bool:
        """Whether Redis has to hear of any, but for those that it has freed by itself."""
        with self.lock:
            long_ago = time.monotonic() - SEAT_SECONDS
            self.left = {seat: at for seat, at in self.left.items() if at > long_ago}
            return bool(self.left)

    def line(self, limit: Limit) -> Line:
        """Now and then, those of domains that nobody asks for any more are dropped."""
        if len(self._lines) > self._many_lines:
            now = time.monotonic()
            self._lines = {key: line for key, line in self._lines.items() if not line.is_over(now)}
            self._many_lines = max(_MANY_LINES, 2 * len(self._lines))
        return self._lines.setdefault(limit.key, Line())

    def full_until(self, limits: list[Limit]) -> float:
        return max(self.line(limit).full_until for limit in limits)

    def tightest(
        self, limits: list[Limit], lane: Lane, seconds_per_mail: float, *, is_refused: bool, now: float
    ) -> tuple[Limit, float]:
        """The limit to wait at, and about how many mails a second it lets through.

        One that is full, else where others wait, else the slowest.
        """
        full = [limit for limit in limits if self.line(limit).full_until > now]
        paces = {limit: self._pace(limit, seconds_per_mail, is_full=limit in full) for limit in limits}
        if not is_refused:
            limit = max(limits, key=lambda one: self.line(one).behind(lane, now))
        else:
            limit = min(full or limits, key=paces.__getitem__)
        return limit, paces[limit]

    def _pace(self, limit: Limit, seconds_per_mail: float, *, is_full: bool) -> float:
        """Of several rates, that of those which are full counts: 50000 a day say nothing of a busy second."""
        full_pace = self.line(limit).full_pace
        return full_pace if is_full and full_pace else limit.pace(seconds_per_mail)

    def close(self, counts: Sequence[Count], granted: int, wanted: int) -> float:
        """Remember which limits are full now; returns in how many seconds none of them is."""
        if granted == wanted:
            return 0.0
        full = [count for count in counts if count.free == granted]
        for limit in {count.limit for count in full}:
            line, its = self.line(limit), [count for count in full if count.limit is limit]
            line.full_until = time.monotonic() + min(max(count.wait for count in its), LONGEST_WAIT)
            line.full_pace = min(count.rate.amount / count.rate.get_expiry() for count in its)
        return max(count.wait for count in full)

    def learn(self, counts: Sequence[Count], granted: int) -> None:
        """Remember how much is used, for the case that Redis goes away now."""
        for count in counts:
            used, dice = 1 - (count.free - granted) / count.rate.amount, random.random()  # noqa: S311 -- spreads processes
            share = Share.of(count.rate, self.processes)
            self.line(count.limit).window(count.rate).learn(used, share, time.monotonic(), dice)

    def count(self, limit: Limit, rate: RateLimitItem) -> Count:
        """What is left of this process's share."""
        share, window, now = Share.of(rate, self.processes), self.line(limit).window(rate), time.monotonic()
        return Count(limit, rate, window.free(share, now), window.opens_in(share, now))

    def take(self, granted: int, counts: Iterable[Count]) -> None:
        now = time.monotonic()
        for count in counts:
            share, line = Share.of(count.rate, self.processes), self.line(count.limit)
            line.window(count.rate).take(granted, share, now)
            line.counted_until = max(line.counted_until, now + share.period)


def _configured(settings: Settings) -> tuple[dict[str, Limit], dict[str, Limit]]:
    """The limits of relays and of domains, by name."""
    relays = {
        relay.name: Limit(f"relay/{relay.name}", read_rates(relay.relay_rate), relay.relay_concurrency)
        for relay in settings.relays
        if relay.relay_rate or relay.relay_concurrency
    }
    domains = {
        domain: Limit(f"domain/{domain}", read_rates(limit.rate), limit.concurrency)
        for domain, limit in settings.domain_limits.items()
    }
    return relays, domains


def _rates(limits: Iterable[Limit]) -> list[tuple[Limit, RateLimitItem]]:
    return [(limit, rate) for limit in limits for rate in limit.rates]
