"""Limits and the length of a batch: which mail goes out, and when the rest is due again."""

import os
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import count as naturals
from itertools import pairwise
from threading import Event
from typing import Any

import pytest
from sqlalchemy import String, cast, func, literal, select
from sqlalchemy import insert as insert_into

from mailer import schema
from mailer.delivery import Dispatcher, clearing
from mailer.errors import StoreUnavailable
from mailer.message import Lane, Status
from mailer.policy import MAX_WINDOW
from mailer.smtpd.faults import DELAY, Fault
from mailer.store import Store
from tests.mails import a_message, table
from tests.services.broker import RedisServer
from tests.services.databases import sqlite_only
from tests.services.dispatchers import (
    Clock,
    CountingBell,
    OpenDispatcher,
    copy_of,
    deliver_all,
    entry,
    queue,
    queue_each,
    queue_many,
    received,
    states,
)
from tests.services.script import HOLD, ScriptedRelay
from tests.services.sink import Sink
from tests.services.waiting import wait_until

A_FEW_BATCHES = 6


def queue_heap(
    store: Store, count: int, *, domain: str, lane: Lane = Lane.NORMAL, due_at: float
) -> None:
    """Insert `count` deliveries of one mail, as in a newsletter, faster than `insert_mail`."""
    mail_id = queue(store, f"first@{domain}", message=a_message(), lane=lane, due_at=due_at)
    others = [column for column in schema.delivery.c if column.name not in ("id", "recipient")]
    another = select(literal("reader") + cast(schema.delivery.c.id, String) + f"@{domain}", *others)
    those = another.where(schema.delivery.c.mail_id == mail_id)
    with store.engine.begin() as connection:
        there = select(func.count()).where(schema.delivery.c.mail_id == mail_id)
        while missing := count - connection.execute(there).scalar_one():
            columns = ["recipient", *(column.name for column in others)]
            connection.execute(
                insert_into(schema.delivery).from_select(columns, those.limit(missing))
            )


def waits(store: Store, clock: Clock, lane: Lane | None = None) -> list[float]:
    """Return the seconds until each queued delivery is due, sorted."""
    return sorted(
        row["due_at"] - clock.time()
        for row in table(store).values()
        if row["status"] == "queued" and lane in (None, row["lane"])
    )


def sent_to(sink: Sink, domain: str) -> int:
    return sum(
        recipient.endswith(f"@{domain}") for mail in sink.messages for recipient in mail.recipients
    )


# --- rates --------------------------------------------------------------------------------------


@pytest.mark.parametrize("question", ["load_messages", "is_waiting"])
def test_mail_is_counted_once_at_a_limit(
    store: Store,
    open_dispatcher: OpenDispatcher,
    monkeypatch: pytest.MonkeyPatch,
    redis_url: str,
    question: str,
) -> None:
    """A mail counts once towards a limit, even if the database is away at that moment."""
    with ScriptedRelay("PIPELINING") as relay:
        dispatcher = open_dispatcher(
            {
                "name": "relay",
                "MAIL_SERVER": relay.host,
                "MAIL_PORT": relay.port,
                "MAILER_RELAY_RATE": "4/hour",
            },
            redis_url=redis_url,
        )
        # So that each window has one mail.
        dispatcher._router.states["relay"].pace.seconds_per_mail = 1.0
        queue_each(store, "ada", "bob", "eve", "joe")
        ask, troubles = getattr(dispatcher._services.store, question), naturals(1)

        def away(*given: object, **values: object) -> object:
            if next(troubles) == 2:
                raise StoreUnavailable("restarting")
            return ask(*given, **values)

        monkeypatch.setattr(dispatcher._services.store, question, away)
        # So that `is_waiting` is called.
        monkeypatch.setattr(dispatcher._services.throttle, "behind", lambda *_given: 1.0)

        deliver_all(dispatcher)

    assert set(states(store).values()) == {"sent"}


