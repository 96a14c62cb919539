"""Outcomes after any fault: what the relay took is recorded as sent, and is sent only once."""

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mailer.message import Outcome, Phase, Verdict
from mailer.mime import WireMessage
from mailer.smtp import Relay
from tests.services.relay import SHORT, make_letter, make_relay, supply
from tests.services.script import CLOSE, GARBAGE, OF_A_MAIL, RESET, SILENCE, Point, ScriptedRelay

MakeRelay = Callable[..., Relay]

CLOSING, LATER, NEVER = "421 4.3.2 closing", "451 4.3.0 later", "554 5.7.1 never"
ENDS = [CLOSE, RESET, SILENCE, GARBAGE]
LARGE = "all work and no play\n" * 500_000  # more than the buffers of any kernel hold

SENT, DEFERRED, REFUSED = Verdict.SENT, Verdict.DEFERRED, Verdict.REFUSED
UNREACHED, DOUBTFUL = Verdict.UNREACHED, Verdict.DOUBTFUL

one_at_a_time = pytest.mark.parametrize(
    "offers", [(), ("PIPELINING",)], ids=["plain", "pipelining"]
)
in_both_ways = pytest.mark.parametrize("holds_back", [False, True], ids=["at once", "together"])


def letter_of(number: int, text: str = "Hello\n") -> WireMessage:
    return make_letter(envelope_from=f"m{number}@example.com", text=text)


def relay_of(server: ScriptedRelay, **config: Any) -> Relay:
    return make_relay(server.host, server.port, **config)


def deliver(relay: Relay, letters: list[WireMessage | None]) -> dict[str, Outcome]:
    """Transmit all letters, and retry unreached and unbegun ones, as a dispatcher does."""
    outcomes: dict[str, Outcome] = {}
    waiting = deque(letters)
    taken: deque[WireMessage] = deque()

    def mails() -> Iterator[WireMessage | None]:
        while waiting:
            letter = waiting.popleft()
            if letter is not None:
                taken.append(letter)
            yield letter

    for _ in range(100):
        with relay.connection() as connection:
            for outcome in connection.exchange(supply(mails())):
                letter = taken.popleft()
                if outcome.verdict is UNREACHED:
                    taken.appendleft(letter)
                else:
                    outcomes[letter.envelope_from] = outcome
        waiting.extendleft(reversed(taken))
        taken.clear()
        if not waiting:
            return outcomes
    raise AssertionError(f"there is no end of it: {waiting}")


# --- one fault, as often as anybody tries -------------------------------------------------------


def first_of(server: ScriptedRelay, letter: WireMessage, **config: Any) -> Outcome:
    relay = relay_of(server, **config)
    with relay.connection() as connection:
        outcome = connection.send(letter)
    relay.hang_up()
    return outcome


@one_at_a_time
@in_both_ways
@pytest.mark.parametrize(
    ("point", "phase", "closing", "end"),
    [
        ("greeting", Phase.CONNECT, UNREACHED, UNREACHED),
        ("ehlo", Phase.CONNECT, UNREACHED, UNREACHED),
        ("mail", Phase.MAIL, UNREACHED, UNREACHED),
        ("rcpt", Phase.RCPT, DEFERRED, DEFERRED),
        ("data", Phase.DATA, DEFERRED, DEFERRED),
        ("dot", Phase.DOT, DEFERRED, DOUBTFUL),
    ],
)
@pytest.mark.parametrize("action", [CLOSING, LATER, NEVER, *ENDS])
def test_a_fault_that_stays(
    offers: tuple[str, ...],
    holds_back: bool,
    point: Point,
    phase: Phase,
    closing: Verdict,
    end: Verdict,
    action: str,
) -> None:
    """An outcome has the phase of the failing command, even if several were sent at once."""
    verdict = {CLOSING: closing, LATER: DEFERRED, NEVER: REFUSED}.get(action, end)
    if phase is Phase.CONNECT:
        verdict = UNREACHED
    with ScriptedRelay(*offers, holds_back=holds_back) as server:
        server.always("" if phase is Phase.CONNECT else "m1@example.com", point, action)
        timeouts = (
            dict.fromkeys(["MAILER_COMMAND_TIMEOUT", "MAILER_REPLY_TIMEOUT"], SHORT)
            if action == SILENCE
            else {}
        )

        outcome = first_of(server, letter_of(1), **timeouts)

        assert (outcome.verdict, outcome.phase) == (verdict, phase)
        assert server.acknowledged == []


