"""Pipelining: how few round trips a mail takes, and when the next mail is taken."""

from collections.abc import Iterable, Iterator
from typing import Any

import pytest

from mailer.errors import StoreUnavailable
from mailer.message import Verdict
from mailer.mime import WireMessage
from mailer.smtp import Relay
from tests.services.relay import make_letter, make_relay, supply
from tests.services.script import ScriptedRelay

NO_SUCH_USER = "550 5.1.1 no such user"


def letters(count: int) -> list[WireMessage]:
    return [make_letter(envelope_from=f"m{number}@example.com") for number in range(1, count + 1)]


def relay_of(server: ScriptedRelay, **config: Any) -> Relay:
    return make_relay(server.host, server.port, **config)


def exchange(
    server: ScriptedRelay, mails: Iterable[WireMessage | None], **config: Any
) -> list[Verdict]:
    relay = relay_of(server, **config)
    with relay.connection() as connection:
        verdicts = [outcome.verdict for outcome in connection.exchange(supply(mails))]
    relay.hang_up()
    return verdicts


# --- round trips --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offers", "alone", "each"),
    [((), False, 4), (("PIPELINING",), True, 2), (("PIPELINING",), False, 1)],
    ids=["plain", "pipelining, nothing rides", "pipelining"],
)
def test_round_trips(offers: tuple[str, ...], alone: bool, each: int) -> None:
    """A mail takes four round trips, two with PIPELINING, and one if another mail follows."""

    def mails(count: int) -> Iterator[WireMessage | None]:
        for letter in letters(count):
            yield letter
            if alone:
                yield None

    waits = {}
    for count in (1, 11):
        with ScriptedRelay(*offers, holds_back=True) as server:
            assert exchange(server, mails(count)) == [Verdict.SENT] * count
        waits[count] = server.round_trips

    assert waits[11] - waits[1] == 10 * each


def test_an_envelope_behind_a_large_mail() -> None:
    """The next envelope can follow a mail that is larger than all buffers."""
    text = "all work and no play\n" * 200_000
    mails = [
        make_letter(envelope_from=f"m{number}@example.com", text=text) for number in range(1, 4)
    ]
    with ScriptedRelay("PIPELINING") as server:
        assert exchange(server, mails) == [Verdict.SENT] * 3
        assert server.acknowledged == [mail.envelope_from for mail in mails]


def test_a_refused_recipient_costs_no_connection_and_the_next_mail_nothing() -> None:
    """After a refused recipient, an empty mail ends the transaction and the connection goes on."""
    with ScriptedRelay("PIPELINING") as server:
        for number in (1, 3):
            server.faults[f"m{number}@example.com", "rcpt"] = [NO_SUCH_USER]

        verdicts = exchange(server, letters(4))

        assert verdicts == [Verdict.REFUSED, Verdict.SENT, Verdict.REFUSED, Verdict.SENT]
        assert server.acknowledged == ["m2@example.com", "m4@example.com"]
        assert server.connections == 1


@pytest.mark.parametrize("offers", [(), ("PIPELINING",)], ids=["plain", "pipelining"])
def test_a_transaction_that_was_left_open_is_reset(offers: tuple[str, ...]) -> None:
    """A transaction that is open after a refusal is reset before the next MAIL."""
    with ScriptedRelay(*offers) as server:
        server.faults["m1@example.com", "rcpt"] = [NO_SUCH_USER]
        server.faults["m1@example.com", "data"] = ["554 5.5.1 no valid recipients"]

        assert exchange(server, letters(2)) == [Verdict.REFUSED, Verdict.SENT]
        assert server.connections == 1


def test_a_relay_that_takes_a_recipient_from_nobody() -> None:
    """The connection is cut where a lone dot would send an empty mail after a refused sender."""
    with ScriptedRelay("PIPELINING") as server:
        server.faults["m1@example.com", "mail"] = ["550 5.1.8 no such sender"]

        assert exchange(server, letters(2)) == [Verdict.REFUSED, Verdict.SENT]
        assert server.acknowledged == ["m2@example.com"]
        assert server.connections == 2


@pytest.mark.parametrize(
    ("point", "reply"),
    [
        ("mail", "250 ok\r\n250 ok"),
        ("rcpt", "250 ok\r\n250 ok"),
        ("data", "354 go on\r\n250 taken"),
        ("mail", "354 go on"),
    ],
)
def test_a_relay_that_is_out_of_step(point: str, reply: str) -> None:
    """After a surplus or wrong reply, no later reply counts as the acknowledgement of a mail."""
    with ScriptedRelay("PIPELINING", holds_back=True) as server:
        server.always("m1@example.com", point, reply)  # type: ignore[arg-type]

        assert exchange(server, letters(1)) == [Verdict.DEFERRED]
        assert server.acknowledged == []


# --- when mails are asked for -------------------------------------------------------------------


def test_a_mail_is_asked_for_when_the_one_before_it_may_be_said() -> None:
    """At most one mail is taken ahead of the one in flight, since a taken mail counts as begun."""
    with ScriptedRelay("PIPELINING", holds_back=True) as server:
        relay = relay_of(server)
        seen = []

        def mails() -> Iterator[WireMessage]:
            for letter in letters(4):
                seen.append((len(outcomes), len(server.acknowledged)))
                yield letter

        outcomes = []
        with relay.connection() as connection:
            for outcome in connection.exchange(supply(mails())):
                outcomes.append(outcome)  # noqa: PERF402 -- `mails` looks at it meanwhile
        relay.hang_up()

    assert seen == [(0, 0), (0, 0), (1, 1), (2, 2)]


