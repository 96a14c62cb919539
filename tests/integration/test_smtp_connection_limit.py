"""A relay's limit of mails or errors for one connection fails no mail."""

from collections.abc import Callable

import pytest

from mailer.message import Verdict
from tests.integration.test_smtp_pipelining import exchange, letters, relay_of
from tests.services.relay import supply
from tests.services.script import Point, ScriptedRelay

TOO_MANY = "452 4.5.3 Too many recipients: Too many messages sent"
NO_DOMAIN = "451 4.1.8 Sender address rejected: Domain not found"
SENT, DEFERRED, REFUSED = Verdict.SENT, Verdict.DEFERRED, Verdict.REFUSED

both = pytest.mark.parametrize("offers", [(), ("PIPELINING",)], ids=["plain", "pipelining"])


@both
@pytest.mark.parametrize(
    ("point", "reply"),
    [
        ("mail", TOO_MANY),
        ("mail", "451 4.3.0 something is wrong"),
        ("mail", "503 5.5.1 Too many transactions in this session"),
        ("mail", "554 5.7.0 Too many messages per connection"),
        ("mail", "550 Session limit reached, please reconnect"),
        ("rcpt", "452 4.5.3 Too many recipients"),
        ("rcpt", "451 4.7.1 Too many mails in one session"),
        ("data", "451 4.7.1 Too many messages in this session"),
    ],
)
def test_a_refusal_that_a_new_connection_does_not_repeat(
    offers: tuple[str, ...], point: Point, reply: str
) -> None:
    """A mail that hits a connection's limit is sent once over a new connection."""
    with ScriptedRelay(*offers) as server:
        server.faults["m3@example.com", point] = [reply]

        assert exchange(server, letters(5)) == [SENT] * 5
        assert server.acknowledged == [f"m{number}@example.com" for number in range(1, 6)]
        assert server.connections == 2


@both
def test_the_first_mail_of_a_connection_is_at_no_limit(offers: tuple[str, ...]) -> None:
    """A refusal of the first mail of a connection is never taken for a connection's limit."""
    with ScriptedRelay(*offers) as server:
        server.faults["m1@example.com", "mail"] = [TOO_MANY]

        assert exchange(server, letters(1)) == [DEFERRED]
        assert server.connections == 1


@pytest.mark.parametrize(
    ("point", "reply", "verdict"),
    [
        ("mail", "450 4.2.0 Greylisted, try again later", DEFERRED),
        ("mail", "451 4.7.1 slow down, try again in 5 minutes", DEFERRED),
        ("mail", "550 5.1.8 no such sender", REFUSED),
        ("rcpt", "450 4.2.1 mailbox busy", DEFERRED),
        ("rcpt", "550 5.1.1 no such user", REFUSED),
    ],
)
def test_an_answer_that_is_about_the_mail(point: Point, reply: str, verdict: Verdict) -> None:
    """A refusal that is about the mail itself is not tried over a new connection."""
    with ScriptedRelay() as server:
        server.always("m2@example.com", point, reply)

        assert exchange(server, letters(3)) == [SENT, verdict, SENT]
        assert server.begun == [f"m{number}@example.com" for number in (1, 2, 3)]


@both
@pytest.mark.parametrize("entrance", ["421 4.7.0 too many connections", "554 5.7.1 no", "close"])
@pytest.mark.parametrize("reply", [NO_DOMAIN, "550 5.7.0 Please open a new session"])
def test_a_new_connection_that_is_not_let_in(
    offers: tuple[str, ...], entrance: str, reply: str
) -> None:
    """If the relay refuses the new connection, the mail is deferred and the next one goes on."""
    with ScriptedRelay(*offers) as server:
        server.faults["m2@example.com", "mail"] = [reply]
        server.faults["", "greeting"] = ["220 relay", entrance]

        assert exchange(server, letters(3)) == [SENT, DEFERRED, SENT]
        assert server.begun == ["m1@example.com", "m2@example.com", "m3@example.com"]


@both
def test_a_new_connection_that_ends_at_once(offers: tuple[str, ...]) -> None:
    """If the relay closes the new connection with a 421, the mail is deferred too."""
    with ScriptedRelay(*offers) as server:
        server.faults["m2@example.com", "mail"] = [TOO_MANY, "421 4.7.0 too many connections"]

        assert exchange(server, letters(3)) == [SENT, DEFERRED, SENT]