@one_at_a_time
@pytest.mark.parametrize(
    ("action", "verdict"),
    [(CLOSING, DEFERRED), (LATER, DEFERRED), (NEVER, REFUSED), *((end, DEFERRED) for end in ENDS)],
)
def test_in_the_middle_of_a_mail(offers: tuple[str, ...], action: str, verdict: Verdict) -> None:
    """A fault before the last byte leaves no doubt, and the relay's reply is kept if it has one."""
    with ScriptedRelay(*offers) as server:
        server.always("m1@example.com", "body", action)

        outcome = first_of(server, letter_of(1, LARGE), MAILER_DATA_TIMEOUT=SHORT)

        assert (outcome.verdict, outcome.phase) == (verdict, Phase.DATA)
        assert (outcome.reply == action) is action[0].isdigit()


# --- one fault, once, between mails that go well ------------------------------------------------


@in_both_ways
@pytest.mark.parametrize("point", ["mail", "rcpt", "data"])
@pytest.mark.parametrize("action", [CLOSING, *ENDS])
def test_a_relay_that_ends_the_connection_before_a_mail_has_begun(
    holds_back: bool, point: Point, action: str
) -> None:
    """A connection that ends before a mail's first byte is replaced, and all mails are sent."""
    with ScriptedRelay("PIPELINING", holds_back=holds_back) as server:
        server.faults["m2@example.com", point] = [action]
        relay = relay_of(server, **({"MAILER_COMMAND_TIMEOUT": SHORT} if action == SILENCE else {}))

        with relay.connection() as connection:
            outcomes = [*connection.exchange(supply([letter_of(number) for number in range(1, 5)]))]
        relay.hang_up()

        assert [outcome.verdict for outcome in outcomes] == [SENT] * 4
        assert server.acknowledged == [f"m{number}@example.com" for number in range(1, 5)]
        assert server.connections == 2


@one_at_a_time
@in_both_ways
@pytest.mark.parametrize("action", [CLOSING, CLOSE, RESET, GARBAGE])
def test_a_relay_that_hangs_up_after_each_mail(
    offers: tuple[str, ...], holds_back: bool, action: str
) -> None:
    """If the relay hangs up after a mail, the pipelined envelope is sent again elsewhere."""
    with ScriptedRelay(*offers, holds_back=holds_back) as server:
        for number in range(1, 5):
            server.faults[f"m{number}@example.com", "after"] = [action]
        relay = relay_of(server)

        with relay.connection() as connection:
            outcomes = [*connection.exchange(supply([letter_of(number) for number in range(1, 5)]))]
        relay.hang_up()

        assert [outcome.verdict for outcome in outcomes] == [SENT] * 4
        assert server.acknowledged == [f"m{number}@example.com" for number in range(1, 5)]
        assert server.connections == 4


# --- any faults ---------------------------------------------------------------------------------


MAILS = 4
faults = st.dictionaries(
    st.tuples(st.integers(1, MAILS), st.sampled_from(OF_A_MAIL)),
    st.lists(
        st.sampled_from([CLOSING, LATER, NEVER, CLOSE, RESET, GARBAGE]), min_size=1, max_size=2
    ),
    max_size=5,
)


@given(
    faults=faults,
    offers=st.sampled_from([(), ("PIPELINING",), ("PIPELINING", "8BITMIME", "SIZE 1000000")]),
    holds_back=st.booleans(),
    pauses=st.sets(st.integers(0, MAILS)),
    most=st.sampled_from([None, 1, 2, 3]),
)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_faults(
    faults: dict[tuple[int, Point], list[str]],
    offers: tuple[str, ...],
    holds_back: bool,
    pauses: set[int],
    most: int | None,
) -> None:
    """After any faults, each verdict matches what the relay took, and no mail arrives twice."""
    letters: list[WireMessage | None] = [letter_of(number) for number in range(1, MAILS + 1)]
    for pause in sorted(pauses, reverse=True):
        letters.insert(pause, None)
    with ScriptedRelay(*offers, holds_back=holds_back) as server:
        for (number, point), actions in faults.items():
            server.faults[f"m{number}@example.com", point] = [*actions]
        relay = relay_of(server, **({"MAIL_MAX_EMAILS": most} if most else {}))

        outcomes = deliver(relay, letters)
        relay.hang_up()

        received = server.acknowledged + server.unanswered
        assert len(received) == len(set(received))
        assert {sender for sender, outcome in outcomes.items() if outcome.verdict is SENT} == set(
            server.acknowledged
        )
        in_doubt = {sender for sender, outcome in outcomes.items() if outcome.verdict is DOUBTFUL}
        # Of a small mail that is cut short, all bytes are on the way before that is known.
        cut_short = {f"m{number}@example.com" for number, point in faults if point == "body"}
        assert set(server.unanswered) <= in_doubt <= set(server.unanswered) | cut_short
