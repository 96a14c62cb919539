"""Several relays: which mail goes over which, and what happens when one is down."""

import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from mailer.delivery import Dispatcher, clearing
from mailer.message import Address, Lane, Status, Verdict
from mailer.smtpd.faults import CLOSE_AFTER_250, DROP, Fault
from mailer.store import Store
from tests.mails import a_message, table
from tests.services.dispatchers import (
    Clock,
    CountingBell,
    OpenDispatcher,
    chores_of,
    copy_of,
    deliver_all,
    entry,
    pause_of,
    queue,
    queue_many,
    received,
    two,
    wait_out,
)
from tests.services.ports import free_port
from tests.services.sink import Sink

DOWN = "421 4.3.2 closed for the night"


# --- a relay is down ----------------------------------------------------------------------------

Break = Callable[[Sink], Mapping[str, Any]]


def _refuse_connections(sink: Sink) -> Mapping[str, Any]:
    return {"MAIL_PORT": free_port()}


def _at(*faults: Fault) -> Break:
    def add(sink: Sink) -> Mapping[str, Any]:
        sink.faults.add(*faults)
        return {}

    return add


def _want_another_password(sink: Sink) -> Mapping[str, Any]:
    sink.credentials = ("ada", "secret")
    return {"MAIL_USERNAME": "ada", "MAIL_PASSWORD": "wrong"}


BROKEN = [
    pytest.param(_refuse_connections, "refused", id="connections refused"),
    pytest.param(
        _at(Fault("connect", DROP, times=None)), "no connection to the relay", id="hangs up at once"
    ),
    pytest.param(_at(Fault("connect", DOWN, times=None)), DOWN, id="421 for a greeting"),
    pytest.param(_at(Fault("ehlo", DOWN, times=None)), DOWN, id="421 to EHLO"),
    pytest.param(_at(Fault("mail", DOWN, times=None)), DOWN, id="421 to MAIL"),
    pytest.param(
        _at(Fault("mail", "530 5.7.0 Authentication required", times=None)),
        "530 5.7.0",
        id="no mail without a login",
    ),
    pytest.param(_want_another_password, "535 5.7.8", id="wrong password"),
    pytest.param(
        lambda _: {"MAIL_USE_SSL": True}, "MAIL_USE_SSL: port", id="no TLS where we begin with it"
    ),
    pytest.param(
        lambda _: {"MAIL_USE_TLS": True},
        "MAIL_USE_TLS: the relay offers no STARTTLS",
        id="no STARTTLS",
    ),
]


@pytest.mark.parametrize(("break_it", "reason"), BROKEN)
def test_mail_takes_the_next_relay(
    store: Store,
    open_dispatcher: OpenDispatcher,
    sink: Sink,
    backup: Sink,
    break_it: Break,
    reason: str,
) -> None:
    """When a relay fails, mail takes the next at no attempt, and the pause keeps the reason."""
    queue_many(store, 8)
    first, second = two(sink, backup, **break_it(sink))

    deliver_all(open_dispatcher(first, second))

    rows = table(store).values()
    assert {(row["status"], row["attempts"], row["relay"]) for row in rows} == {
        ("sent", 1, "second")
    }
    assert (len(sink.messages), len(set(received(backup)))) == (0, 8)
    pause = pause_of(store)
    assert pause.failures == 1
    assert reason in pause.reason
    # Only one mail met the fault.
    assert sum(len(store.status(row["mail_id"]).deliveries[0].history) for row in rows) == 1


def test_a_mail_tells_of_the_relay_it_could_not_take(
    store: Store, open_dispatcher: OpenDispatcher, sink: Sink, backup: Sink
) -> None:
    """A failed relay is in the history of the mail, and counts as no attempt."""
    mail_id = queue(store, "ada@example.com")
    sink.faults.add(Fault("connect", DOWN, times=None))

    deliver_all(open_dispatcher(*two(sink, backup)))

    sent = copy_of(store, mail_id)
    [tried] = sent.history
    assert (sent.status, sent.attempts, sent.relay) == (Status.SENT, 1, "second")
    assert (tried.verdict, tried.relay) == (Verdict.UNREACHED, "first")
    assert DOWN in tried.reply


