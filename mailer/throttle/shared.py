"""What is in Redis: the counts and the seats of all processes."""

import time
from collections.abc import Iterable

import redis
from limits import RateLimitItem
from limits.storage import RedisStorage
from limits.strategies import MovingWindowRateLimiter
from redis.backoff import NoBackoff
from redis.retry import Retry

from mailer.throttle.arithmetic import Count, Limit

# A seat that nobody renews is free again after so many seconds.
_SEAT_SECONDS = 120
# A process that was silent for so long is not one of those that share the limits.
_ALIVE_SECONDS = 60

# Both go by the clock of Redis. This one takes a seat, or renews it.
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

    def announce(self, process: str) -> int:
        """Say that this process is alive; returns how many are."""
        return int(self._announce(keys=[f"{self._prefix}:processes"], args=[process, _ALIVE_SECONDS]))

    def count(self, limit: Limit, rate: RateLimitItem) -> Count:
        window = self._rates.get_window_stats(rate, limit.key)
        return Count(limit, rate, max(0, window.remaining), max(0.0, window.reset_time - time.time()))

    def take(self, mails: int, limit: Limit, rate: RateLimitItem) -> bool:
        """Count them, if there are so many left."""
        return mails == 0 or self._rates.hit(rate, limit.key, cost=mails)

    def take_seat(self, limit: Limit, taker: str) -> bool:
        return bool(self._take_seat(keys=[self._seats(limit)], args=_seated(limit, taker)))

    def keep_seats(self, limits: Iterable[Limit], taker: str) -> None:
        """One that was lost meanwhile is taken again, if there is one."""
        with self._client.pipeline(transaction=False) as pipeline:
            for limit in limits:
                self._take_seat(keys=[self._seats(limit)], args=_seated(limit, taker), client=pipeline)
            pipeline.execute()

    def leave_seats(self, limits: Iterable[Limit], taker: str) -> None:
        with self._client.pipeline(transaction=False) as pipeline:
            for limit in limits:
                pipeline.zrem(self._seats(limit), taker)
            pipeline.execute()

    def _seats(self, limit: Limit) -> str:
        return f"{self._prefix}:seats/{limit.key}"


def _seated(limit: Limit, taker: str) -> list[str | int]:
    return [taker, limit.seats or 0, _SEAT_SECONDS]
