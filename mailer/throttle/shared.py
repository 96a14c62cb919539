"""What is in Redis: the counts and the seats of all processes."""

import secrets
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial

import redis
from limits import RateLimitItem
from limits.storage import RedisStorage
from limits.strategies import MovingWindowRateLimiter
from redis.backoff import NoBackoff
from redis.retry import Retry

from mailer.message import Lane
from mailer.throttle.arithmetic import LONGEST_WAIT, Count, Limit

#: A seat that nobody keeps is free again after so many seconds: that of a process that died.
SEAT_SECONDS = 120
# A process that was silent for so long is not one of those that share the limits.
_ALIVE_SECONDS = 60

# It goes by the clock of Redis, and takes a seat, or renews it.
_TAKE_SEAT = """
local now = tonumber(redis.call('TIME')[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
if not redis.call('ZSCORE', KEYS[1], ARGV[1]) and redis.call('ZCARD', KEYS[1]) >= tonumber(ARGV[2]) then
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

# The rows of those who wait, as `arithmetic.Line` has them. A field is the number of a lane, behind "b" for those who were
# booked and "r" for those who were booked again.
_BOOK = """
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
local lane, count, pace, opens, again, longest = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4]), ARGV[5] == '1',
    tonumber(ARGV[6])
local function until_(field) return math.max(tonumber(redis.call('HGET', KEYS[1], field) or 0) - now, 0) end
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
class Seat:
    """A place at a limit. Each taker has a name of its own: what is taken back late is that place only."""

    limit: Limit
    taker: str = field(default_factory=partial(secrets.token_hex, 8))


class Shared:
    """Redis. Nothing is connected before it is needed, and nobody waits for an answer longer than two seconds."""

    def __init__(self, url: str, installation: str) -> None:
        self._prefix = f"mailer:{installation}:throttle"
        self._client = redis.Redis.from_url(url, socket_connect_timeout=1, socket_timeout=2, retry=Retry(NoBackoff(), 0))
        storage = RedisStorage(url, connection_pool=self._client.connection_pool, key_prefix=self._prefix)
        # Of the three kinds of windows the only one that keeps to "14 in any second": the others let nearly twice as much
        # through around the turn of two seconds. It costs 20 bytes a mail, and no more time.
        self._rates = MovingWindowRateLimiter(storage)
        self._take_seat = self._client.register_script(_TAKE_SEAT)
        self._announce = self._client.register_script(_ANNOUNCE)
        self._book = self._client.register_script(_BOOK)
        self._behind = self._client.register_script(_BEHIND)

    def announce(self, process: str) -> int:
        """Say that this process is alive; returns how many are."""
        return int(self._announce(keys=[f"{self._prefix}:processes"], args=[process, _ALIVE_SECONDS]))

    def count(self, limit: Limit, rate: RateLimitItem) -> Count:
        window = self._rates.get_window_stats(rate, limit.key)
        return Count(limit, rate, max(0, window.remaining), max(0.0, window.reset_time - time.time()))

    def take(self, mails: int, limit: Limit, rate: RateLimitItem) -> bool:
        """Count them, if there are so many left."""
        return mails == 0 or self._rates.hit(rate, limit.key, cost=mails)

    def book(
        self, limit: Limit, lane: Lane, count: int, pace: float, *, opens: float, again: bool, is_refused: bool
    ) -> tuple[float, float]:
        """Book places for so many; returns the seconds until the first is due, and how many mails a second follow.

        Who was refused knows the pace of the limit; who only comes later takes the one that is known.
        """
        values = [int(lane), count, pace, opens, int(again), LONGEST_WAIT, int(is_refused)]
        first, pace = map(float, self._book(keys=[self._line(limit)], args=values))
        return first, pace

    def behind(self, limit: Limit, lane: Lane) -> float:
        """In how many seconds all are through that waited before, in this lane or a more urgent one."""
        return float(self._behind(keys=[self._line(limit)], args=[int(lane)]))

    def forget(self, limit: Limit, lane: Lane) -> None:
        """Nobody waits in this lane, nor in a more urgent one."""
        self._client.hdel(self._line(limit), *(f"{row}{int(its)}" for its in Lane if its <= lane for row in "br"))

    def take_seat(self, seat: Seat) -> bool:
        return bool(self._take_seat(keys=[self._seats(seat.limit)], args=_seated(seat)))

    def keep_seats(self, seats: Sequence[Seat]) -> list[Seat]:
        """Take again those that were lost meanwhile, if they are free; return where none is."""
        with self._client.pipeline(transaction=False) as pipeline:
            for seat in seats:
                self._take_seat(keys=[self._seats(seat.limit)], args=_seated(seat), client=pipeline)
            taken = pipeline.execute()
        return [seat for seat, is_taken in zip(seats, taken, strict=True) if not is_taken]

    def leave_seats(self, seats: Iterable[Seat]) -> None:
        with self._client.pipeline(transaction=False) as pipeline:
            for seat in seats:
                pipeline.zrem(self._seats(seat.limit), seat.taker)
            pipeline.execute()

    def _seats(self, limit: Limit) -> str:
        return f"{self._prefix}:seats/{limit.key}"

    def _line(self, limit: Limit) -> str:
        return f"{self._prefix}:line/{limit.key}"


def _seated(seat: Seat) -> list[str | int]:
    return [seat.taker, seat.limit.seats or 0, SEAT_SECONDS]