def test_workers_share_the_rate_of_a_relay(
    store: Store, open_dispatcher: OpenDispatcher, sink: Sink, redis_url: str, clock: Clock
) -> None:
    """Workers share the rate of a relay; the rest is due later, spread out, at no attempt."""
    dispatchers = [
        open_dispatcher(entry(sink, MAILER_RELAY_RATE="5/hour"), redis_url=redis_url)
        for _ in range(2)
    ]
    queue_many(store, 40)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(deliver_all, dispatchers * 2))

    later = waits(store, clock)
    assert len(sink.messages) <= 5
    assert len(sink.messages) + len(later) == 40
    assert later[0] > 60
    assert later[-1] <= 15 * 60
    assert {row["attempts"] for row in table(store).values() if row["status"] == "queued"} == {0}
    assert all(not dispatcher.deliver_batch().goes_on for dispatcher in dispatchers)


def test_what_waits_for_a_rate_comes_back_one_by_one(
    store: Store, open_dispatcher: OpenDispatcher, sink: Sink, redis_url: str, clock: Clock
) -> None:
    """Mail that waits for a rate is due again one by one, at the pace of the rate."""
    queue_many(store, 30)

    deliver_all(open_dispatcher(entry(sink, MAILER_RELAY_RATE="10/minute"), redis_url=redis_url))

    later = waits(store, clock)
    assert (len(sink.messages), len(later)) == (10, 20)
    assert all(5 < second - first < 7 for first, second in pairwise(later))


def test_workers_share_the_rate_of_a_domain(
    store: Store, open_dispatcher: OpenDispatcher, sink: Sink, redis_url: str, clock: Clock
) -> None:
    """Workers share the rate of a domain, and mail to other domains is not held up."""
    limits = {"gmail.com": {"rate": "5/hour"}}
    dispatchers = [
        open_dispatcher(entry(sink), redis_url=redis_url, MAILER_DOMAIN_LIMITS=limits)
        for _ in range(2)
    ]
    for domain in ("gmail.com", "example.com", "gmail.com"):
        queue_many(store, 20, domain=domain)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(deliver_all, dispatchers * 2))

    assert sent_to(sink, "gmail.com") <= 5
    assert sent_to(sink, "example.com") == 20
    assert waits(store, clock)[0] > 60


def test_each_relay_has_its_rate(
    store: Store, open_dispatcher: OpenDispatcher, sink: Sink, redis_url: str
) -> None:
    """A relay that is at its rate does not hold up mail for another one."""
    full = entry(sink, "full", MAILER_RELAY_RATE="5/hour", domains=["example.net"])
    dispatcher = open_dispatcher(full, entry(sink, "free"), redis_url=redis_url)
    queue_many(store, 30, domain="example.net")
    queue_many(store, 30)

    deliver_all(dispatcher)

    assert (sent_to(sink, "example.net"), sent_to(sink, "example.com")) == (5, 30)


def test_limits_hold_while_redis_is_away(
    store: Store, open_dispatcher: OpenDispatcher, sink: Sink, redis_server: RedisServer
) -> None:
    """While Redis is away, each process keeps to its share of a limit."""
    dispatchers = [
        open_dispatcher(
            entry(sink, MAILER_RELAY_RATE="10/hour"),
            redis_url=redis_server.url,
            MAILER_BATCH_SECONDS=0.02,
        )
        for _ in range(2)
    ]
    queue_many(store, 2)
    for dispatcher in dispatchers:
        dispatcher._services.throttle._local.announced_at = 0.0
        dispatcher.deliver_batch()
    dispatchers[0]._services.throttle._local.processes = 2  # as Redis tells it ten seconds later
    redis_server.stop()
    queue_many(store, 40)

    for dispatcher in dispatchers:
        deliver_all(dispatcher)

    assert 2 < len(sink.messages) <= 10


def test_what_waited_goes_when_it_is_its_turn(
    store: Store, open_dispatcher: OpenDispatcher, sink: Sink, redis_url: str
) -> None:
    """Mail that waited for a limit is sent at its turn, and none is forgotten."""
    dispatcher = open_dispatcher(entry(sink, MAILER_RELAY_RATE="10/second"), redis_url=redis_url)
    queue_many(store, 25)
    dispatcher.deliver_batch()
    assert len(sink.messages) < 25

    def look_again() -> bool:
        dispatcher.deliver_batch()
        return len(sink.messages) == 25

    wait_until(look_again)
    assert {(row["status"], row["attempts"]) for row in table(store).values()} == {("sent", 1)}


# --- the order of mail at a limit ---------------------------------------------------------------