@both
@pytest.mark.parametrize("reply", [NO_DOMAIN, TOO_MANY])
def test_a_run_of_refusals(offers: tuple[str, ...], reply: str) -> None:
    """A run of refused mails costs one more connection, not one for each mail."""
    with ScriptedRelay(*offers) as server:
        for number in range(2, 41):
            server.always(f"m{number}@example.com", "mail", reply)

        assert exchange(server, letters(40)) == [SENT, *[DEFERRED] * 39]
        assert server.connections == 2


def test_a_run_of_refusals_on_a_new_connection() -> None:
    """Refused senders on a new connection cost one more connection, not one for each."""
    with ScriptedRelay("PIPELINING") as server:
        for number in range(1, 21):
            server.always(f"m{number}@example.com", "mail", NO_DOMAIN)

        assert exchange(server, letters(20)) == [DEFERRED] * 20
        assert server.connections == 2


@pytest.mark.parametrize(("reply", "most"), [(NO_DOMAIN, 8), (TOO_MANY, 24)])
def test_refusals_between_mails_that_are_taken(reply: str, most: int) -> None:
    """Each wrong guess that a connection's limit was reached makes the next guess rarer."""
    with ScriptedRelay() as server:
        for number in range(2, 201, 2):
            server.always(f"m{number}@example.com", "mail", reply)

        assert exchange(server, letters(200)) == [SENT, DEFERRED] * 100
        assert server.connections <= most


@both
@pytest.mark.parametrize(
    ("most", "reply", "refused"),
    [(10, TOO_MANY, 1), (5, TOO_MANY, 2), (10, "451 4.3.0 something is wrong", 2)],
)
def test_the_limit_is_learnt(offers: tuple[str, ...], most: int, reply: str, refused: int) -> None:
    """A connection's limit is learnt at once if the reply names it, else from two equal counts."""
    with LimitedRelay(*offers, most=most, reply=reply) as server:
        assert exchange(server, letters(40)) == [SENT] * 40
        assert server.refusals == refused
        assert server.connections == 40 // most


def test_one_that_was_learnt_too_low_is_forgotten() -> None:
    """A learnt limit that is too low is raised again over time."""
    with LimitedRelay(most=1, reply=TOO_MANY) as server:
        relay = relay_of(server)
        with relay.connection() as connection:
            assert [one.verdict for one in connection.exchange(supply(letters(3)))] == [SENT] * 3
        server.most = 1000
        with relay.connection() as connection:
            outcomes = [*connection.exchange(supply(letters(300)))]
        relay.hang_up()

        assert {one.verdict for one in outcomes} == {SENT}
        assert server.connections < 110


def test_max_emails_below_what_was_learnt() -> None:
    """MAIL_MAX_EMAILS holds as well if it is below the learnt limit."""
    with LimitedRelay("PIPELINING", most=5, reply=TOO_MANY) as server:
        assert exchange(server, letters(12), MAIL_MAX_EMAILS=3) == [SENT] * 12
        assert (server.refusals, server.connections) == (0, 4)


class LimitedRelay(ScriptedRelay):
    """A relay that refuses each MAIL once its connection has carried a number of mails."""

    def __init__(self, *offers: str, most: int, reply: str) -> None:
        super().__init__(*offers)
        self.most, self.reply = most, reply
        self.refusals = 0

    def at_mail(self, carried: int) -> str | None:
        if carried < self.most:
            return None
        self.refusals += 1
        return self.reply


# --- refused recipients -------------------------------------------------------------------------


def refusing(
    server: ScriptedRelay, point: Point, is_refused: Callable[[int], bool], count: int
) -> None:
    for number in filter(is_refused, range(1, count + 1)):
        server.always(f"m{number}@example.com", point, "550 5.1.1 no")


@pytest.mark.parametrize("point", ["rcpt", "mail"])
def test_nothing_more_is_said_in_vain_after_a_refusal(point: Point) -> None:
    """After a refusal, commands wait for their replies until a mail is taken again."""
    with ScriptedRelay("PIPELINING") as server:
        refusing(server, point, lambda number: number <= 8, 8)
        refusing(server, "rcpt", lambda number: number == 1, 1)
        server.always("m1@example.com", "data", "554 5.5.1 no valid recipients")

        assert exchange(server, letters(12)) == [*[REFUSED] * 8, *[SENT] * 4]
        assert server.data_without_recipient == 1
        assert server.connections == 1


def test_one_round_trip_again_once_a_mail_is_taken() -> None:
    """After a refused recipient, the next mail that is taken restores full pipelining."""
    waits = {}
    for count in (5, 25):
        with ScriptedRelay("PIPELINING", holds_back=True) as server:
            refusing(server, "rcpt", lambda number: number == 2, count)
            exchange(server, letters(count))
        waits[count] = server.round_trips

    assert waits[25] - waits[5] == 20
