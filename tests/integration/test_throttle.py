"""Limits that all workers share over Redis, and keep to without Redis."""

import logging
import math
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from threading import Event
from types import MappingProxyType
from typing import Any

import pytest
import redis

from mailer import throttle as module
from mailer.clock import SystemClock
from mailer.message import Lane
from mailer.settings import Settings
from mailer.throttle import Throttle, renewer, shared
from mailer.throttle.arithmetic import Limit, LimitState
from mailer.throttle.shared import Shared
from tests.services.broker import RedisServer
from tests.services.processes import at_once
from tests.services.waiting import wait_until
from tests.services.worker import PROJECT

RELAY = "relay.example.com:25"
RELAY_KEY = f"relay/{RELAY}"
SLOTS = f"mailer:tests:throttle:slots/{RELAY_KEY}"


def throttle(
    url: str,
    domains: Mapping[str, object] = MappingProxyType({}),
    clock: SystemClock | None = None,
    **config: Any,
) -> Throttle:
    """Return a throttle like that of one worker process, which shares only Redis with others."""
    given = {
        "MAIL_SERVER": "relay.example.com",
        "MAILER_NAMESPACE": "tests",
        "MAILER_DOMAIN_LIMITS": domains,
        **config,
    }
    settings = Settings.load(given, {}, default_database_url="sqlite:////srv/mailer.sqlite3")
    return Throttle(settings, url, clock or SystemClock())


def admitted(
    throttles: Sequence[Throttle], wanted: int = 1000, domain: str = "example.com"
) -> list[int]:
    return [one.admit(RELAY, domain, wanted).granted for one in throttles]


@pytest.fixture
def client(redis_url: str) -> Any:
    return redis.Redis.from_url(redis_url, decode_responses=True)


@pytest.fixture
def attentive(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make processes look at Redis and at each other at every call."""
    monkeypatch.setattr(module, "_ANNOUNCED_EVERY", 0.0)
    monkeypatch.setattr(module, "_QUIET_SECONDS", 0.0)


# --- rates, shared ------------------------------------------------------------------------------


def take_many(url: str, wanted: int) -> int:
    one = throttle(url, {"gmail.com": {"rate": "300/day"}}, MAILER_RELAY_RATE="100/hour; 500/day")
    return sum(one.admit(RELAY, "gmail.com", wanted).granted for _ in range(60))


def test_processes_share_a_limit(redis_url: str) -> None:
    """Processes that ask at the same moment get no more mails together than the limit allows."""
    granted = at_once(4, take_many, redis_url, 3)

    assert sum(granted) <= 100
    # A share that one process saw free while another took it may be lost.
    assert sum(granted) + take_many(redis_url, 1000) >= 90
    assert take_many(redis_url, 1000) == 0


def test_threads_share_a_limit(redis_url: str) -> None:
    """Threads that use the same throttle share its limit."""
    one = throttle(redis_url, MAILER_RELAY_RATE="100/hour")
    with ThreadPoolExecutor(8) as threads:
        granted = list(
            threads.map(lambda _: one.admit(RELAY, "example.com", 1).granted, range(150))
        )

    assert sum(granted) + sum(admitted([one])) == 100


def test_greenlets_share_a_limit(redis_url: str) -> None:
    """Greenlets of a worker with `--pool gevent` share a limit."""
    pytest.importorskip("gevent")
    program = f"""
from gevent import monkey; monkey.patch_all()
from gevent.pool import Pool
from tests.integration.test_throttle import RELAY, admitted, throttle
one = throttle({redis_url!r}, MAILER_RELAY_RATE="100/hour")
granted = Pool(20).map(lambda _: one.admit(RELAY, "example.com", 1).granted, range(150))
print(sum(granted) + sum(admitted([one])))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=PROJECT, check=True, capture_output=True, text=True
    )

    assert done.stdout.split() == ["100"]


