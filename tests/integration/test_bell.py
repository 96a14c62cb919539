"""The bell with a real Redis: which rings are sent, and what follows if nobody answers."""

import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis
from flask import Flask

from mailer.celery.bell import CeleryBell
from mailer.clock import SystemClock
from tests.services.broker import RedisServer
from tests.services.databases import sqlite_only
from tests.services.processes import forked
from tests.services.waiting import wait_until

pytestmark = sqlite_only


@pytest.fixture
def client(redis_server: RedisServer) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_server.url) as client:
        yield client


class Clock(SystemClock):
    """A clock that can be put ahead."""

    ahead = 0.0

    def monotonic(self) -> float:
        return super().monotonic() + self.ahead


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def bell(open_shop: Callable[..., Flask], redis_server: RedisServer, clock: Clock) -> CeleryBell:
    app = open_shop(
        MAILER_REDIS_URL=redis_server.url, MAIL_SUPPRESS_SEND=False, MAILER_NAMESPACE="tests"
    )
    return CeleryBell(app.extensions["celery"], app.extensions["mailer"].settings, clock)


def test_a_pending_ring_is_enough(bell: CeleryBell, client: redis.Redis) -> None:
    """Callers add no ring to a pending one; the sweep does, as that one may be lost."""
    assert [bell.ring(), bell.ring()] == [True, True]
    assert client.llen("mailer-tests") == 1

    assert bell.ring(urge=True)
    assert client.llen("mailer-tests") == 2


def test_a_ring_brings_no_limits_of_its_own(bell: CeleryBell, client: redis.Redis) -> None:
    """A ring carries no time limits, not even those of our tasks: workers refuse any."""
    celery = bell._celery
    celery.finalize()
    assert celery.tasks["mailer.send_email"].time_limit
    bell.ring()

    [ring] = map(json.loads, client.lrange("mailer-tests", 0, -1))
    assert ring["headers"]["timelimit"] == [None, None]


@pytest.mark.parametrize(("left", "is_sent"), [(55_000, True), (49_000, False)])
def test_rings_that_nobody_answers(
    bell: CeleryBell, client: redis.Redis, left: int, is_sent: bool
) -> None:
    """After ten seconds without an answer, the sweep learns of it, and adds no more rings."""
    bell.ring(urge=True)
    client.set("mailer:tests:ring", 1, px=left)

    assert bell.ring(urge=True) is is_sent
    assert client.llen("mailer-tests") == 1 + is_sent


def test_rings_that_somebody_else_took(bell: CeleryBell, client: redis.Redis, clock: Clock) -> None:
    """A new worker rings first, however long others went unanswered, and every ten seconds."""
    client.set("mailer:tests:ring", 1, px=49_000)

    sent = [bell.ring(urge=True), bell.ring(urge=True)]
    clock.ahead = 10.0
    sent += [bell.ring(urge=True), bell.ring(urge=True)]

    assert sent == [True, False, True, False]
    assert client.llen("mailer-tests") == 2


def test_a_flag_that_never_ends(bell: CeleryBell, client: redis.Redis) -> None:
    """A flag without an expiry does not keep the sweep from ringing; the answer removes it."""
    client.set("mailer:tests:ring", 1)

    assert bell.ring(urge=True)
    bell.answer()

    assert client.llen("mailer-tests") == 1
    assert not client.exists("mailer:tests:ring")


def test_nothing_in_redis_fails_a_call(bell: CeleryBell, client: redis.Redis) -> None:
    """A ring that fails raises nothing, since the mail is already stored."""
    client.set("mailer-tests", "no list")

    assert not bell.ring()


def test_it_is_found_again(bell: CeleryBell, redis_server: RedisServer) -> None:
    """A process rings again once Redis is back, with no call waiting for it."""
    redis_server.stop()
    assert not bell.ring()

    redis_server.start()

    assert wait_until(bell.ring)


def test_a_restart_of_redis_between_two_rings(bell: CeleryBell, redis_server: RedisServer) -> None:
    """A call rings over a new connection if Redis has closed the one of the call before."""
    assert bell.ring()
    redis_server.stop()
    redis_server.start()

    assert bell.ring()

    with redis.Redis.from_url(redis_server.url) as client:
        assert client.exists("mailer:tests:ring")


def test_a_ring_that_redis_may_have_noted(bell: CeleryBell, client: redis.Redis) -> None:
    """A ring whose connection is lost is sent again, also if a flag is found: it may be its own."""
    assert bell.ring()
    client.client_kill_filter(_type="normal", skipme=True)

    assert bell.ring()

    assert client.llen("mailer-tests") == 2


def test_threads_ring_over_connections_of_their_own(bell: CeleryBell, client: redis.Redis) -> None:
    """Calls at the same time never share a connection, and keep it for the next calls."""
    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(lambda _number: bell.ring(), range(200)))

    assert client.llen("mailer-tests") == 1


def test_a_child_has_connections_of_its_own(bell: CeleryBell, redis_server: RedisServer) -> None:
    """A forked process rings over no connection of its parent, whose replies it would read."""

    def connections() -> int:
        with redis.Redis.from_url(redis_server.url) as client:
            return len(client.client_list(_type="normal"))

    def ring() -> None:
        assert bell.ring()
        assert connections() == before + 1

    assert bell.ring()
    before = connections()

    _pid, code = os.waitpid(forked(ring), 0)

    assert code == 0