def deliver_beside_new_mail(
    store: Store,
    sink: Sink,
    dispatchers: list[Dispatcher],
    *,
    old: int,
    lane: Lane = Lane.NORMAL,
    new_lane: Lane = Lane.NORMAL,
) -> int:
    """Queue old mail, then new mail until all old is sent; return how many old ones came late.

    A mail came late if a new one was sent before it. The new ones that were early are not counted:
    their number grows with each second in which a worker with the last old mail stands still.
    """
    for number in range(old):
        queue(store, f"old{number}@example.com", lane=lane)
    for dispatcher in dispatchers:
        dispatcher.deliver_batch()
    newest, over = naturals(), Event()

    def work(dispatcher: Dispatcher) -> None:
        while not over.wait(0.005):
            dispatcher.deliver_batch()

    def all_old_are_sent() -> bool:
        queue(store, f"new{next(newest)}@example.com", lane=new_lane)
        return sum(recipient.startswith("old") for recipient in received(sink)) == old

    with ThreadPoolExecutor(len(dispatchers)) as threads:
        working = [threads.submit(work, dispatcher) for dispatcher in dispatchers]
        try:
            wait_until(all_old_are_sent, timeout=40)
        finally:
            over.set()
        for one in working:
            one.result()
    names = received(sink)
    first = next((place for place, name in enumerate(names) if name.startswith("new")), len(names))
    return sum(name.startswith("old") for name in names[first:])


@sqlite_only
@pytest.mark.parametrize("limited", ["relay", "domain"])
def test_new_mail_is_behind_what_waits_at_a_limit(
    store: Store, open_dispatcher: OpenDispatcher, sink: Sink, redis_url: str, limited: str
) -> None:
    """New mail stays behind mail that waits at a limit, but for one window of each worker."""
    of_relay = {"MAILER_RELAY_RATE": "20/second"} if limited == "relay" else {}
    of_domain = {} if of_relay else {"MAILER_DOMAIN_LIMITS": {"example.com": {"rate": "20/second"}}}
    dispatchers = [
        open_dispatcher(entry(sink, **of_relay), redis_url=redis_url, **of_domain) for _ in range(2)
    ]

    late = deliver_beside_new_mail(store, sink, dispatchers, old=100)
    assert late <= len(dispatchers) * MAX_WINDOW


@sqlite_only
def test_the_line_is_kept_without_redis(
    store: Store, open_dispatcher: OpenDispatcher, sink: Sink
) -> None:
    """Without Redis, each process keeps the order of mail that waits at a limit."""
    dispatcher = open_dispatcher(entry(sink, MAILER_RELAY_RATE="20/second"), redis_url=None)

    assert deliver_beside_new_mail(store, sink, [dispatcher], old=60) <= MAX_WINDOW


def test_less_urgent_mail_is_behind_what_waits(
    store: Store, open_dispatcher: OpenDispatcher, sink: Sink, redis_url: str, clock: Clock
) -> None:
    """New bulk mail goes behind normal mail that waits; new critical mail goes behind none."""
    dispatchers = [
        open_dispatcher(entry(sink, MAILER_RELAY_RATE="10/second"), redis_url=redis_url)
        for _ in range(2)
    ]
    queue_many(store, 100)
    dispatchers[0].deliver_batch()
    wait_until(lambda: _is_open(dispatchers[0]))
    queue(store, "bulk@example.com", lane=Lane.BULK)
    queue(store, "critical@example.com", lane=Lane.CRITICAL)

    dispatchers[1].deliver_batch()

    assert states(store)["bulk"] == "queued"
    assert states(store)["critical"] == "sent"


def _is_open(dispatcher: Dispatcher) -> bool:
    """Return whether the limit has room for some mail."""
    throttle = dispatcher._services.throttle
    limit = throttle.of_relay("relay")
    assert limit
    assert throttle._shared
    return throttle._shared.count(limit, limit.rates[0]).free > 5


def test_a_line_of_cancelled_mail_stops_nobody(
    store: Store, open_dispatcher: OpenDispatcher, sink: Sink, redis_url: str, clock: Clock
) -> None:
    """A limit is not left unused for waiting mail that was cancelled."""
    dispatcher = open_dispatcher(entry(sink, MAILER_RELAY_RATE="10/second"), redis_url=redis_url)
    queue_many(store, 200)
    dispatcher.deliver_batch()
    for _bite in store.cancel_if_due_before(clock.time() + 3600, now=clock.time()):
        pass
    wait_until(lambda: _is_open(dispatcher))
    queue(store, "new@example.com")

    dispatcher.deliver_batch()

    assert states(store)["new"] == "sent"