def test_other_workers_leave_it_alone(
    store: Store, open_dispatcher: OpenDispatcher, sink: Sink, backup: Sink
) -> None:
    """A relay that failed for one worker is left alone by all."""
    sink.faults.add(Fault("connect", DOWN, times=None))
    one, other = (open_dispatcher(*two(sink, backup)) for _ in range(2))
    queue(store, "ada@example.com")
    deliver_all(one)

    queue_many(store, 20)
    deliver_all(other)

    assert sink.connections == 1
    assert len(backup.messages) == 21


def test_it_fails_in_the_middle(
    store: Store, open_dispatcher: OpenDispatcher, sink: Sink, backup: Sink
) -> None:
    """When a relay fails in a batch, mail it took stays sent and the rest takes the other one."""
    queue_many(store, 12)
    take = sink.accept

    def take_five(sender: str, recipients: list[str], raw: bytes) -> str:
        if len(sink.messages) == 4:
            sink.faults.add(Fault("mail", DOWN, times=None))
        return take(sender, recipients, raw)

    sink.accept = take_five

    deliver_all(open_dispatcher(*two(sink, backup)))

    assert (len(sink.messages), len(backup.messages)) == (5, 7)
    assert len({*received(sink), *received(backup)}) == 12
    assert {(row["status"], row["attempts"]) for row in table(store).values()} == {("sent", 1)}


def test_both_are_down(
    store: Store,
    open_dispatcher: OpenDispatcher,
    sink: Sink,
    backup: Sink,
    clock: Clock,
    bell: CountingBell,
) -> None:
    """While all relays are down, mail waits unchanged and no worker is kept busy."""
    mails = queue_many(store, 10)
    for server in (sink, backup):
        server.faults.add(Fault("connect", DOWN, times=None))
    dispatcher = open_dispatcher(*two(sink, backup))

    deliver_all(dispatcher)
    rings = bell.rings
    deliver_all(dispatcher)

    assert store.relay_pauses().keys() == {"first", "second"}
    assert (sink.connections, backup.connections, bell.rings) == (1, 1, rings)
    assert {(row["status"], row["attempts"]) for row in table(store).values()} == {("queued", 0)}
    assert all(row["due_at"] <= clock.time() for row in table(store).values())
    assert sum(len(copy_of(store, mail_id).history) for mail_id in mails) == 2


