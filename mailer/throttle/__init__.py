"""The limits of relays and recipient domains, which all workers share.

Nothing here blocks: mail over a limit is refused, with the time at which to come back. The counts
are in Redis. While Redis is down, each process uses its fair share of the rest that it last knew.
"""

import math
import secrets
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from logging import Logger
from typing import TYPE_CHECKING, Self, TypeVar

import redis

from mailer.forks import notice_fork, survive_forks
from mailer.logs import get_logger
from mailer.message import Lane
from mailer.message.ports import Clock
from mailer.settings import Settings
from mailer.settings.rates import OTHERS, read_rates
from mailer.throttle.arithmetic import LONGEST_WAIT, Count, Limit, LimitState, Share, spread
from mailer.throttle.renewer import Renewer
from mailer.throttle.shared import SLOT_SECONDS, Shared, Slot

if TYPE_CHECKING:
    from limits import RateLimitItem

_RENEWED_EVERY = 5.0
_ANNOUNCED_EVERY = 10.0
# The time between two tries to reach Redis while it is down.
_QUIET_SECONDS = 10.0
# The tries to take from counts that were just free: others may be faster.
_TRIES = 3
_MANY_STATES = 1000

T = TypeVar("T")

log: Logger = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Grant:
    """The number of mails that may go now, and the seconds until others may."""

    granted: int
    wait: float = 0.0