# --- a backlog holds up no other mail -----------------------------------------------------------


def test_a_heap_at_a_limit_holds_up_nobody(
    store: Store, open_dispatcher: OpenDispatcher, sink: Sink, redis_url: str, clock: Clock
) -> None:
    """30,000 mails of a domain at its limit hold up other mail for a few batches only."""
    limits = {"gmail.com": {"rate": "5/hour"}}
    # So long that the size of a batch does not depend on how busy the machine is.
    dispatcher = open_dispatcher(
        entry(sink), redis_url=redis_url, MAILER_DOMAIN_LIMITS=limits, MAILER_BATCH_SECONDS=60
    )
    queue_heap(store, 30_000, domain="gmail.com", lane=Lane.BULK, due_at=clock.time() - 3600)
    queue_many(store, 10, lane=Lane.BULK)
    batches = 0

    while sent_to(sink, "example.com") < 10:
        assert dispatcher.deliver_batch().goes_on
        batches += 1

    assert batches <= A_FEW_BATCHES
    assert sent_to(sink, "gmail.com") <= 5


def test_two_heaps_at_their_limits_hold_up_nobody(
    store: Store, open_dispatcher: OpenDispatcher, sink: Sink, redis_url: str, clock: Clock
) -> None:
    """Several domains at their limits hold up no other mail, not even from a lane before it."""
    dispatcher = open_dispatcher(
        entry(sink),
        redis_url=redis_url,
        MAILER_DOMAIN_LIMITS={"*": {"rate": "5/hour"}, "example.com": {}},
    )
    for hours, (domain, lane) in enumerate(
        (("b.example", Lane.NORMAL), ("a.example", Lane.NORMAL), ("c.example", Lane.CRITICAL))
    ):
        queue_heap(store, 3000, domain=domain, lane=lane, due_at=clock.time() - 3600 * (hours + 1))
    queue_many(store, 10)
    batches = 0

    while sent_to(sink, "example.com") < 10:
        assert dispatcher.deliver_batch().goes_on
        batches += 1

    assert batches <= A_FEW_BATCHES


@sqlite_only
def test_a_child_makes_way_whoever_did_at_the_moment_of_its_fork(
    open_dispatcher: OpenDispatcher, sink: Sink
) -> None:
    """A forked child does not inherit a lock that a thread of its parent held."""
    dispatcher = open_dispatcher(entry(sink))
    with dispatcher._head._lock:
        if not (child := os.fork()):
            os._exit(not dispatcher._head._lock.acquire(blocking=False))
        _, status = os.waitpid(child, 0)
    assert status == 0


def test_a_heap_costs_no_mail_of_it_an_attempt(
    store: Store, open_dispatcher: OpenDispatcher, sink: Sink, redis_url: str, clock: Clock
) -> None:
    """Mail at a limit is kept, uses no attempt, and is due within a quarter of an hour."""
    dispatcher = open_dispatcher(
        entry(sink), redis_url=redis_url, MAILER_DOMAIN_LIMITS={"gmail.com": {"rate": "20/second"}}
    )
    queue_heap(store, 6000, domain="gmail.com", due_at=clock.time() - 3600)

    for _ in range(5):
        dispatcher.deliver_batch()

    rows = table(store).values()
    assert len(rows) == 6000
    assert {(row["status"], row["attempts"]) for row in rows} == {("sent", 1), ("queued", 0)}
    assert waits(store, clock)[-1] <= 15 * 60


def test_many_threads_book_each_place_once(
    store: Store, open_dispatcher: OpenDispatcher, sink: Sink, redis_url: str, clock: Clock
) -> None:
    """Threads reserve one place in the rate for each mail, so that no part stays unused."""
    config = {"redis_url": redis_url, "MAILER_DOMAIN_LIMITS": {"gmail.com": {"concurrency": 1}}}
    dispatcher = open_dispatcher(entry(sink), **config)
    queue_heap(store, 4000, domain="gmail.com", due_at=clock.time() - 3600)

    with open_dispatcher(entry(sink), **config)._services.throttle.slots() as slots:
        assert slots.take_domain("gmail.com")
        with ThreadPoolExecutor(8) as threads:
            list(threads.map(lambda _: dispatcher.deliver_batch(), range(8)))

    # A batch whose mails were moved while it reserved places may have one too many for each.
    places = 4000 + 8 * 50
    pace = dispatcher._router.states["relay"].pace
    assert waits(store, clock)[-1] <= places * pace.seconds_per_mail


