"""Several relays, and what happens when one of them can't be used: its breaker opens for all workers, and mail takes another."""

import logging
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from mailer import delivery as room
from mailer.delivery import Courier
from mailer.delivery import round as round_
from mailer.devstack.faults import DROP, HANG, Fault
from mailer.message import Address, Lane, Pause, Status, Verdict
from mailer.mime import compose
from mailer.store import Store
from tests.mails import a_message, table
from tests.services.couriers import Clock, CountingBell, OpenCourier, copy_of, entry, queue
from tests.services.relay import SHORT, RawServer
from tests.services.sink import Sink
from tests.services.waiting import wait_until

REST = 10.0
DOWN = "421 4.3.2 closed for the night"
LOGIN = {"MAIL_USERNAME": "ada", "MAIL_PASSWORD": "wrong"}


@pytest.fixture
def backup() -> Iterator[Sink]:
    """A second relay; `sink` is the first."""
    with Sink() as server:
        yield server


def queue_many(store: Store, count: int, *, domain: str = "example.com", **options: Any) -> list[str]:
    return [queue(store, f"reader{number}@{domain}", **options) for number in range(count)]


def two(first: Sink | RawServer, second: Sink, **of_the_first: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """A relay, and one for when it is down."""
    return entry(first, "first", **of_the_first), entry(second, "second", preference=1)


def deliver_all(courier: Courier) -> None:
    courier.deliver(at_most=60)


def pause_of(store: Store, name: str = "first") -> Pause:
    return store.relay_pauses()[name]


def received(sink: Sink) -> list[str]:
    return [recipient for mail in sink.messages for recipient in mail.recipients]


def wait_out(clock: Clock, store: Store, name: str = "first") -> None:
    """Until the relay may be tried again."""
    until = pause_of(store, name).until
    assert until is not None
    clock.ahead += max(0.0, until - clock.time()) + 0.1


# --- a relay is down --------------------------------------------------------------------------------------------------

Break = Callable[[Sink], Mapping[str, Any]]


def _refuse_connections(sink: Sink) -> Mapping[str, Any]:
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        return {"MAIL_PORT": nobody.getsockname()[1]}


def _at(*faults: Fault) -> Break:
    def add(sink: Sink) -> Mapping[str, Any]:
        sink.faults.add(*faults)
        return {}

    return add


def _want_another_password(sink: Sink) -> Mapping[str, Any]:
    sink.credentials = ("ada", "secret")
    return LOGIN


BROKEN = [
    pytest.param(_refuse_connections, "refused", id="connections refused"),
    pytest.param(_at(Fault("connect", DROP, times=None)), "no connection to the relay", id="hangs up at once"),
    pytest.param(_at(Fault("connect", DOWN, times=None)), DOWN, id="421 for a greeting"),
    pytest.param(_at(Fault("ehlo", DOWN, times=None)), DOWN, id="421 to EHLO"),
    pytest.param(_at(Fault("mail", DOWN, times=None)), DOWN, id="421 to MAIL"),
    pytest.param(_at(Fault("mail", "530 5.7.0 Authentication required", times=None)), "530 5.7.0", id="no mail without a login"),
    pytest.param(_want_another_password, "535 5.7.8", id="wrong password"),
    pytest.param(lambda _: {"MAIL_USE_SSL": True}, "MAIL_USE_SSL: port", id="no TLS where we begin with it"),
    pytest.param(lambda _: {"MAIL_USE_TLS": True}, "MAIL_USE_TLS: the relay offers no STARTTLS", id="no STARTTLS"),
]


@pytest.mark.parametrize(("break_it", "reason"), BROKEN)
def test_mail_takes_the_next_relay(
    store: Store, open_courier: OpenCourier, sink: Sink, backup: Sink, break_it: Break, reason: str
) -> None:
    """Whatever is wrong with the first; no mail pays for it with an attempt, and the pause tells what it was."""
    queue_many(store, 8)
    first, second = two(sink, backup, **break_it(sink))

    deliver_all(open_courier(first, second))

    rows = table(store).values()
    assert {(row["status"], row["attempts"], row["relay"]) for row in rows} == {("sent", 1, "second")}
    assert (len(sink.messages), len(set(received(backup)))) == (0, 8)
    pause = pause_of(store)
    assert pause.failures == 1
    assert reason in pause.reason
    assert sum(len(store.status(row["mail_id"]).deliveries[0].history) for row in rows) == 1  # one mail found it out


def test_a_mail_tells_of_the_relay_it_could_not_take(store: Store, open_courier: OpenCourier, sink: Sink, backup: Sink) -> None:
    """Its history has the try, which was no attempt."""
    mail_id = queue(store, "ada@example.com")
    sink.faults.add(Fault("connect", DOWN, times=None))

    deliver_all(open_courier(*two(sink, backup)))

    sent = copy_of(store, mail_id)
    [tried] = sent.history
    assert (sent.status, sent.attempts, sent.relay) == (Status.SENT, 1, "second")
    assert (tried.verdict, tried.relay) == (Verdict.UNREACHED, "first")
    assert DOWN in tried.reply


def test_other_workers_leave_it_alone(store: Store, open_courier: OpenCourier, sink: Sink, backup: Sink) -> None:
    """They have never tried it themselves: what one has found out, all know."""
    sink.faults.add(Fault("connect", DOWN, times=None))
    one, other = (open_courier(*two(sink, backup)) for _ in range(2))
    queue(store, "ada@example.com")
    deliver_all(one)

    queue_many(store, 20)
    deliver_all(other)

    assert sink.connections == 1
    assert len(backup.messages) == 21


def test_it_fails_in_the_middle(store: Store, open_courier: OpenCourier, sink: Sink, backup: Sink) -> None:
    """What it has taken is sent, and is not sent again; the rest takes the other one."""
    queue_many(store, 12)
    take = sink.accept

    def take_five(sender: str, recipients: list[str], raw: bytes) -> str:
        if len(sink.messages) == 4:
            sink.faults.add(Fault("mail", DOWN, times=None))
        return take(sender, recipients, raw)

    sink.accept = take_five

    deliver_all(open_courier(*two(sink, backup)))

    assert (len(sink.messages), len(backup.messages)) == (5, 7)
    assert len({*received(sink), *received(backup)}) == 12
    assert {(row["status"], row["attempts"]) for row in table(store).values()} == {("sent", 1)}


def test_both_are_down(
    store: Store, open_courier: OpenCourier, sink: Sink, backup: Sink, clock: Clock, bell: CountingBell
) -> None:
    """Mail waits, untouched, and nobody is busy with it."""
    mails = queue_many(store, 10)
    for server in (sink, backup):
        server.faults.add(Fault("connect", DOWN, times=None))
    courier = open_courier(*two(sink, backup))

    deliver_all(courier)
    rings = bell.rings
    deliver_all(courier)

    assert store.relay_pauses().keys() == {"first", "second"}
    assert (sink.connections, backup.connections, bell.rings) == (1, 1, rings)
    assert {(row["status"], row["attempts"]) for row in table(store).values()} == {("queued", 0)}
    assert all(row["due_at"] <= clock.time() for row in table(store).values())
    assert sum(len(copy_of(store, mail_id).history) for mail_id in mails) == 2


def test_nothing_is_claimed_while_the_only_relay_is_paused(
    store: Store, open_courier: OpenCourier, sink: Sink, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The slice goes back as it was, but for the one mail that found it out, and then the table rests, too."""
    queue_many(store, 10)
    before = {number: row["due_at"] for number, row in table(store).items()}
    sink.faults.add(Fault("connect", DROP, times=None))
    courier = open_courier(entry(sink))

    deliver_all(courier)

    after = table(store)
    assert {row["status"] for row in after.values()} == {"queued"}
    assert len([number for number, row in after.items() if row["due_at"] != before[number]]) == 1
    monkeypatch.setattr(courier._store, "claim_due", None)
    assert courier.deliver_slice() == 0
    courier.sweep()
    assert table(store) == after
    assert sink.connections == 1


# --- and comes back ---------------------------------------------------------------------------------------------------


def test_it_comes_back(
    store: Store, open_courier: OpenCourier, sink: Sink, backup: Sink, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """Then the pause is gone, for all workers, and mail flows as before."""
    sink.faults.add(Fault("connect", DOWN))
    one, other = (open_courier(*two(sink, backup)) for _ in range(2))
    queue_many(store, 4)
    deliver_all(one)
    assert len(backup.messages) == 4

    wait_out(clock, store)
    queue_many(store, 6)
    deliver_all(other)
    assert store.relay_pauses() == {}
    assert "The relay first answers again." in caplog.text

    queue_many(store, 5)
    deliver_all(one)
    assert len(sink.messages) + len(backup.messages) == 15
    assert len(sink.messages) >= 6


def test_the_only_relay_comes_back(store: Store, open_courier: OpenCourier, sink: Sink, clock: Clock) -> None:
    """One mail tries it, the others follow at once."""
    sink.faults.add(Fault("connect", DOWN))
    courier = open_courier(entry(sink, "first"))
    queue_many(store, 10)
    deliver_all(courier)

    wait_out(clock, store)
    deliver_all(courier)

    assert {(row["status"], row["attempts"]) for row in table(store).values()} == {("sent", 1)}
    assert len(set(received(sink))) == 10
    assert store.relay_pauses() == {}


def test_it_is_left_alone_longer_each_time(store: Store, open_courier: OpenCourier, sink: Sink, clock: Clock) -> None:
    """Twice as long, from MAILER_RELAY_REST up to MAILER_RELAY_REST_LONGEST, and mails pay nothing for the tries."""
    mail_id = queue(store, "ada@example.com")
    sink.faults.add(Fault("connect", DOWN, times=None))
    courier = open_courier(entry(sink, "first"), MAILER_RELAY_REST=REST, MAILER_RELAY_REST_LONGEST=100)
    rests, since = [], set()
    for _ in range(6):
        deliver_all(courier)
        pause = pause_of(store)
        assert pause.until is not None
        rests.append(pause.until - clock.time())
        since.add(pause.since)
        wait_out(clock, store)

    assert pause.failures == sink.connections == 6
    assert len(since) == 1
    for rest, least in zip(rests, [10, 20, 40, 80, 100, 100], strict=True):
        assert least - 1 < rest <= min(1.2 * least, 100)
    assert (copy_of(store, mail_id).status, copy_of(store, mail_id).attempts) == (Status.QUEUED, 0)


def test_it_says_when_to_come_back(store: Store, open_courier: OpenCourier, sink: Sink, clock: Clock) -> None:
    """Then that counts, if it is longer, and within reason."""
    queue(store, "ada@example.com")
    courier = open_courier(entry(sink, "first"), MAILER_RELAY_REST=REST, MAILER_RELAY_REST_LONGEST=300)
    for asked, given in (("2 minutes", 120), ("3 seconds", 20), ("2 days", 300)):
        sink.faults.add(Fault("connect", f"421 4.7.0 try again in {asked}"))
        deliver_all(courier)

        until = pause_of(store).until
        assert until is not None
        assert given - 1 < until - clock.time() <= 1.2 * given
        wait_out(clock, store)


# --- one try at a time ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("action", [DOWN, DROP, HANG])
def test_one_worker_tries_it_at_a_time(
    store: Store, open_courier: OpenCourier, sink: Sink, backup: Sink, clock: Clock, action: str
) -> None:
    """However many look at the same moment, on however many machines, and however long the try takes."""
    config = {"MAILER_COMMAND_TIMEOUT": SHORT}
    couriers = [open_courier(*two(sink, backup, **config)) for _ in range(3)]
    sink.faults.add(Fault("connect", action, times=None))
    queue(store, "ada@example.com")
    deliver_all(couriers[0])
    for tries in (2, 3):
        wait_out(clock, store)
        queue_many(store, 40)

        with ThreadPoolExecutor(9) as threads:
            list(threads.map(deliver_all, couriers * 3))

        assert sink.connections == tries
        assert pause_of(store).failures == tries
    assert {(row["status"], row["attempts"]) for row in table(store).values()} == {("sent", 1)}
    assert len(backup.messages) == 81


def test_workers_that_fail_together_count_as_one(store: Store, open_courier: OpenCourier, sink: Sink) -> None:
    """Each had a slice of its own when it went down."""
    sink.faults.add(Fault("connect", HANG, times=None))
    couriers = [open_courier(entry(sink, "first"), MAILER_SLICE_SECONDS=0.1) for _ in range(4)]
    queue_many(store, 40)

    with ThreadPoolExecutor(4) as threads:
        done = threads.map(deliver_all, couriers)
        wait_until(lambda: sink.connections == 4)
        sink.stop()
        list(done)

    assert pause_of(store).failures == 1
    assert {(row["status"], row["attempts"]) for row in table(store).values()} == {("queued", 0)}


def test_a_worker_dies_while_it_tries(store: Store, open_courier: OpenCourier, sink: Sink, clock: Clock) -> None:
    """Somebody else may, a while later."""
    sink.faults.add(Fault("connect", DOWN))
    courier = open_courier(entry(sink, "first"))
    queue(store, "ada@example.com")
    deliver_all(courier)
    wait_out(clock, store)
    now = clock.time()
    assert store.take_probe("first", now=now, until=now + 80)  # and is not heard of again

    deliver_all(courier)
    assert sink.messages == []

    wait_out(clock, store)
    deliver_all(courier)
    assert (len(sink.messages), store.relay_pauses()) == (1, {})


def test_a_mail_that_comes_to_nothing_is_no_try(
    store: Store, open_courier: OpenCourier, sink: Sink, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The relay was not asked, so the next mail may ask it."""
    sink.faults.add(Fault("connect", DOWN))
    courier = open_courier(entry(sink, "first"))
    queue(store, "ada@example.com", lane=Lane.BULK)
    deliver_all(courier)
    broken = queue(store, "broken@example.com", lane=Lane.CRITICAL)
    monkeypatch.setattr(round_, "compose", lambda message, signer: compose(message) if message.id != broken else message.nonsense)

    wait_out(clock, store)
    deliver_all(courier)

    assert copy_of(store, broken).status is Status.FAILED
    assert received(sink) == ["ada@example.com"]
    assert store.relay_pauses() == {}


def test_no_mail_that_is_for_others_uses_up_the_try(
    store: Store, open_courier: OpenCourier, sink: Sink, backup: Sink, clock: Clock
) -> None:
    """Else a relay for few mails would never be found again beside one that is busy."""
    special = {"domains": ["example.net"]}
    sink.faults.add(Fault("connect", DOWN))
    courier = open_courier(
        entry(sink, "first", **special), entry(backup, "second", domains=["example.com"]), entry(backup, "rest")
    )
    queue(store, "ada@example.net")
    deliver_all(courier)
    wait_out(clock, store)
    queue_many(store, 30)
    deliver_all(courier)
    assert sink.messages == []
    assert pause_of(store).until is not None
    assert pause_of(store).until < clock.time()  # type: ignore[operator]

    queue(store, "bob@example.net")
    deliver_all(courier)

    assert received(sink) == ["bob@example.net"]
    assert store.relay_pauses() == {}


def test_it_is_tried_with_the_least_urgent_mail(
    store: Store, open_courier: OpenCourier, sink: Sink, backup: Sink, clock: Clock
) -> None:
    """A login code does not wait for the time-out of a relay that is known to be down."""
    sink.faults.add(Fault("connect", DOWN, times=2))
    courier = open_courier(*two(sink, backup))
    queue(store, "ada@example.com")
    deliver_all(courier)
    wait_out(clock, store)
    codes = queue_many(store, 3, lane=Lane.CRITICAL)
    letter = queue(store, "news@example.com", lane=Lane.BULK)

    deliver_all(courier)

    assert sink.connections == 2
    assert [len(copy_of(store, mail_id).history) for mail_id in [*codes, letter]] == [0, 0, 0, 1]


def test_it_is_tried_when_the_others_have_gone_out(
    store: Store, open_courier: OpenCourier, sink: Sink, backup: Sink, answering: Callable[..., RawServer], clock: Clock
) -> None:
    """Such a try may last as long as its time-outs, and no mail of the slice waits for it."""
    gone_out: list[int] = []

    def greeting() -> Iterator[bytes]:
        gone_out.append(len(backup.messages))
        yield f"{DOWN}\r\n".encode()

    dead = answering(greeting=greeting())
    courier = open_courier(*two(dead, backup))
    queue(store, "ada@example.com")
    deliver_all(courier)
    dead.replies["greeting"] = greeting()
    wait_out(clock, store)
    queue_many(store, 9)

    deliver_all(courier)

    assert gone_out == [0, 1 + 8]


def test_a_slow_relay_takes_no_time_from_the_next_one(
    store: Store, open_courier: OpenCourier, sink: Sink, backup: Sink, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of each slice each relay gets something done, however long the one before it took."""
    monkeypatch.setattr(clock, "monotonic", lambda: time.monotonic() + 100.0 * len(sink.messages))  # each mail takes it that long
    courier = open_courier(entry(sink, "slow", domains=["example.net"]), entry(backup, "fast"))
    courier._pace.seconds_per_mail = 0.1
    for number in range(5):
        queue(store, f"reader{number}@example.net")
        queue(store, f"reader{number}@example.com")

    courier.deliver_slice()

    assert 0 < len(sink.messages) < 5
    assert len(backup.messages) == 5


# --- what it says -----------------------------------------------------------------------------------------------------


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


def test_a_mistake_is_shouted_once(
    store: Store,
    open_courier: OpenCourier,
    answering: Callable[..., RawServer],
    clock: Clock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """With what to do about it; neither with every mail nor with every try. Another mistake is another shout."""
    server = answering(EHLO=b"250-relay\r\n250 AUTH PLAIN LOGIN\r\n", AUTH=b"535 5.7.8 no\r\n")
    couriers = [open_courier(entry(server, "first", **LOGIN)) for _ in range(2)]
    queue_many(store, 30)
    for _ in range(4):
        for courier in couriers:
            deliver_all(courier)
        wait_out(clock, store)

    [shout] = errors(caplog)
    assert "The relay first can't be used" in shout
    assert "535 5.7.8 no" in shout
    assert "MAIL_USERNAME and MAIL_PASSWORD: the relay refuses this login: correct it." in shout
    assert "wrong" not in shout

    server.replies["EHLO"] = b"250 relay\r\n"
    for _ in range(3):
        deliver_all(couriers[1])
        wait_out(clock, store)
    [_, other] = errors(caplog)
    assert "offers no login that we know" in other
    assert {(row["status"], row["attempts"]) for row in table(store).values()} == {("queued", 0)}


def test_an_unknown_host_is_shouted_once(
    store: Store,
    open_courier: OpenCourier,
    sink: Sink,
    clock: Clock,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With the name that the DNS does not know."""

    def nobody(*_: object) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", nobody)
    courier = open_courier(entry(sink, "first", MAIL_SERVER="relay.exmaple.com"))
    queue_many(store, 5)
    for _ in range(3):
        deliver_all(courier)
        wait_out(clock, store)

    [shout] = errors(caplog)
    assert "MAIL_SERVER: the DNS does not know 'relay.exmaple.com'" in shout


def test_a_mistake_after_an_outage_is_shouted(
    store: Store,
    open_courier: OpenCourier,
    answering: Callable[..., RawServer],
    clock: Clock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The relay came back with other passwords: what was shouted about the outage does not tell that."""
    server = answering(greeting=b"421 4.3.2 down\r\n")
    courier = open_courier(entry(server, "first", **LOGIN))
    queue(store, "ada@example.com")
    deliver_all(courier)
    wait_out(clock, store)
    server.replies.update(greeting=b"220 relay\r\n", EHLO=b"250-relay\r\n250 AUTH PLAIN\r\n", AUTH=b"535 5.7.8 no\r\n")
    deliver_all(courier)

    outage, mistake = errors(caplog)
    assert "MAIL_PASSWORD" not in outage
    assert "MAIL_PASSWORD" in mistake


# --- rules ------------------------------------------------------------------------------------------------------------


def test_each_relay_gets_its_mail(store: Store, open_courier: OpenCourier, sink: Sink) -> None:
    """By who says it, to whom, and how urgent it is; what is for none of them goes over the relay without rules."""
    names = ("boss", "corp", "bulk", "rest")
    rules: list[dict[str, Any]] = [{"senders": ["boss@example.com"]}, {"domains": ["corp.example"]}, {"lanes": ["bulk"]}, {}]
    courier = open_courier(
        *(entry(sink, name, preference=at, **rule) for at, (name, rule) in enumerate(zip(names, rules, strict=True)))
    )
    boss = a_message(sender=Address("boss@example.com"))
    queue(store, "a@mx.corp.example", message=boss, lane=Lane.BULK)
    queue(store, "b@mx.corp.example", lane=Lane.BULK)
    queue(store, "c@example.org", lane=Lane.BULK)
    queue(store, "d@example.org")

    deliver_all(courier)

    assert {row["recipient"][0]: row["relay"] for row in table(store).values()} == dict(zip("abcd", names, strict=True))


def test_relays_share_by_weight(store: Store, open_courier: OpenCourier, sink: Sink, backup: Sink) -> None:
    """About three to one, and each mail goes over one of them."""
    queue_many(store, 200)

    deliver_all(open_courier(entry(sink, "heavy", weight=3), entry(backup, "light", weight=1)))

    assert len({*received(sink), *received(backup)}) == len(sink.messages) + len(backup.messages) == 200
    assert 20 <= len(backup.messages) <= 85


def test_what_only_a_paused_relay_takes_waits_for_it(
    store: Store, open_courier: OpenCourier, sink: Sink, backup: Sink, clock: Clock
) -> None:
    """Until the pause ends, out of the way of what others take; and it costs no attempt."""
    sink.faults.add(Fault("connect", DOWN))
    courier = open_courier(entry(sink, "first"), entry(backup, "second", domains=["example.net"]))
    for number in range(30):
        queue(store, f"reader{number}@example.com")
        queue(store, f"reader{number}@example.net")

    deliver_all(courier)

    until = pause_of(store).until
    waiting = [row for row in table(store).values() if row["status"] == "queued"]
    assert len(backup.messages) == len(waiting) == 30
    assert {(row["due_at"], row["attempts"]) for row in waiting} == {(until, 0)}

    wait_out(clock, store)
    deliver_all(courier)
    assert (len(sink.messages), len(backup.messages)) == (30, 30)


def test_much_mail_for_a_paused_relay_is_in_nobodys_way(
    store: Store, open_courier: OpenCourier, sink: Sink, backup: Sink, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is moved in heaps, not slice by slice. By sender, which is the rule that takes most to look up."""
    monkeypatch.setattr(room, "_MOVED_AT_ONCE", 100)
    sink.faults.add(Fault("connect", DOWN, times=None))
    courier = open_courier(entry(sink, "first"), entry(backup, "second", senders=["example.net"]))
    queue(store, "ada@example.com")
    deliver_all(courier)
    for number in range(50):
        queue(store, *(f"reader{number}.{copy}@example.com" for copy in range(50)))
    other = queue(store, "bob@example.com", message=a_message(sender=Address("eve@news.example.net")))
    slices = 0
    while copy_of(store, other).status is not Status.SENT:
        courier.deliver_slice()
        slices += 1

    assert slices <= 5
    assert sink.connections == 1


def test_lanes_of_a_paused_relay_are_left_alone(
    store: Store, open_courier: OpenCourier, sink: Sink, backup: Sink, clock: Clock
) -> None:
    """They are not even claimed by those who could do nothing for them."""
    sink.faults.add(Fault("connect", DOWN, times=None))
    courier = open_courier(entry(sink, "first"), entry(backup, "second", lanes=["bulk"]))
    queue(store, "ada@example.com", lane=Lane.CRITICAL)
    deliver_all(courier)
    queue_many(store, 60, lane=Lane.CRITICAL)
    waiting = table(store)
    queue_many(store, 5, lane=Lane.BULK)

    courier.deliver_slice()

    assert len(backup.messages) == 5
    assert {number: row for number, row in table(store).items() if number in waiting} == waiting