def test_the_last_mail_of_a_connection_lets_none_ride() -> None:
    """No envelope follows the last mail that MAIL_MAX_EMAILS allows on a connection."""
    with ScriptedRelay("PIPELINING", holds_back=True) as server:
        assert exchange(server, letters(5), MAIL_MAX_EMAILS=2) == [Verdict.SENT] * 5
        assert server.connections == 3
        assert server.begun == server.acknowledged


def test_nothing_is_asked_for_after_the_end() -> None:
    """No mail is taken after the last one, nor after a mail in doubt."""
    asked = 0

    def mails(count: int) -> Iterator[WireMessage]:
        nonlocal asked
        for letter in letters(count):
            asked += 1
            yield letter
        asked += 100  # it may be asked for the end, once

    with ScriptedRelay("PIPELINING") as server:
        assert exchange(server, mails(2)) == [Verdict.SENT] * 2
        assert asked == 102
        asked = 0
        server.faults["m1@example.com", "dot"] = ["close"]
        assert exchange(server, mails(3)) == [Verdict.DOUBTFUL]
        assert asked == 2


def test_a_mail_that_may_not_go_now_is_asked_for_after_the_one_in_flight() -> None:
    """`None` ends the exchange only if no mail is in flight; else it means "not yet"."""
    first, second, third = letters(3)
    with ScriptedRelay("PIPELINING") as server:
        assert exchange(server, [first, None, second, None, None, third]) == [Verdict.SENT] * 2
        assert server.acknowledged == ["m1@example.com", "m2@example.com"]


def test_a_mail_is_begun_on_two_connections_at_most() -> None:
    """A mail is begun on at most two connections before its relay counts as unreached."""
    with ScriptedRelay("PIPELINING") as server:
        server.faults["m1@example.com", "dot"] = ["421 4.3.2 closing"]
        server.always("m2@example.com", "mail", "close")

        assert exchange(server, letters(3)) == [Verdict.DEFERRED, Verdict.UNREACHED]
        assert server.connections == 2


def test_the_database_fails_while_a_mail_is_in_flight() -> None:
    """If the next mail cannot be loaded, the connection is cut and the relay keeps nothing."""

    def mails() -> Iterator[WireMessage]:
        yield letters(1)[0]
        raise StoreUnavailable("gone")

    with ScriptedRelay("PIPELINING") as server:
        relay = relay_of(server)
        with pytest.raises(StoreUnavailable), relay.connection() as connection:
            list(connection.exchange(supply(mails())))

        assert server.acknowledged == []
        with relay.connection() as connection:
            assert connection.send(letters(1)[0]).verdict is Verdict.SENT
        relay.hang_up()
        assert server.connections == 2


@pytest.mark.parametrize("closes", [True, False])
def test_who_stops_in_the_middle(closes: bool) -> None:
    """After the caller stops early, a connection with a pipelined envelope is not used again."""
    with ScriptedRelay("PIPELINING") as server:
        relay = relay_of(server)
        with relay.connection() as connection:
            outcomes = connection.exchange(supply(letters(3)))
            assert isinstance(outcomes, Iterator)
            assert next(outcomes).verdict is Verdict.SENT
            if closes:
                outcomes.close()  # type: ignore[attr-defined]
        with relay.connection() as connection:
            assert (
                connection.send(make_letter(envelope_from="m9@example.com")).verdict is Verdict.SENT
            )
        relay.hang_up()

        assert server.acknowledged == ["m1@example.com", "m9@example.com"]
        assert server.connections == 2


def test_nobody_gets_mail() -> None:
    """With MAIL_SUPPRESS_SEND all mails count as sent, and no connection is opened."""
    with ScriptedRelay() as server:
        assert exchange(server, letters(3), MAIL_SUPPRESS_SEND=True) == [Verdict.SENT] * 3
        assert server.connections == 0


def test_a_mail_that_can_not_be_said_does_not_ride() -> None:
    """A mail that the relay cannot take is refused alone; the connection goes on."""
    first, second, third = letters(3)
    second.recipient = "jürgen@example.com"  # the relay knows no SMTPUTF8
    with ScriptedRelay("PIPELINING") as server:
        assert exchange(server, [first, second, third]) == [
            Verdict.SENT,
            Verdict.REFUSED,
            Verdict.SENT,
        ]
        assert server.connections == 1


def test_a_relay_that_asks_for_a_pause() -> None:
    """A relay that names a time for the next try is not called again at once."""
    with ScriptedRelay("PIPELINING") as server:
        server.faults["m2@example.com", "mail"] = ["421 4.7.0 slow down, try again in 5 minutes"]
        relay = relay_of(server)
        with relay.connection() as connection:
            outcomes = [*connection.exchange(supply(letters(3)))]

    assert [(outcome.verdict, outcome.retry_after) for outcome in outcomes] == [
        (Verdict.SENT, None),
        (Verdict.UNREACHED, 300.0),
    ]
    assert server.connections == 1