class Throttle:
    """The limits of an app in this process. Threads share it."""

    def __init__(self, settings: Settings, redis_url: str | None, clock: Clock) -> None:
        self._relays, self._domains = _configured(settings)
        self.limits_anything: bool = bool(self._relays or self._domains)
        self.clock = clock
        self._shared: Shared | None = None
        if redis_url and self.limits_anything:
            self._shared = Shared(redis_url, settings.installation, clock)
        self._local = _LocalState(clock)
        self._renewer = Renewer(clock)
        survive_forks(self)

    def admit(self, relay: str, domain: str, wanted: int) -> Grant:
        """Return how many of the wanted mails to a domain may go over a relay now.

        Granted mails count even if they are not sent. An empty domain stands for all domains
        without a limit.
        """
        limits = [limit for limit in self._limits(relay, domain) if limit.rates]
        if not limits:
            return Grant(wanted)
        admitted = self._over_redis(lambda shared: self._admit_online(shared, limits, wanted))
        return admitted or self._admit_offline(limits, wanted)

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
        """Return the seconds after which waiting mails come back, spread and in order.

        `again`: the mails came back in time, and the limit was full. They keep their place before
        newer mail. Not `is_refused`: the mails did not ask, since others waited before them.
        `seconds_per_mail` gives the pace of a limit of connections alone.
        """
        limits = self._limits(relay, domain)
        if not limits or not count:
            return [0.0] * count
        now, local = self.clock.monotonic(), self._local
        with local.lock:
            full_until = local.full_until(limits)
            limit, pace = local.tightest(
                limits, lane, seconds_per_mail, is_refused=is_refused, now=now
            )
        booked = self._over_redis(
            lambda shared: shared.book(
                limit,
                lane,
                count,
                pace,
                opens=max(0.0, full_until - now),
                again=again,
                is_refused=is_refused,
            )
        )
        with local.lock:
            state = local.state(limit)
            row = state.rebook if again else state.book
            waits = row(count, lane, booked[1] if booked else pace, not_before=full_until, now=now)
        return spread(booked[0], count, booked[1]) if booked else waits

    def behind(self, relay: str, domain: str, lane: Lane) -> float:
        """Return the seconds until the waiting mail of this lane and more urgent ones has gone."""
        return max(
            (self._behind(limit, lane) for limit in self._limits(relay, domain)), default=0.0
        )

    def forget_waiting(self, relay: str, domain: str, lane: Lane) -> None:
        """Forget the waiting mail of this lane and more urgent ones: it has gone."""
        for limit in self._limits(relay, domain):
            with self._local.lock:
                self._local.state(limit).forget(lane)
            self._over_redis(partial(Shared.forget, limit=limit, lane=lane))

    def _behind(self, limit: Limit, lane: Lane) -> float:
        seconds = self._over_redis(lambda shared: shared.behind(limit, lane))
        now = self.clock.monotonic()
        with self._local.lock:
            state = self._local.state(limit)
            if seconds is None:
                return state.behind(lane, now)
            if seconds > 0:  # a copy for the case that Redis goes down
                state.booked_until[lane] = max(state.booked_until.get(lane, now), now + seconds)
        return seconds

    def slots(self) -> "Slots":
        """Return an empty holder of slots: connections of a relay, senders to a domain."""
        notice_fork()
        return Slots(self)

    # --- which limits ----------------------------------------------------------------------------

    def of_relay(self, name: str) -> Limit | None:
        return self._relays.get(name)

    def of_domain(self, domain: str) -> Limit | None:
        """Return the limit of this domain, or that of each domain that is not named."""
        if not self._domains or not domain:
            return None
        domain = domain.lower()
        limit = self._domains.get(domain)
        if limit is None and (others := self._domains.get(OTHERS)):
            limit = Limit(f"domain/{domain}", others.rates, others.slots)
        return limit if limit and (limit.rates or limit.slots) else None

    def _limits(self, relay: str, domain: str) -> list[Limit]:
        return [limit for limit in (self.of_relay(relay), self.of_domain(domain)) if limit]

    # --- rates -----------------------------------------------------------------------------------

    def _admit_online(self, shared: Shared, limits: list[Limit], wanted: int) -> Grant:
        """Take from all counts, first from the one with the least left, so that little is lost."""
        with self._local.lock:
            full_for = self._local.full_until(limits) - self.clock.monotonic()
        if full_for > 0:
            return Grant(0, full_for)
        for _ in range(_TRIES):
            counts = sorted(
                (shared.count(limit, rate) for limit, rate in _rates(limits)),
                key=lambda count: count.free,
            )
            granted = min(wanted, counts[0].free)
            if all(shared.take(granted, count.limit, count.rate) for count in counts):
                with self._local.lock:
                    self._local.learn(counts, granted)
                    return Grant(granted, self._local.close(counts, granted, wanted))
        return Grant(0, counts[0].wait)

    def _admit_offline(self, limits: list[Limit], wanted: int) -> Grant:
        """Take from the share of this process."""
        with self._local.lock:
            counts = [self._local.count(limit, rate) for limit, rate in _rates(limits)]
            granted = min(wanted, *(count.free for count in counts))
            if granted:
                self._local.take(granted, counts)
            return Grant(granted, self._local.close(counts, granted, wanted))

    # --- slots -----------------------------------------------------------------------------------

    def take_slot(self, slot: Slot) -> bool:
        answer = self._over_redis(lambda shared: shared.take_slot(slot))
        local, limit = self._local, slot.limit
        with local.lock:
            share = max(1, (limit.slots or 0) // local.processes)
            taken = local.slots[limit.key] < share if answer is None else answer
            local.slots[limit.key] += taken
        if answer is None and not taken and self._shared is not None:
            local.note_released([slot])  # Redis may have taken it, and the reply was lost
        return taken

    def keep_slots(self, slots: Sequence[Slot]) -> list[Slot]:
        """Renew slots. Return those that others have taken."""
        lost = self._over_redis(lambda shared: shared.keep_slots(slots)) or []
        self._local.count_released(lost)
        return lost

    def renew_slots_of(self, holder: "Slots") -> None:
        """Renew the slots of this holder until it releases them."""
        if self._shared is not None:
            self._renewer.add(holder)

    def extend_slots(self, slots: Sequence[Slot]) -> None:
        """Renew slots, and take free ones again that Redis lost."""
        self._over_redis(lambda shared: shared.keep_slots(slots))

    def release_slots(self, holder: "Slots", slots: Sequence[Slot]) -> None:
        """Release slots. If Redis does not answer, the renewer does it later."""
        if holder.is_empty:
            self._renewer.discard(holder)
        self._local.count_released(slots)
        if self._shared is not None:
            self._local.note_released(slots)
            self.extend()

    def extend(self) -> None:
        """Release slots that Redis still counts. The renewer repeats that until it succeeds."""
        self._renewer.discard(self)
        if self._local.released:
            self._over_redis(lambda _shared: None)
        if self._local.has_released():
            self._renewer.add(self)

    # --- online and offline ---------------------------------------------------------------------

    def _over_redis(self, ask: Callable[[Shared], T]) -> T | None:
        """Return the answer of Redis. Return None while it is down: it is tried only rarely."""
        local, now = self._local, self.clock.monotonic()
        if self._shared is None or now < local.quiet_until:
            return None
        if local.is_offline:
            local.quiet_until = now + _QUIET_SECONDS  # only this thread tries to reach it
        try:
            if now >= local.announced_at + _ANNOUNCED_EVERY:
                local.note_answer(self._shared.announce(local.name), now)
            if left := local.released.copy():
                self._shared.release_slots(left)
                local.forget_released(left)
            return ask(self._shared)
        except (redis.RedisError, OSError) as error:
            local.quiet_until = self.clock.monotonic() + _QUIET_SECONDS
            if not local.is_offline:
                log.warning(
                    "Redis does not answer, this process keeps to a share of the limits:"
                    " share=1/%d error=%s",
                    local.processes,
                    error,
                )
            local.is_offline = True
            return None

    def after_fork_in_child(self) -> None:
        """Forget the state of the parent. The client of Redis opens new connections."""
        self._local = _LocalState(self.clock)
        self._renewer = Renewer(self.clock)


class Slots:
    """The slots of a thread while it uses a relay or a domain. Each limit has a number of slots."""

    def __init__(self, throttle: Throttle) -> None:
        self._throttle = throttle
        self._clock = throttle.clock
        self._held: dict[str, Slot] = {}  # by the key of the limit
        self._renewed_at = self._clock.monotonic()
        self._lock = threading.Lock()  # the renewer takes lost slots again, but no released ones
        survive_forks(self)

    def take_relay(self, name: str) -> bool:
        """Take a slot of this relay, for a connection. Return False if none is free."""
        return self._take(self._throttle.of_relay(name))

    def take_domain(self, domain: str) -> bool:
        """Take a slot of this domain, for a sender. Return False if none is free."""
        return self._take(self._throttle.of_domain(domain))

    def _take(self, limit: Limit | None) -> bool:
        self.renew()
        if limit is None or not limit.slots or limit.key in self._held:
            return True
        taken = self._throttle.take_slot(slot := Slot(limit))
        if taken:
            self._held[limit.key] = slot
            self._throttle.renew_slots_of(self)
        return taken

    def renew(self) -> None:
        """Renew all slots every few seconds, and drop lost ones, as after a long freeze.

        Call it between mails.
        """
        if self._held and self._clock.monotonic() >= self._renewed_at + _RENEWED_EVERY:
            self._renewed_at = self._clock.monotonic()
            with self._lock:
                for slot in self._throttle.keep_slots([*self._held.values()]):
                    del self._held[slot.limit.key]

    def extend(self) -> None:
        """Renew all slots from another thread."""
        with self._lock:
            if self._held:
                self._throttle.extend_slots([*self._held.values()])

    @property
    def is_empty(self) -> bool:
        return not self._held

    def has_relay(self, name: str) -> bool:
        """Return whether a slot of this relay is taken."""
        limit = self._throttle.of_relay(name)
        return limit is not None and limit.key in self._held

    def release_relay(self, name: str) -> None:
        """Release the slot of this relay, if it is taken."""
        limit = self._throttle.of_relay(name)
        if limit is not None and limit.key in self._held:
            with self._lock:
                slot = self._held.pop(limit.key)
            self._throttle.release_slots(self, [slot])

    def release(self) -> None:
        """Release all slots."""
        with self._lock:
            held, self._held = self._held, {}
        if held:
            self._throttle.release_slots(self, [*held.values()])

    def after_fork_in_child(self) -> None:
        """Forget the slots of the parent, whose renewer may hold the lock."""
        self._lock = threading.Lock()
        self._held = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.release()


class _LocalState:
    """The local state of this process. Hold the lock to use it, but not during calls to Redis."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.name = secrets.token_hex(8)
        self.lock = threading.Lock()
        self.slots: Counter[str] = Counter()
        self.released: dict[Slot, float] = {}  #: slots that Redis still counts -> release time
        self.processes = 1  #: processes that share the limits, as Redis last counted
        self.announced_at = -math.inf
        self.is_offline = False
        self.quiet_until = -math.inf
        self._states: dict[str, LimitState] = {}
        self._many_states = _MANY_STATES

    def note_answer(self, processes: int, now: float) -> None:
        """Note that Redis is up, and how many processes share the limits."""
        with self.lock:
            if self.is_offline:  # from now on, Redis knows which limits are full
                for state in self._states.values():
                    state.full_until = -math.inf
            self.processes, self.announced_at = processes, now
            self.is_offline, self.quiet_until = False, -math.inf

    def count_released(self, slots: Iterable[Slot]) -> None:
        """Count released slots."""
        with self.lock:
            self.slots -= Counter(slot.limit.key for slot in slots)

    def note_released(self, slots: Iterable[Slot]) -> None:
        """Note slots to release in Redis."""
        with self.lock:
            self.released.update(dict.fromkeys(slots, self._clock.monotonic()))

    def forget_released(self, slots: Iterable[Slot]) -> None:
        """Forget slots that are released in Redis."""
        with self.lock:
            for slot in slots:
                self.released.pop(slot, None)

    def has_released(self) -> bool:
        """Return whether Redis still counts released slots. Others have expired there."""
        with self.lock:
            long_ago = self._clock.monotonic() - SLOT_SECONDS
            self.released = {slot: at for slot, at in self.released.items() if at > long_ago}
            return bool(self.released)

    def state(self, limit: Limit) -> LimitState:
        """Return the state of a limit. Sometimes drop those of unused domains."""
        if len(self._states) > self._many_states:
            now = self._clock.monotonic()
            self._states = {
                key: state for key, state in self._states.items() if not state.is_over(now)
            }
            self._many_states = max(_MANY_STATES, 2 * len(self._states))
        return self._states.setdefault(limit.key, LimitState())

    def full_until(self, limits: list[Limit]) -> float:
        return max(self.state(limit).full_until for limit in limits)

    def tightest(
        self,
        limits: list[Limit],
        lane: Lane,
        seconds_per_mail: float,
        *,
        is_refused: bool,
        now: float,
    ) -> tuple[Limit, float]:
        """Return the limit to wait at, and its approximate pace in mails per second.

        That is a full limit, or else one with waiting mail, or else the slowest.
        """
        full = [limit for limit in limits if self.state(limit).full_until > now]
        paces = {
            limit: self._pace(limit, seconds_per_mail, is_full=limit in full) for limit in limits
        }
        if not is_refused:
            limit = max(limits, key=lambda one: self.state(one).behind(lane, now))
        else:
            limit = min(full or limits, key=paces.__getitem__)
        return limit, paces[limit]

    def _pace(self, limit: Limit, seconds_per_mail: float, *, is_full: bool) -> float:
        """Return the pace of the full rates: 50000 a day does not limit a single second."""
        full_pace = self.state(limit).full_pace
        return full_pace if is_full and full_pace else limit.pace(seconds_per_mail)

    def close(self, counts: Sequence[Count], granted: int, wanted: int) -> float:
        """Remember the full limits. Return the seconds until none of them is full."""
        if granted == wanted:
            return 0.0
        full = [count for count in counts if count.free == granted]
        for limit in {count.limit for count in full}:
            state, its = self.state(limit), [count for count in full if count.limit is limit]
            wait = max(count.wait for count in its)
            state.full_until = self._clock.monotonic() + min(wait, LONGEST_WAIT)
            state.full_pace = min(count.rate.amount / count.rate.get_expiry() for count in its)
        return max(count.wait for count in full)

    def learn(self, counts: Sequence[Count], granted: int) -> None:
        """Remember the used amounts for the case that Redis goes down."""
        for count in counts:
            used = 1 - (count.free - granted) / count.rate.amount
            now, jitter = self._clock.monotonic(), self._clock.random()
            share = Share.of(count.rate, self.processes)
            self.state(count.limit).window(count.rate).learn(used, share, now, jitter)

    def count(self, limit: Limit, rate: "RateLimitItem") -> Count:
        """Return the rest of the share of this process."""
        share, now = Share.of(rate, self.processes), self._clock.monotonic()
        window = self.state(limit).window(rate)
        return Count(limit, rate, window.free(share, now), window.opens_in(share, now))

    def take(self, granted: int, counts: Iterable[Count]) -> None:
        now = self._clock.monotonic()
        for count in counts:
            share, state = Share.of(count.rate, self.processes), self.state(count.limit)
            state.window(count.rate).take(granted, share, now)
            state.counted_until = max(state.counted_until, now + share.period)


def _configured(settings: Settings) -> tuple[dict[str, Limit], dict[str, Limit]]:
    """Return the limits of relays and of domains, by name."""
    if settings.mail_suppress_send:
        return {}, {}
    relays = {
        relay.name: Limit(
            f"relay/{relay.name}", read_rates(relay.relay_rate), relay.relay_concurrency
        )
        for relay in settings.relays
        if relay.relay_rate or relay.relay_concurrency
    }
    domains = {
        domain: Limit(f"domain/{domain}", read_rates(limit.rate), limit.concurrency)
        for domain, limit in settings.domain_limits.items()
    }
    return relays, domains


def _rates(limits: Iterable[Limit]) -> "list[tuple[Limit, RateLimitItem]]":
    return [(limit, rate) for limit in limits for rate in limit.rates]
