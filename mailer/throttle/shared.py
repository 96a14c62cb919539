"""The counts and slots of all processes, in Redis."""

import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from mailer.message import Lane
from mailer.message.ports import Clock
from mailer.throttle.arithmetic import LONGEST_WAIT, Count, Limit

if TYPE_CHECKING:
    from limits import RateLimitItem

#: The seconds after which the slots of a dead process expire.
SLOT_SECONDS = 120
# The seconds after which a silent process no longer shares the limits.
_ALIVE_SECONDS = 60

# Take or renew a slot, by the clock of Redis.
_TAKE_SLOT = """
local now = tonumber(redis.call('TIME')[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
if not redis.call('ZSCORE', KEYS[1], ARGV[1])
    and redis.call('ZCARD', KEYS[1]) >= tonumber(ARGV[2])
then
    return 0
end
redis.call('ZADD', KEYS[1], now + ARGV[3], ARGV[1])
redis.call('EXPIRE', KEYS[1], ARGV[3])
return 1
"""
_ANNOUNCE = """
local now = tonumber(redis.call('TIME')[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
redis.call('ZADD', KEYS[1], now + ARGV[2], ARGV[1])
redis.call('EXPIRE', KEYS[1], ARGV[2])
return redis.call('ZCARD', KEYS[1])
"""

# Book waiting mail like `arithmetic.LimitState`. The fields of the hash are "b" (booked) and "r"
# (booked again), with the number of the lane.
_BOOK = """
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
local lane, count, pace, opens = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local again, longest = ARGV[5] == '1', tonumber(ARGV[6])
local function until_(field)
    return math.max(tonumber(redis.call('HGET', KEYS[1], field) or 0) - now, 0)
end
if ARGV[7] == '1' then
    redis.call('HSET', KEYS[1], 'pace', ARGV[3])
else
    pace = tonumber(redis.call('HGET', KEYS[1], 'pace') or pace)
end
local first = opens
if not again then
    first = math.max(until_('b' .. lane) + 1 / pace, opens)
elseif until_('r' .. lane) > 0 then
    first = math.max(until_('r' .. lane) + 1 / pace, opens)
elseif opens <= 0 then
    first = 1 / pace
end
if first <= longest then
    local last = math.min(first + (count - 1) / pace, longest)
    if again then
        redis.call('HSET', KEYS[1], 'r' .. lane, string.format('%.6f', now + last))
        last = math.max(last, until_('b' .. lane))
    end
    redis.call('HSET', KEYS[1], 'b' .. lane, string.format('%.6f', now + last))
end
redis.call('EXPIRE', KEYS[1], 2 * longest)
return {string.format('%.6f', first), string.format('%.9f', pace)}
"""
_BEHIND = """
local time = redis.call('TIME')
local now, longest = time[1] + time[2] / 1000000, 0
for lane = 0, tonumber(ARGV[1]) do
    longest = math.max(longest, tonumber(redis.call('HGET', KEYS[1], 'b' .. lane) or 0) - now)
end
return string.format('%.6f', longest)
"""


@dataclass(frozen=True, slots=True)
class Slot:
    """A slot of a limit. Its holder is unique, so that a late release frees only this slot."""

    limit: Limit
    holder: str = field(default_factory=partial(secrets.token_hex, 8))


class Shared:
    """The client of Redis, connected on demand, with a time-out of two seconds."""

    def __init__(self, url: str, installation: str, clock: Clock) -> None:
        # 2 MB, for those that have limits
        from limits.storage import RedisStorage  # noqa: PLC0415
        from limits.strategies import MovingWindowRateLimiter  # noqa: PLC0415

        self._clock = clock
        self._prefix = f"mailer:{installation}:throttle"
        self._client = redis.Redis.from_url(
            url, socket_connect_timeout=1, socket_timeout=2, retry=Retry(NoBackoff(), 0)
        )
        storage = RedisStorage(
            url, connection_pool=self._client.connection_pool, key_prefix=self._prefix
        )
        # The only strategy that keeps "14 in any second": the others admit nearly twice as much
        # around the turn of a second. It costs 20 bytes a mail, and no more time.
        self._rates = MovingWindowRateLimiter(storage)
        self._take_slot = self._client.register_script(_TAKE_SLOT)
        self._announce = self._client.register_script(_ANNOUNCE)
        self._book = self._client.register_script(_BOOK)
        self._behind = self._client.register_script(_BEHIND)

    def announce(self, process: str) -> int:
        """Announce this process. Return the number of processes."""
        return int(
            self._announce(keys=[f"{self._prefix}:processes"], args=[process, _ALIVE_SECONDS])
        )

    def count(self, limit: Limit, rate: "RateLimitItem") -> Count:
        window = self._rates.get_window_stats(rate, limit.key)
        wait = window.reset_time - self._clock.time()
        wait = min(max(0.0, wait), rate.get_expiry())  # the clock may have been set back
        return Count(limit, rate, max(0, window.remaining), wait)

    def take(self, mails: int, limit: Limit, rate: "RateLimitItem") -> bool:
        """Take mails from a rate. Return False if not enough are left."""
        return mails == 0 or self._rates.hit(rate, limit.key, cost=mails)

    def book(
        self,
        limit: Limit,
        lane: Lane,
        count: int,
        pace: float,
        *,
        opens: float,
        again: bool,
        is_refused: bool,
    ) -> tuple[float, float]:
        """Book waiting mails. Return the seconds until the first one, and the pace of the others.

        A refused caller knows the pace of the limit. Other callers use the pace that is stored.
        """
        values = [int(lane), count, pace, opens, int(again), LONGEST_WAIT, int(is_refused)]
        first, pace = map(float, self._book(keys=[self._waiting(limit)], args=values))
        return first, pace

    def behind(self, limit: Limit, lane: Lane) -> float:
        """Return the seconds until all waiting mail of this lane and more urgent ones has gone."""
        return float(self._behind(keys=[self._waiting(limit)], args=[int(lane)]))

    def forget(self, limit: Limit, lane: Lane) -> None:
        """Forget the waiting mail of this lane and more urgent ones."""
        self._client.hdel(
            self._waiting(limit),
            *(f"{kind}{int(one)}" for one in Lane if one <= lane for kind in "br"),
        )

    def take_slot(self, slot: Slot) -> bool:
        return bool(self._take_slot(keys=[self._slots(slot.limit)], args=_slot_arguments(slot)))

    def keep_slots(self, slots: Sequence[Slot]) -> list[Slot]:
        """Renew slots, and take free ones again that were lost. Return those that others have."""
        with self._client.pipeline(transaction=False) as pipeline:
            for slot in slots:
                self._take_slot(
                    keys=[self._slots(slot.limit)], args=_slot_arguments(slot), client=pipeline
                )
            taken = pipeline.execute()
        return [slot for slot, is_taken in zip(slots, taken, strict=True) if not is_taken]

    def release_slots(self, slots: Iterable[Slot]) -> None:
        with self._client.pipeline(transaction=False) as pipeline:
            for slot in slots:
                pipeline.zrem(self._slots(slot.limit), slot.holder)
            pipeline.execute()

    def _slots(self, limit: Limit) -> str:
        return f"{self._prefix}:slots/{limit.key}"

    def _waiting(self, limit: Limit) -> str:
        return f"{self._prefix}:waiting/{limit.key}"


def _slot_arguments(slot: Slot) -> list[str | int]:
    return [slot.holder, slot.limit.slots or 0, SLOT_SECONDS]