def test_urgent_mail_is_not_booked_behind_bulk_mail(
    store: Store, open_dispatcher: OpenDispatcher, sink: Sink, redis_url: str, clock: Clock
) -> None:
    """Urgent mail is due when the limit opens, not behind bulk mail of the same domain."""
    dispatcher = open_dispatcher(
        entry(sink), redis_url=redis_url, MAILER_DOMAIN_LIMITS={"gmail.com": {"rate": "5/minute"}}
    )
    queue_many(store, 50, domain="gmail.com", lane=Lane.BULK)
    deliver_all(dispatcher)
    assert sent_to(sink, "gmail.com") == 5

    queue(store, "ada@gmail.com", lane=Lane.CRITICAL)
    deliver_all(dispatcher)

    [urgent], bulk = waits(store, clock, Lane.CRITICAL), waits(store, clock, Lane.BULK)
    assert urgent <= 61 + 12
    assert urgent <= bulk[1]
    assert bulk[-1] > 300


# --- concurrency --------------------------------------------------------------------------------


class BusySink(Sink):
    """A sink that knows how many connections are open, and the most while a mail came."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.most = 0

    def _keep(self, sender: str, recipients: list[str], raw: bytes) -> str:
        self.most = max(self.most, len(self._sessions))
        return super()._keep(sender, recipients, raw)

    @property
    def open_connections(self) -> int:
        return len(self._sessions)


def test_workers_share_the_connections_of_a_relay(
    store: Store, open_dispatcher: OpenDispatcher, redis_url: str
) -> None:
    """Workers share the connections that a relay allows, and keep none open when idle."""
    with BusySink() as sink:
        sink.faults.add(Fault("data", DELAY, delay=0.02, times=None))
        dispatchers = [
            open_dispatcher(
                entry(sink, MAILER_RELAY_CONCURRENCY=2),
                redis_url=redis_url,
                MAILER_BATCH_SECONDS=0.1,
            )
            for _ in range(2)
        ]
        queue_many(store, 40)

        def work(dispatcher: Dispatcher) -> None:
            while any(row["status"] != "sent" for row in table(store).values()):
                dispatcher.deliver(at_most=0.2)

        with ThreadPoolExecutor(6) as threads:
            list(threads.map(work, dispatchers * 3))

        assert len(sink.messages) == 40
        assert sink.most == 2
        wait_until(lambda: sink.open_connections == 0)


def test_a_busy_relay_is_not_waited_for(
    store: Store,
    open_dispatcher: OpenDispatcher,
    sink: Sink,
    redis_url: str,
    bell: CountingBell,
    clock: Clock,
) -> None:
    """A worker that gets no connection claims nothing and rings nobody."""
    dispatcher = open_dispatcher(entry(sink, MAILER_RELAY_CONCURRENCY=1), redis_url=redis_url)
    queue_many(store, 60)
    before = table(store)

    other = open_dispatcher(entry(sink, MAILER_RELAY_CONCURRENCY=1), redis_url=redis_url)
    with other._services.throttle.slots() as slots:
        assert slots.take_relay("relay")
        deliver_all(dispatcher)
        assert (table(store), bell.rings, sink.connections) == (before, 0, 0)

    deliver_all(dispatcher)
    assert len(sink.messages) == 60


def test_mail_for_a_busy_relay_does_not_go_round_in_circles(
    store: Store,
    open_dispatcher: OpenDispatcher,
    sink: Sink,
    redis_url: str,
    bell: CountingBell,
    clock: Clock,
) -> None:
    """A worker that can deliver nothing of the due mail stops and leaves the rows unchanged."""
    relays = (
        entry(sink, "busy", MAILER_RELAY_CONCURRENCY=1),
        entry(sink, "other", domains=["example.net"]),
        entry(sink, "backup", preference=1),
    )
    dispatcher, other = (open_dispatcher(*relays, redis_url=redis_url) for _ in range(2))
    queue_many(store, 200)
    before = table(store)

    with other._services.throttle.slots() as slots:
        assert slots.take_relay("busy")
        deliver_all(dispatcher)

    assert (table(store), bell.rings) == (before, 0)
    deliver_all(dispatcher)
    assert {(row["status"], row["relay"]) for row in table(store).values()} == {("sent", "busy")}


@pytest.mark.parametrize("moved_at_once", [100, 5000])
def test_mail_for_a_busy_relay_holds_up_nobody(
    store: Store,
    open_dispatcher: OpenDispatcher,
    sink: Sink,
    backup: Sink,
    redis_url: str,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    moved_at_once: int,
) -> None:
    """Mail for a busy relay does not hold up an idle one, and is due again a moment later."""
    monkeypatch.setattr(clearing, "MOVED_AT_ONCE", moved_at_once)
    relays = (
        entry(sink, "busy", MAILER_RELAY_CONCURRENCY=1),
        entry(backup, "idle", domains=["example.net"]),
    )
    dispatcher = open_dispatcher(*relays, redis_url=redis_url)
    queue_heap(store, 350, domain="example.com", due_at=clock.time() - 1)
    queue_many(store, 5, domain="example.net")

    with open_dispatcher(*relays, redis_url=redis_url)._services.throttle.slots() as slots:
        assert slots.take_relay("busy")
        deliver_all(dispatcher)
    assert (len(backup.messages), len(sink.messages)) == (5, 0)

    clock.ahead += 1.1
    deliver_all(dispatcher)
    assert len(sink.messages) == 350


@pytest.mark.parametrize("its_turn", [Lane.CRITICAL, Lane.BULK, None])
@pytest.mark.parametrize("limited", ["relay", "domain"])
def test_who_waits_for_a_relay_holds_no_slot_elsewhere(
    store: Store,
    open_dispatcher: OpenDispatcher,
    redis_url: str,
    limited: str,
    its_turn: Lane | None,
) -> None:
    """A worker that waits for one relay keeps no slot of other relays or domains from others."""
    of_relay = {"MAILER_RELAY_CONCURRENCY": 1} if limited == "relay" else {}
    of_domain = {} if of_relay else {"MAILER_DOMAIN_LIMITS": {"gmail.com": {"concurrency": 1}}}
    with ScriptedRelay() as slow, BusySink() as sink:
        slow.faults["mailer@example.com", "dot"] = [HOLD]
        relays = entry(slow, "slow", domains=["slow.example"]), entry(sink, "free", **of_relay)
        waiting, other = (
            open_dispatcher(*relays, redis_url=redis_url, **of_domain) for _ in range(2)
        )
        queue(store, "ada@slow.example")
        if its_turn is not None:
            queue(store, "its@gmail.com", lane=its_turn)
        with ThreadPoolExecutor(1) as threads:
            batch = threads.submit(waiting.deliver_batch)
            try:
                wait_until(lambda: slow.held)
                queue(store, "other@gmail.com")
                deliver_all(other)
                assert states(store)["other"] == "sent"
            finally:
                slow.go_on()
            batch.result()
        assert set(states(store).values()) == {"sent"}
        assert sink.most == 1 or limited == "domain"


def test_a_slot_that_is_gone_meanwhile_is_not_waited_for(
    store: Store, open_dispatcher: OpenDispatcher, sink: Sink, redis_url: str
) -> None:
    """A worker does not wait for a slot that was taken meanwhile; its mail goes back unchanged."""
    with ScriptedRelay() as slow:
        slow.faults["mailer@example.com", "dot"] = [HOLD]
        relays = (
            entry(slow, "slow", domains=["slow.example"]),
            entry(sink, "free", MAILER_RELAY_CONCURRENCY=1),
        )
        dispatcher, other = (open_dispatcher(*relays, redis_url=redis_url) for _ in range(2))
        queue(store, "ada@slow.example")
        bulk = queue(store, "bulk@example.com", lane=Lane.BULK)
        with other._services.throttle.slots() as slots, ThreadPoolExecutor(1) as threads:
            batch = threads.submit(dispatcher.deliver_batch)
            try:
                wait_until(lambda: slow.held)
                assert slots.take_relay("free")
            finally:
                slow.go_on()
            batch.result()
            copy = copy_of(store, bulk)
            assert (copy.status, copy.attempts, sink.connections) == (Status.QUEUED, 0, 0)
        deliver_all(dispatcher)
    assert received(sink) == ["bulk@example.com"]


def test_workers_share_the_slots_of_a_domain(
    store: Store, open_dispatcher: OpenDispatcher, redis_url: str, clock: Clock
) -> None:
    """One worker at a time sends to a domain with one slot; other domains are not held up."""
    limits: Mapping[str, object] = {"gmail.com": {"concurrency": 1}}
    with BusySink() as sink:
        dispatchers = [
            open_dispatcher(entry(sink), redis_url=redis_url, MAILER_DOMAIN_LIMITS=limits)
            for _ in range(2)
        ]
        with dispatchers[0]._services.throttle.slots() as slots:
            assert slots.take_domain("gmail.com")
            queue_many(store, 10, domain="gmail.com")
            queue_many(store, 10)
            clock.stand_still()
            deliver_all(dispatchers[1])

        assert (sent_to(sink, "gmail.com"), sent_to(sink, "example.com")) == (0, 10)
        assert waits(store, clock)[0] > 0.5  # not twenty times a second
        clock.ahead += 60
        deliver_all(dispatchers[1])
        assert sent_to(sink, "gmail.com") == 10


# --- batches ------------------------------------------------------------------------------------


def sizes_of_batches(dispatcher: Dispatcher, sink: Sink, most: int) -> list[int]:
    sizes = []
    for _ in range(most):
        before = len(sink.messages)
        dispatcher.deliver_batch()
        sizes.append(len(sink.messages) - before)
    return sizes


@pytest.mark.parametrize(
    ("seconds_per_mail", "size"),
    [(0.3, range(2, 5)), (0.1, range(8, 12)), (5.0, range(1, 2)), (0.005, range(120, 221))],
)
def test_a_batch_lasts_about_a_second(
    store: Store,
    open_dispatcher: OpenDispatcher,
    sink: Sink,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    seconds_per_mail: float,
    size: range,
) -> None:
    """A batch lasts about a second, as the dispatcher learns how fast the relay is."""
    monkeypatch.setattr(clock, "monotonic", lambda: seconds_per_mail * len(sink.messages))
    dispatcher = open_dispatcher(entry(sink))
    queue_heap(store, 1500, domain="example.com", due_at=time.time())

    *_, last = sizes_of_batches(dispatcher, sink, 10)

    assert last in size


@sqlite_only
def test_a_relay_that_takes_its_time(
    store: Store, open_dispatcher: OpenDispatcher, sink: Sink
) -> None:
    """A relay that takes 300 ms for a mail gets batches of three."""
    sink.faults.add(Fault("dot", DELAY, delay=0.3, times=None))
    dispatcher = open_dispatcher(entry(sink))
    queue_many(store, 60)

    sizes = sizes_of_batches(dispatcher, sink, 6)

    assert sizes[0] <= 8
    assert 1 <= sizes[-1] <= 3
    assert {row["status"] for row in table(store).values()} == {"sent", "queued"}


def test_a_relay_that_is_away_says_nothing_of_speed(
    store: Store,
    open_dispatcher: OpenDispatcher,
    sink: Sink,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The time-out of an unreachable relay does not make later batches smaller."""
    sink.faults.add(Fault("connect", "421 4.3.2 closed"))
    dispatcher = open_dispatcher(entry(sink, "first"), entry(sink, "second", preference=1))
    monkeypatch.setattr(clock, "monotonic", lambda: 60.0 * sink.connections)
    queue_many(store, 3)

    dispatcher.deliver_batch()

    assert sink.connections == 1
    assert (
        dispatcher._pace.seconds_per_mail
        == dispatcher._router.states["first"].pace.seconds_per_mail
        == 0.02
    )


def test_the_pace_of_single_mails(
    store: Store,
    open_dispatcher: OpenDispatcher,
    sink: Sink,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Batches of one mail teach the pace of the relay: each outcome counts once."""
    dispatcher = open_dispatcher(entry(sink, "first"))
    monkeypatch.setattr(clock, "monotonic", lambda: 2.0 * len(sink.messages))
    for number in range(1, 41):
        queue_many(store, 1)
        dispatcher.deliver_batch()
        assert len(sink.messages) == number

    [state] = dispatcher._router.states.values()
    assert state.pace.seconds_per_mail == pytest.approx(2.0, rel=0.1)