def test_no_second_sees_more_than_its_rate(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No span of one second sees more than the rate, wherever it starts."""

    class Clock(SystemClock):
        now = 1_800_000_000.9

        def time(self) -> float:
            return self.now

        monotonic = time

    clock = Clock()
    monkeypatch.setattr("limits.storage.redis.time", clock)
    one = throttle(redis_url, clock=clock, MAILER_RELAY_RATE="14/second")

    granted = []
    for _ in range(10):
        granted += admitted([one], 10)
        clock.now += 0.2

    assert granted == [10, 4, 0, 0, 0, 10, 4, 0, 0, 0]


def test_a_clock_that_is_set_back_closes_no_rate(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full rate is asked again after its own span at the latest, whatever the clock says."""

    class Clock(SystemClock):
        now = 1_800_000_000.0

        def time(self) -> float:
            return self.now

    clock = Clock()
    monkeypatch.setattr("limits.storage.redis.time", clock)
    one = throttle(redis_url, clock=clock, MAILER_RELAY_RATE="5/minute")
    assert admitted([one], 5) == [5]
    clock.now -= 3600

    grant = one.admit(RELAY, "example.com", 5)

    assert grant.granted == 0
    assert 0 < grant.wait <= 60


def test_many_mails_cost_as_little_as_one(redis_url: str, client: Any) -> None:
    """A request for many mails costs two round trips, and asking again at a full limit none."""
    one = throttle(redis_url, MAILER_RELAY_RATE="5000/hour")
    admitted([one], 0)  # to announce itself

    before = calls(client)
    assert admitted([one], 4000) == [4000]
    assert calls(client) == before + 2
    assert admitted([one], 4000) == [1000]
    assert admitted([one] * 100, 4000) == 100 * [0]
    assert calls(client) == before + 4


def calls(client: Any) -> int:
    return int(client.info("commandstats").get("cmdstat_evalsha", {}).get("calls", 0))


def test_a_domain_at_its_limit_takes_nothing_of_the_relay(redis_url: str) -> None:
    """A domain at its limit uses up none of the relay's limit."""
    domains = {"gmail.com": {"rate": "5/day"}}
    workers = [throttle(redis_url, domains, MAILER_RELAY_RATE="100/hour") for _ in range(4)]

    assert sum(admitted(workers, 3, "gmail.com")) == 5
    assert sum(admitted(workers, 3, "gmail.com")) == 0
    assert sum(admitted(workers, 100)) == 95


def test_other_limits_are_counted_apart(redis_url: str) -> None:
    """Each relay and domain has a limit of its own, which all apps with that relay share."""
    first, second = ({"name": name, "MAILER_RELAY_RATE": "5/day"} for name in ("first", "second"))
    one = throttle(redis_url, {"*": {"rate": "2/day"}}, MAILER_RELAYS=[first, second])
    same = throttle(redis_url, MAILER_RELAYS=[second])

    assert [
        one.admit("first", domain, 10).granted
        for domain in ("example.com", "example.net", "example.org")
    ] == [2, 2, 1]
    assert [
        one.admit("second", domain, 10).granted for domain in ("example.com", "example.edu")
    ] == [0, 2]
    assert same.admit("second", "example.com", 10).granted == 3


def test_keys_say_whose_they_are_and_end_by_themselves(redis_url: str, client: Any) -> None:
    """All keys in Redis have the namespace as their prefix, and expire."""
    one = throttle(redis_url, MAILER_RELAY_RATE="5/hour", MAILER_RELAY_CONCURRENCY=1)
    admitted([one])
    one.slots().take_relay(RELAY)
    keys = list(client.scan_iter())

    assert len(keys) == 3
    assert all(key.startswith("mailer:tests:throttle:") for key in keys)
    assert all(0 < client.ttl(key) <= 3600 for key in keys)


def test_installations_have_limits_of_their_own(redis_url: str) -> None:
    """Installations with different namespaces share no limits."""
    shops = [
        throttle(redis_url, MAILER_RELAY_RATE="5/hour", MAILER_NAMESPACE=name)
        for name in ("one", "other", "one")
    ]

    assert admitted(shops) == [5, 5, 0]


def test_who_is_always_overtaken_is_refused(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that others overtake at each try is refused instead of trying for ever."""
    monkeypatch.setattr(shared.Shared, "take", lambda *_: False)
    grant = throttle(redis_url, MAILER_RELAY_RATE="100/hour").admit(RELAY, "example.com", 1)

    assert grant.granted == 0
    assert grant.wait > 0


# --- slots, shared ------------------------------------------------------------------------------


def take_a_seat_and_die(url: str) -> bool:
    return throttle(url, MAILER_RELAY_CONCURRENCY=3).slots().take_relay(RELAY)


def test_processes_share_the_seats(redis_url: str, client: Any) -> None:
    """Processes share the slots, and a dead process's slot is free after two minutes at most."""
    assert sum(at_once(5, take_a_seat_and_die, redis_url)) == 3
    assert not take_a_seat_and_die(redis_url)

    now = client.time()[0]
    assert all(
        now < until <= now + 120 for _taker, until in client.zrange(SLOTS, 0, -1, withscores=True)
    )
    age(client, 121)
    assert take_a_seat_and_die(redis_url)


def age(client: Any, seconds: int) -> None:
    for taker in client.zrange(SLOTS, 0, -1):
        client.zincrby(SLOTS, -seconds, taker)


def test_seats_that_are_used_are_kept(
    redis_url: str, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slot in use is renewed beyond two minutes, and free at once when it is released."""
    one, other = (throttle(redis_url, MAILER_RELAY_CONCURRENCY=1) for _ in range(2))
    with one.slots() as slots:
        assert slots.take_relay(RELAY)
        slots.renew()  # just taken
        age(client, 100)
        monkeypatch.setattr(module, "_RENEWED_EVERY", 0.0)
        slots.renew()
        age(client, 100)
        assert not other.slots().take_relay(RELAY)
    assert other.slots().take_relay(RELAY)


def test_seats_are_kept_while_a_mail_is_slow(
    redis_url: str, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slot is renewed in the background while its holder waits for a relay."""
    monkeypatch.setattr(renewer, "_EVERY", 0.02)
    one, other = (throttle(redis_url, MAILER_RELAY_CONCURRENCY=1) for _ in range(2))
    with one.slots() as slots:
        assert slots.take_relay(RELAY)
        for _ in range(2):
            age(client, 100)
            wait_until(
                lambda: client.zrange(SLOTS, 0, -1, withscores=True)[0][1] > client.time()[0] + 100
            )
        client.delete(SLOTS)  # as a Redis does that is started anew
        wait_until(lambda: client.zcard(SLOTS))
        assert not other.slots().take_relay(RELAY)
    assert other.slots().take_relay(RELAY)


def test_a_seat_that_is_given_back_is_not_taken_again(
    redis_url: str, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A renewal that overlaps a release does not take the slot again."""
    hand, looked, go_on = throttle(redis_url, MAILER_RELAY_CONCURRENCY=1).slots(), Event(), Event()
    keep_slots = Shared.keep_slots

    def slow(*arguments: Any) -> Any:
        looked.set()
        assert go_on.wait(10)
        return keep_slots(*arguments)

    hand.take_relay(RELAY)
    monkeypatch.setattr(Shared, "keep_slots", slow)
    with ThreadPoolExecutor() as threads:
        extended = threads.submit(hand.extend)
        assert looked.wait(10)
        released = threads.submit(hand.release)
        wait([released], timeout=0.1)
        go_on.set()
        extended.result()
        released.result()

    assert client.zcard(SLOTS) == 0


def test_a_lost_seat_is_nobody_elses(
    redis_url: str, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that lost its slot during a freeze does not disturb the slot's new holder."""
    monkeypatch.setattr(module, "_RENEWED_EVERY", 0.0)
    frozen, successor, third = (
        throttle(redis_url, MAILER_RELAY_CONCURRENCY=1).slots() for _ in range(3)
    )
    frozen.take_relay(RELAY)
    age(client, 121)
    assert successor.take_relay(RELAY)

    frozen.renew()
    assert client.zcard(SLOTS) == 1
    assert not frozen.take_relay(RELAY)
    frozen.release()
    assert not third.take_relay(RELAY)


# --- while Redis is away ------------------------------------------------------------------------


def test_what_was_left_is_shared_while_redis_is_down(
    redis_server: RedisServer, attentive: None
) -> None:
    """While Redis is down, each worker may send an equal share of what was left of the limit."""
    workers = [throttle(redis_server.url, MAILER_RELAY_RATE="100/hour") for _ in range(4)]
    assert admitted(workers, 10) == [10, 10, 10, 10]
    admitted(workers, 0)  # each learns of the others' at its next request
    redis_server.stop()

    assert admitted(workers) == [15, 15, 15, 15]
    assert admitted(workers) == [0, 0, 0, 0]


def test_the_shared_count_goes_on_when_redis_is_back(
    redis_server: RedisServer, attentive: None
) -> None:
    """When Redis is back, the shared limits apply again without a restart."""
    workers = [
        throttle(redis_server.url, MAILER_RELAY_RATE="100/hour", MAILER_RELAY_CONCURRENCY=1)
        for _ in range(4)
    ]
    admitted(workers, 1)
    redis_server.stop()
    admitted(workers)
    assert all(one.slots().take_relay(RELAY) for one in workers)

    redis_server.start()
    assert admitted(workers, 30) == [30, 30, 30, 10]
    assert [one.slots().take_relay(RELAY) for one in workers] == [True, False, False, False]


def test_mail_flows_without_any_redis(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    """A worker that starts while Redis is down keeps to the limits alone, and logs that once."""
    redis_server.stop()
    one = throttle(redis_server.url, {"gmail.com": {"rate": "5/day", "concurrency": 2}})

    assert [*admitted([one, one, one], 3, "gmail.com")] == [3, 2, 0]
    assert [one.slots().take_domain("gmail.com") for _ in range(3)] == [True, True, False]
    assert [record.levelno for record in caplog.records if record.name == "mailer.throttle"] == [
        logging.WARNING
    ]
    assert "this process keeps to a share of the limits: share=1/1" in caplog.text


def test_mail_flows_while_redis_is_full(redis_server: RedisServer) -> None:
    """A Redis that is out of memory does not stop mail."""
    with redis.Redis.from_url(redis_server.url) as client:
        client.config_set("maxmemory", 1)
    one = throttle(redis_server.url, MAILER_RELAY_RATE="100/hour", MAILER_RELAY_CONCURRENCY=1)

    assert admitted([one, one], 60) == [60, 40]
    assert one.slots().take_relay(RELAY)


def test_a_frozen_redis_costs_one_time_out(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    """A frozen Redis costs one time-out, and is left alone for a while after it."""
    one = throttle(redis_server.url, MAILER_RELAY_RATE="100/hour", MAILER_RELAY_CONCURRENCY=1)
    admitted([one], 1)
    with redis.Redis.from_url(redis_server.url, decode_responses=True) as client:
        before = calls(client)
        redis_server.pause()
        assert admitted([one], 1) == [1]
        redis_server.resume()
        admitted([one] * 200, 1)
        with one.slots() as slots:
            assert slots.take_relay(RELAY)

        assert calls(client) <= before + 1
    assert len([record for record in caplog.records if record.name == "mailer.throttle"]) == 1


def test_seats_are_shared_out_while_redis_is_down(
    redis_server: RedisServer, attentive: None
) -> None:
    """While Redis is down, each process has an equal share of the slots, and at least one."""
    domains = {"a.com": {"concurrency": 5}, "b.com": {"concurrency": 1}}
    workers = [throttle(redis_server.url, domains, MAILER_RELAY_RATE="100/hour") for _ in range(2)]
    admitted([*workers, *workers], 1)
    redis_server.stop()
    for one in workers:
        hands = [one.slots() for _ in range(4)]

        assert [hand.take_domain("a.com") for hand in hands] == [True, True, False, False]
        assert [hand.take_domain("b.com") for hand in hands] == [True, False, False, False]
        hands[0].release()
        assert hands[2].take_domain("a.com")


def test_seats_that_are_given_back_while_redis_is_quiet(
    redis_url: str, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slot released during an outage of Redis is free in Redis after it."""
    monkeypatch.setattr(renewer, "_EVERY", 0.02)
    one = throttle(redis_url, MAILER_RELAY_CONCURRENCY=2)
    with one.slots() as slots:
        assert slots.take_relay(RELAY)
        with one.slots() as others:
            others.take_relay(RELAY)
            one._local.quiet_until = math.inf
            slots.release()
        assert client.zcard(SLOTS) == 2
        slots.take_relay(RELAY)

        one._local.quiet_until = -math.inf

        wait_until(lambda: client.zrange(SLOTS, 0, -1) == [slots._held[RELAY_KEY].holder])


def test_seats_outlive_redis(
    redis_server: RedisServer, attentive: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slots in use are counted again when Redis comes back empty."""
    monkeypatch.setattr(module, "_RENEWED_EVERY", 0.0)
    one, other = (throttle(redis_server.url, MAILER_RELAY_CONCURRENCY=1).slots() for _ in range(2))
    assert one.take_relay(RELAY)
    redis_server.stop()
    one.renew()
    redis_server.start()
    one.renew()

    assert not other.take_relay(RELAY)
    one.release()
    assert other.take_relay(RELAY)


# --- forks --------------------------------------------------------------------------------------


def test_a_fork_at_any_moment(redis_url: str) -> None:
    """A forked child opens connections of its own and waits for no lock of its parent."""
    [codes] = at_once(1, fork_while_a_thread_holds_the_lock, redis_url)

    assert codes == [0, 0]


def fork_while_a_thread_holds_the_lock(url: str) -> list[int]:
    one = throttle(url, MAILER_RELAY_RATE="100/hour")
    assert admitted([one], 40) == [40]
    with one._local.lock:
        children = [forked(lambda: admitted([one], 20) == [20]) for _ in range(2)]
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert admitted([one]) == [20]
    return codes


def forked(work: Callable[[], bool]) -> int:
    pid = os.fork()
    if pid == 0:
        well = False
        try:
            well = work()
        finally:
            os._exit(0 if well else 1)
    return pid


# --- lanes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("lane", [Lane.CRITICAL, Lane.BULK])
def test_a_line_in_redis_is_that_of_a_process(redis_url: str, lane: Lane) -> None:
    """Bookings get the same times whether Redis or a process keeps them."""
    kept = Shared(redis_url, "shop", SystemClock())
    line, limit = LimitState(), Limit(f"relay/{lane}", (), 1)
    calls = [
        (10, False, 0.0),
        (3, False, 5.0),
        (2, True, 0.5),
        (4, True, 0.0),
        (1, False, 0.0),
        (100_000, False, 0.0),
    ]
    for mails, again, opens in calls:
        first, pace = kept.book(limit, lane, mails, 4.0, opens=opens, again=again, is_refused=True)
        row = line.rebook if again else line.book
        waits = row(mails, lane, 4.0, not_before=1000 + opens, now=1000.0)
        assert first == pytest.approx(waits[0], abs=0.5)
        assert pace == 4.0
        assert kept.behind(limit, Lane.BULK) == pytest.approx(
            line.behind(Lane.BULK, 1000.0), abs=0.5
        )
    assert (kept.behind(limit, Lane.CRITICAL) > 0) == (lane is Lane.CRITICAL)

    kept.forget(limit, Lane.BULK)

    assert kept.behind(limit, Lane.BULK) <= 0


def test_who_is_refused_is_told_when_to_come_back(redis_url: str) -> None:
    """Refused mail is told when to come back; urgent mail does not wait behind bulk mail."""
    one = throttle(redis_url, {"gmail.com": {"rate": "20/second"}})
    one.admit(RELAY, "gmail.com", 20)
    bulk = one.book(RELAY, "gmail.com", 10_000, Lane.BULK, seconds_per_mail=0.02)

    assert max(bulk) == pytest.approx(500, abs=2)
    assert one.book(RELAY, "gmail.com", 1, Lane.CRITICAL, seconds_per_mail=0.02)[0] < 2