def test_nothing_is_claimed_while_the_only_relay_is_paused(
    store: Store,
    open_dispatcher: OpenDispatcher,
    sink: Sink,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """While the only relay is paused, no mail is claimed; only the first one tried has changed."""
    queue_many(store, 10)
    before = {number: row["due_at"] for number, row in table(store).items()}
    sink.faults.add(Fault("connect", DROP, times=None))
    dispatcher = open_dispatcher(entry(sink))

    deliver_all(dispatcher)

    after = table(store)
    assert {row["status"] for row in after.values()} == {"queued"}
    assert len([number for number, row in after.items() if row["due_at"] != before[number]]) == 1
    monkeypatch.setattr(dispatcher._services.store, "claim_due", None)
    assert not dispatcher.deliver_batch().goes_on
    chores_of(dispatcher).sweep()
    assert table(store) == after
    assert sink.connections == 1


# --- rules --------------------------------------------------------------------------------------


def test_each_relay_gets_its_mail(
    store: Store, open_dispatcher: OpenDispatcher, sink: Sink
) -> None:
    """A relay gets the mail of its senders, domains and lanes; one without rules gets the rest."""
    names = ("boss", "corp", "bulk", "rest")
    rules: list[dict[str, Any]] = [
        {"senders": ["boss@example.com"]},
        {"domains": ["corp.example"]},
        {"lanes": ["bulk"]},
        {},
    ]
    dispatcher = open_dispatcher(
        *(
            entry(sink, name, preference=at, **rule)
            for at, (name, rule) in enumerate(zip(names, rules, strict=True))
        )
    )
    boss = a_message(sender=Address("boss@example.com"))
    queue(store, "a@mx.corp.example", message=boss, lane=Lane.BULK)
    queue(store, "b@mx.corp.example", lane=Lane.BULK)
    queue(store, "c@example.org", lane=Lane.BULK)
    queue(store, "d@example.org")

    deliver_all(dispatcher)

    assert {row["recipient"][0]: row["relay"] for row in table(store).values()} == dict(
        zip("abcd", names, strict=True)
    )


def test_relays_share_by_weight(
    store: Store, open_dispatcher: OpenDispatcher, sink: Sink, backup: Sink
) -> None:
    """Relays share mail by weight, and each mail goes over one of them."""
    queue_many(store, 200)

    deliver_all(open_dispatcher(entry(sink, "heavy", weight=3), entry(backup, "light", weight=1)))

    assert (
        len({*received(sink), *received(backup)})
        == len(sink.messages) + len(backup.messages)
        == 200
    )
    assert 20 <= len(backup.messages) <= 85


def test_what_only_a_paused_relay_takes_waits_for_it(
    store: Store, open_dispatcher: OpenDispatcher, sink: Sink, backup: Sink, clock: Clock
) -> None:
    """Mail for a paused relay waits for it, uses no attempt and holds up no other mail."""
    sink.faults.add(Fault("connect", DOWN))
    dispatcher = open_dispatcher(
        entry(sink, "first"), entry(backup, "second", domains=["example.net"])
    )
    for number in range(30):
        queue(store, f"reader{number}@example.com")
        queue(store, f"reader{number}@example.net")

    deliver_all(dispatcher)

    until = pause_of(store).until
    waiting = [row for row in table(store).values() if row["status"] == "queued"]
    assert len(backup.messages) == len(waiting) == 30
    assert {(row["due_at"], row["attempts"]) for row in waiting} == {(until, 0)}

    wait_out(clock, store)
    deliver_all(dispatcher)
    assert (len(sink.messages), len(backup.messages)) == (30, 30)


def test_much_mail_for_a_paused_relay_is_in_nobodys_way(
    store: Store,
    open_dispatcher: OpenDispatcher,
    sink: Sink,
    backup: Sink,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Much mail for a paused relay is moved in bulk, even by sender, the costliest rule."""
    monkeypatch.setattr(clearing, "MOVED_AT_ONCE", 100)
    sink.faults.add(Fault("connect", DOWN, times=None))
    dispatcher = open_dispatcher(
        entry(sink, "first"), entry(backup, "second", senders=["example.net"])
    )
    queue(store, "ada@example.com")
    deliver_all(dispatcher)
    for number in range(50):
        queue(store, *(f"reader{number}.{copy}@example.com" for copy in range(50)))
    other = queue(
        store, "bob@example.com", message=a_message(sender=Address("eve@news.example.net"))
    )
    batches = 0
    while copy_of(store, other).status is not Status.SENT:
        dispatcher.deliver_batch()
        batches += 1

    assert batches <= 5
    assert sink.connections == 1


def test_lanes_of_a_paused_relay_are_left_alone(
    store: Store, open_dispatcher: OpenDispatcher, sink: Sink, backup: Sink, clock: Clock
) -> None:
    """Mail in lanes that only a paused relay takes is not even claimed."""
    sink.faults.add(Fault("connect", DOWN, times=None))
    dispatcher = open_dispatcher(entry(sink, "first"), entry(backup, "second", lanes=["bulk"]))
    queue(store, "ada@example.com", lane=Lane.CRITICAL)
    deliver_all(dispatcher)
    queue_many(store, 60, lane=Lane.CRITICAL)
    waiting = table(store)
    queue_many(store, 5, lane=Lane.BULK)

    dispatcher.deliver_batch()

    assert len(backup.messages) == 5
    assert {number: row for number, row in table(store).items() if number in waiting} == waiting


def test_a_slow_relay_takes_no_time_from_the_next_one(
    store: Store,
    open_dispatcher: OpenDispatcher,
    sink: Sink,
    backup: Sink,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each relay sends some mail of each batch, however long the relay before it took."""
    # Each mail takes the slow relay 100 seconds.
    monkeypatch.setattr(clock, "monotonic", lambda: time.monotonic() + 100.0 * len(sink.messages))
    dispatcher = open_dispatcher(
        entry(sink, "slow", domains=["example.net"]), entry(backup, "fast")
    )
    dispatcher._pace.seconds_per_mail = 0.1
    for number in range(5):
        queue(store, f"reader{number}@example.com")
        queue(store, f"reader{number}@example.net", lane=Lane.CRITICAL)  # its relay comes first

    dispatcher.deliver_batch()

    assert 0 < len(sink.messages) < 5
    assert len(backup.messages) == 5


# --- all faults at once -------------------------------------------------------------------------

TROUBLE = [
    *(Fault("connect", action, times=3) for action in (DROP, DOWN)),
    *(Fault(stage, DOWN, times=3) for stage in ("ehlo", "mail", "rcpt", "dot")),
    *(Fault(stage, DROP, times=3) for stage in ("mail", "rcpt", "data")),
    Fault("rcpt", "450 4.2.0 not now", times=10),
    Fault("dot", "451 4.3.0 disk full", times=10),
    Fault("dot", CLOSE_AFTER_250, times=10),
]


def test_nothing_is_lost_and_nothing_is_sent_twice(
    store: Store,
    open_dispatcher: OpenDispatcher,
    sink: Sink,
    backup: Sink,
    redis_url: str,
    clock: Clock,
) -> None:
    """Under all faults short of doubt, several workers send every mail exactly once."""
    sink.faults.add(*TROUBLE)
    backup.faults.add(*reversed(TROUBLE))
    first = entry(sink, "first", MAILER_RELAY_CONCURRENCY=2, senders=["example.com"])
    second = entry(backup, "second", MAILER_RELAY_RATE="500/second")
    limits = {"gmail.com": {"rate": "200/second", "concurrency": 1}}
    config = {
        "MAILER_DOMAIN_LIMITS": limits,
        "MAILER_RETRY_ATTEMPTS": 1000,
        "MAILER_RETRY_LONGEST": 500,
        "MAILER_RETRY_AGE": 1e7,
        "MAILER_BATCH_SECONDS": 0.1,
    }
    dispatchers = [open_dispatcher(first, second, redis_url=redis_url, **config) for _ in range(2)]
    for lane in Lane:
        queue_many(store, 40, domain="gmail.com", lane=lane)
        readers = [f"reader{lane}.{number}@example.net" for number in range(40)]
        queue(store, *readers, lane=lane, message=a_message(sender=Address("ada@example.org")))
    mails = {(row["recipient"], row["mail_id"]) for row in table(store).values()}

    def work(dispatcher: Dispatcher) -> None:
        chores_of(dispatcher).sweep()
        deliver_all(dispatcher)

    for _ in range(240):  # more than enough rounds, whatever each batch gets done
        with ThreadPoolExecutor(6) as threads:
            list(threads.map(work, dispatchers * 3))
        if {row["status"] for row in table(store).values()} == {"sent"}:
            break
        clock.ahead += 600

    got = [(mail.recipients[0], mail.message_id) for mail in (*sink.messages, *backup.messages)]
    assert len(mails) == len(got) == len(set(got)) == 240
    assert {row["status"] for row in table(store).values()} == {"sent"}
