"""The breaker of a relay that fails: how long it rests, who probes it, what is logged."""

import logging
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from celery.exceptions import SoftTimeLimitExceeded

from mailer.delivery import preparing, share
from mailer.errors import StoreUnavailable
from mailer.message import Lane, Status
from mailer.mime import compose
from mailer.smtpd.faults import DROP, HANG, Fault, Stage
from mailer.store import Store
from tests.mails import table
from tests.services.dispatchers import (
    Clock,
    OpenDispatcher,
    copy_of,
    deliver_all,
    entry,
    pause_of,
    queue,
    queue_many,
    received,
    states,
    two,
    wait_out,
)
from tests.services.relay import SHORT, RawServer
from tests.services.script import HOLD, ScriptedRelay
from tests.services.sink import Sink
from tests.services.waiting import wait_until

REST = 10.0
DOWN = "421 4.3.2 closed for the night"
LOGIN = {"MAIL_USERNAME": "ada", "MAIL_PASSWORD": "wrong"}


# --- a relay rests and comes back ---------------------------------------------------------------


def test_it_comes_back(
    store: Store,
    open_dispatcher: OpenDispatcher,
    sink: Sink,
    backup: Sink,
    clock: Clock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A relay that answers again loses its pause for all workers, and gets mail as before."""
    sink.faults.add(Fault("connect", DOWN))
    one, other = (open_dispatcher(*two(sink, backup)) for _ in range(2))
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


def test_the_database_goes_away_before_a_relay_is_tried(
    store: Store,
    open_dispatcher: OpenDispatcher,
    sink: Sink,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A mail whose probe fails for lack of a database goes back without an attempt."""
    sink.faults.add(Fault("connect", DOWN))
    dispatcher = open_dispatcher(entry(sink, "first"))
    queue(store, "ada@example.com")
    deliver_all(dispatcher)
    wait_out(clock, store)

    def away(*_given: object, **_values: object) -> bool:
        raise StoreUnavailable("restarting")

    monkeypatch.setattr(dispatcher._services.store, "move_probe", away)
    with pytest.raises(StoreUnavailable):
        dispatcher.deliver_batch()

    assert [(row["status"], row["attempts"]) for row in table(store).values()] == [("queued", 0)]


@pytest.mark.parametrize("at", ["first", "second"])
def test_a_batch_ends_in_an_error_before_a_relay_is_tried(
    store: Store,
    open_dispatcher: OpenDispatcher,
    sink: Sink,
    backup: Sink,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    at: str,
) -> None:
    """When a batch fails before its probe of a relay, another worker can probe it at once."""
    sink.faults.add(Fault("connect", DOWN))
    one, other = (open_dispatcher(*two(sink, backup)) for _ in range(2))
    queue_many(store, 2)
    deliver_all(one)
    wait_out(clock, store)
    queue_many(store, 3)

    def may_begin(self: share.Share) -> bool:
        if self._state.name == at:
            raise SoftTimeLimitExceeded
        return True

    with monkeypatch.context() as patch:
        patch.setattr(share.Share, "_may_begin", may_begin)
        with pytest.raises(SoftTimeLimitExceeded):
            one.deliver_batch()
    deliver_all(other)

    assert store.relay_pauses() == {}
    assert set(states(store).values()) == {"sent"}


def test_the_only_relay_comes_back(
    store: Store, open_dispatcher: OpenDispatcher, sink: Sink, clock: Clock
) -> None:
    """One mail probes the only relay, and the others follow at once."""
    sink.faults.add(Fault("connect", DOWN))
    dispatcher = open_dispatcher(entry(sink, "first"))
    queue_many(store, 10)
    deliver_all(dispatcher)

    wait_out(clock, store)
    deliver_all(dispatcher)

    assert {(row["status"], row["attempts"]) for row in table(store).values()} == {("sent", 1)}
    assert len(set(received(sink))) == 10
    assert store.relay_pauses() == {}


def test_it_is_left_alone_longer_each_time(
    store: Store, open_dispatcher: OpenDispatcher, sink: Sink, clock: Clock
) -> None:
    """Each rest is twice the last, up to MAILER_RELAY_REST_LONGEST, at no attempt of a mail."""
    mail_id = queue(store, "ada@example.com")
    sink.faults.add(Fault("connect", DOWN, times=None))
    dispatcher = open_dispatcher(
        entry(sink, "first"), MAILER_RELAY_REST=REST, MAILER_RELAY_REST_LONGEST=100
    )
    rests, since = [], set()
    for _ in range(6):
        deliver_all(dispatcher)
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


def test_it_says_when_to_come_back(
    store: Store, open_dispatcher: OpenDispatcher, sink: Sink, clock: Clock
) -> None:
    """The time that a relay asks for counts if it is longer, up to the longest rest."""
    queue(store, "ada@example.com")
    dispatcher = open_dispatcher(
        entry(sink, "first"), MAILER_RELAY_REST=REST, MAILER_RELAY_REST_LONGEST=300
    )
    for asked, given in (("2 minutes", 120), ("3 seconds", 20), ("2 days", 300)):
        sink.faults.add(Fault("connect", f"421 4.7.0 try again in {asked}"))
        deliver_all(dispatcher)

        until = pause_of(store).until
        assert until is not None
        assert given - 1 < until - clock.time() <= 1.2 * given
        wait_out(clock, store)


def test_a_relay_that_takes_mails_and_says_nothing(
    store: Store, open_dispatcher: OpenDispatcher, sink: Sink, backup: Sink, clock: Clock
) -> None:
    """A relay is paused at the second silence in a row: the first may be the mail's own fault."""
    sink.faults.add(Fault("dot", DROP, times=3))
    dispatcher = open_dispatcher(*two(sink, backup))
    queue_many(store, 30)

    deliver_all(dispatcher)
    assert sorted({(row["status"], row["relay"]) for row in table(store).values()}) == [
        ("doubtful", "first"),
        ("sent", "second"),
    ]
    assert len(backup.messages) == 28
    assert "no reply after the end of the mail" in pause_of(store).reason

    wait_out(clock, store)
    queue_many(store, 10)
    deliver_all(dispatcher)
    assert (len(backup.messages), pause_of(store).failures) == (37, 2)

    wait_out(clock, store)
    queue_many(store, 10)
    deliver_all(dispatcher)
    assert store.relay_pauses() == {}
    assert len(sink.messages) + len(backup.messages) == 47


def test_a_mail_that_makes_a_relay_fall_silent(
    store: Store, open_dispatcher: OpenDispatcher, sink: Sink
) -> None:
    """Mail that silences a relay is in doubt alone, and the relay stays in use for others."""
    dispatcher = open_dispatcher(entry(sink, "first"))
    sink.faults.add(Fault("dot", DROP, recipient="poison@example.com", times=None))
    for number in range(5):
        queue(store, "poison@example.com")
        queue(store, f"reader{number}@example.com")

    deliver_all(dispatcher)

    assert len(sink.messages) == 5
    assert store.relay_pauses() == {}


# --- a relay that hangs up on every mail --------------------------------------------------------

CUTS = pytest.mark.parametrize("stage", ["rcpt", "data"])


@CUTS
def test_a_relay_that_hangs_up_on_every_mail(
    store: Store, open_dispatcher: OpenDispatcher, sink: Sink, backup: Sink, stage: Stage
) -> None:
    """A relay that hangs up on two mails in a row is paused, and only the first mail pays."""
    sink.faults.add(Fault(stage, DROP, times=None))
    dispatcher = open_dispatcher(*two(sink, backup))
    queue_many(store, 30)

    deliver_all(dispatcher)

    assert len(backup.messages) == 29
    assert "connection lost" in pause_of(store).reason
    assert sorted((row["status"], row["attempts"]) for row in table(store).values()) == [
        ("queued", 1)
    ] + 29 * [("sent", 1)]


@CUTS
def test_its_mail_waits(
    store: Store, open_dispatcher: OpenDispatcher, sink: Sink, clock: Clock, stage: Stage
) -> None:
    """Mail waits for its only relay however long; probes cost no mail an attempt."""
    sink.faults.add(Fault(stage, DROP, times=None))
    dispatcher = open_dispatcher(
        entry(sink, "first"), MAILER_RETRY_ATTEMPTS=3, MAILER_RETRY_FIRST=1, MAILER_RETRY_LONGEST=1
    )
    queue_many(store, 3)
    deliver_all(dispatcher)
    for _ in range(20):
        wait_out(clock, store)
        deliver_all(dispatcher)
    assert pause_of(store).failures == 21
    assert sorted((row["status"], row["attempts"]) for row in table(store).values()) == [
        ("queued", 0)
    ] * 2 + [("queued", 1)]

    sink.faults.clear()
    wait_out(clock, store)
    deliver_all(dispatcher)

    assert {row["status"] for row in table(store).values()} == {"sent"}
    assert store.relay_pauses() == {}


def test_a_mail_that_it_can_not_bear_does_not_keep_it_paused(
    store: Store, open_dispatcher: OpenDispatcher, sink: Sink, clock: Clock
) -> None:
    """The next probe takes another mail, so a mail that breaks the relay can't keep it paused."""
    sink.faults.add(Fault("rcpt", DROP, recipient="poison@example.com", times=None))
    sink.faults.add(Fault("connect", DOWN))
    dispatcher = open_dispatcher(entry(sink, "first"), MAILER_RETRY_ATTEMPTS=1)
    queue(store, "ada@example.com")
    poison = queue(store, "poison@example.com", lane=Lane.BULK)
    deliver_all(dispatcher)

    for _ in range(2):
        wait_out(clock, store)
        deliver_all(dispatcher)

    assert received(sink) == ["ada@example.com"]
    assert store.relay_pauses() == {}
    assert copy_of(store, poison).status is Status.FAILED


def test_the_same_mail_again_is_no_proof(
    store: Store, open_dispatcher: OpenDispatcher, sink: Sink, clock: Clock
) -> None:
    """A relay that fails with the same mail each time is not paused."""
    sink.faults.add(Fault("rcpt", DROP, times=None))
    dispatcher = open_dispatcher(entry(sink, "first"), MAILER_RETRY_FIRST=1, MAILER_RETRY_LONGEST=1)
    mail_id = queue(store, "ada@example.com")
    for _ in range(4):
        deliver_all(dispatcher)
        clock.ahead += 2

    assert store.relay_pauses() == {}
    assert copy_of(store, mail_id).attempts == 4


# --- one probe at a time ------------------------------------------------------------------------


@pytest.mark.parametrize("action", [DOWN, DROP, HANG])
def test_one_worker_tries_it_at_a_time(
    store: Store,
    open_dispatcher: OpenDispatcher,
    sink: Sink,
    backup: Sink,
    clock: Clock,
    action: str,
) -> None:
    """One worker at a time probes a relay, however many want to and however long it takes."""
    config = {"MAILER_COMMAND_TIMEOUT": SHORT}
    dispatchers = [open_dispatcher(*two(sink, backup, **config)) for _ in range(3)]
    sink.faults.add(Fault("connect", action, times=None))
    queue(store, "ada@example.com")
    deliver_all(dispatchers[0])
    for tries in (2, 3):
        wait_out(clock, store)
        queue_many(store, 40)

        with ThreadPoolExecutor(9) as threads:
            list(threads.map(deliver_all, dispatchers * 3))

        assert sink.connections == tries
        assert pause_of(store).failures == tries
    assert {(row["status"], row["attempts"]) for row in table(store).values()} == {("sent", 1)}
    assert len(backup.messages) == 81


def test_a_try_that_has_to_wait_begins_anew(
    store: Store, open_dispatcher: OpenDispatcher, sink: Sink, backup: Sink, clock: Clock
) -> None:
    """A probe waits for mail over other relays, and is left to a worker that probes meanwhile."""
    sink.faults.add(Fault("connect", DOWN))
    relays = entry(sink, "first"), entry(backup, "second", domains=["example.com"])
    one, other = (open_dispatcher(*relays) for _ in range(2))
    queue(store, "ada@example.net")
    deliver_all(one)
    wait_out(clock, store)
    queue(store, "bob@example.com")
    backup.faults.add(Fault("dot", HANG))

    with ThreadPoolExecutor(1) as threads:
        slow = threads.submit(one.deliver_batch)
        wait_until(lambda: backup.connections == 1)
        clock.ahead += one._states[0].settings.longest_opening + 2 * REST
        queue(store, "eve@example.net", due_at=clock.time())
        deliver_all(other)
        backup.stop()
        slow.result()

    assert sink.connections == 2
    assert received(sink) == ["eve@example.net"]
    deliver_all(one)
    assert received(sink) == ["eve@example.net", "ada@example.net"]


def test_its_mail_does_not_wait_for_the_longest_try(
    store: Store, open_dispatcher: OpenDispatcher, sink: Sink, clock: Clock
) -> None:
    """Mail found during a probe is due soon, not only after the longest probe."""
    with ScriptedRelay() as first:
        first.faults["", "greeting"] = [DOWN, HOLD]
        relays = entry(first, "first"), entry(sink, "second", senders=["example.net"])
        one, other = (
            open_dispatcher(*relays, MAILER_COMMAND_TIMEOUT=60, MAILER_RELAY_REST=REST)
            for _ in range(2)
        )
        queue(store, "ada@example.com")
        deliver_all(one)
        wait_out(clock, store)
        queue_many(store, 60)
        with ThreadPoolExecutor(1) as threads:
            tried = threads.submit(deliver_all, one)
            try:
                wait_until(lambda: first.held)
                deliver_all(other)
            finally:
                first.go_on()
            tried.result()
        clock.ahead += 1.2 * REST
        deliver_all(other)

    assert set(states(store).values()) == {"sent"}


def test_workers_that_fail_together_count_as_one(
    store: Store, open_dispatcher: OpenDispatcher, sink: Sink
) -> None:
    """Workers that fail at the same time count as one failure of the relay."""
    sink.faults.add(Fault("connect", HANG, times=None))
    dispatchers = [
        open_dispatcher(entry(sink, "first"), MAILER_BATCH_SECONDS=0.1) for _ in range(4)
    ]
    queue_many(store, 40)

    with ThreadPoolExecutor(4) as threads:
        done = threads.map(deliver_all, dispatchers)
        wait_until(lambda: sink.connections == 4)
        sink.stop()
        list(done)

    assert pause_of(store).failures == 1
    assert {(row["status"], row["attempts"]) for row in table(store).values()} == {("queued", 0)}


def test_a_worker_dies_while_it_tries(
    store: Store, open_dispatcher: OpenDispatcher, sink: Sink, clock: Clock
) -> None:
    """When a worker dies during its probe, another one probes the relay a while later."""
    sink.faults.add(Fault("connect", DOWN))
    dispatcher = open_dispatcher(entry(sink, "first"))
    queue(store, "ada@example.com")
    deliver_all(dispatcher)
    wait_out(clock, store)
    now = clock.time()
    assert store.take_probe("first", now=now, until=now + 80)  # by a worker that then dies

    deliver_all(dispatcher)
    assert sink.messages == []

    wait_out(clock, store)
    deliver_all(dispatcher)
    assert (len(sink.messages), store.relay_pauses()) == (1, {})


def test_a_mail_that_comes_to_nothing_is_no_try(
    store: Store,
    open_dispatcher: OpenDispatcher,
    sink: Sink,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A mail that fails before it reaches the relay is no probe, so the next mail probes."""
    sink.faults.add(Fault("connect", DOWN))
    dispatcher = open_dispatcher(entry(sink, "first"))
    queue(store, "ada@example.com", lane=Lane.BULK)
    deliver_all(dispatcher)
    broken = queue(store, "broken@example.com", lane=Lane.CRITICAL)
    monkeypatch.setattr(
        preparing,
        "compose",
        lambda message, signer: compose(message) if message.id != broken else message.nonsense,
    )

    wait_out(clock, store)
    deliver_all(dispatcher)

    assert copy_of(store, broken).status is Status.FAILED
    assert received(sink) == ["ada@example.com"]
    assert store.relay_pauses() == {}


def test_no_mail_that_is_for_others_uses_up_the_try(
    store: Store, open_dispatcher: OpenDispatcher, sink: Sink, backup: Sink, clock: Clock
) -> None:
    """Mail for other relays does not use up the probe of a relay that gets few mails."""
    special = {"domains": ["example.net"]}
    sink.faults.add(Fault("connect", DOWN))
    dispatcher = open_dispatcher(
        entry(sink, "first", **special),
        entry(backup, "second", domains=["example.com"]),
        entry(backup, "rest"),
    )
    queue(store, "ada@example.net")
    deliver_all(dispatcher)
    wait_out(clock, store)
    queue_many(store, 30)
    deliver_all(dispatcher)
    assert sink.messages == []
    assert pause_of(store).until is not None
    assert pause_of(store).until < clock.time()  # type: ignore[operator]

    queue(store, "bob@example.net")
    deliver_all(dispatcher)

    assert received(sink) == ["bob@example.net"]
    assert store.relay_pauses() == {}


def test_it_is_tried_with_the_least_urgent_mail(
    store: Store, open_dispatcher: OpenDispatcher, sink: Sink, backup: Sink, clock: Clock
) -> None:
    """The least urgent mail probes a relay, so that no login code waits for a time-out."""
    sink.faults.add(Fault("connect", DOWN, times=2))
    dispatcher = open_dispatcher(*two(sink, backup))
    queue(store, "ada@example.com")
    deliver_all(dispatcher)
    wait_out(clock, store)
    codes = queue_many(store, 3, lane=Lane.CRITICAL)
    letter = queue(store, "news@example.com", lane=Lane.BULK)

    deliver_all(dispatcher)

    assert sink.connections == 2
    assert [len(copy_of(store, mail_id).history) for mail_id in [*codes, letter]] == [0, 0, 0, 1]


def test_it_is_tried_when_the_others_have_gone_out(
    store: Store,
    open_dispatcher: OpenDispatcher,
    sink: Sink,
    backup: Sink,
    answering: Callable[..., RawServer],
    clock: Clock,
) -> None:
    """The probe comes after the other mail of its batch, which waits for none of its time-outs."""
    gone_out: list[int] = []

    def greeting() -> Iterator[bytes]:
        gone_out.append(len(backup.messages))
        yield f"{DOWN}\r\n".encode()

    dead = answering(greeting=greeting())
    dispatcher = open_dispatcher(*two(dead, backup))
    queue(store, "ada@example.com")
    deliver_all(dispatcher)
    dead.replies["greeting"] = greeting()
    wait_out(clock, store)
    queue_many(store, 9)

    deliver_all(dispatcher)

    assert gone_out == [0, 1 + 8]


# --- log lines ----------------------------------------------------------------------------------


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


def test_a_mistake_is_shouted_once(
    store: Store,
    open_dispatcher: OpenDispatcher,
    answering: Callable[..., RawServer],
    clock: Clock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Each mistake in the settings is logged once with its remedy, not for every mail or probe."""
    server = answering(EHLO=b"250-relay\r\n250 AUTH PLAIN LOGIN\r\n", AUTH=b"535 5.7.8 no\r\n")
    dispatchers = [open_dispatcher(entry(server, "first", **LOGIN)) for _ in range(2)]
    queue_many(store, 30)
    for _ in range(4):
        for dispatcher in dispatchers:
            deliver_all(dispatcher)
        wait_out(clock, store)

    [shout] = errors(caplog)
    assert "The relay first can't be used" in shout
    assert "535 5.7.8 no" in shout
    assert "MAIL_USERNAME and MAIL_PASSWORD: the relay refuses this login: correct it." in shout
    assert "wrong" not in shout

    server.replies["EHLO"] = b"250 relay\r\n"
    for _ in range(3):
        deliver_all(dispatchers[1])
        wait_out(clock, store)
    [_, other] = errors(caplog)
    assert "offers no login that we know" in other
    assert {(row["status"], row["attempts"]) for row in table(store).values()} == {("queued", 0)}


def test_an_unknown_host_is_shouted_once(
    store: Store,
    open_dispatcher: OpenDispatcher,
    sink: Sink,
    clock: Clock,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A host that the DNS does not know is logged once, by name."""

    def nobody(*_: object) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", nobody)
    dispatcher = open_dispatcher(entry(sink, "first", MAIL_SERVER="relay.exmaple.com"))
    queue_many(store, 5)
    for _ in range(3):
        deliver_all(dispatcher)
        wait_out(clock, store)

    [shout] = errors(caplog)
    assert "MAIL_SERVER: the DNS does not know 'relay.exmaple.com'" in shout


def test_a_mistake_after_an_outage_is_shouted(
    store: Store,
    open_dispatcher: OpenDispatcher,
    answering: Callable[..., RawServer],
    clock: Clock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A mistake in the settings is logged even if an outage of the relay was logged before."""
    server = answering(greeting=b"421 4.3.2 down\r\n")
    dispatcher = open_dispatcher(entry(server, "first", **LOGIN))
    queue(store, "ada@example.com")
    deliver_all(dispatcher)
    wait_out(clock, store)
    server.replies.update(
        greeting=b"220 relay\r\n", EHLO=b"250-relay\r\n250 AUTH PLAIN\r\n", AUTH=b"535 5.7.8 no\r\n"
    )
    deliver_all(dispatcher)

    outage, mistake = errors(caplog)
    assert "MAIL_PASSWORD" not in outage
    assert "MAIL_PASSWORD" in mistake
