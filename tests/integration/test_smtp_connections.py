"""Connections stay warm, are lent to one mail at a time, and their end costs no mail."""

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from mailer.message import Verdict
from mailer.smtp import Relay, RelayConnection
from mailer.smtpd.faults import CLOSE_AFTER_250, DROP, HANG, Fault
from tests.services.relay import SHORT, RawServer, make_letter, send
from tests.services.sink import Sink
from tests.services.waiting import wait_until

MakeRelay = Callable[..., Relay]
Answering = Callable[..., RawServer]


def said(server: RawServer, command: bytes) -> int:
    """How often the server heard it."""
    return sum(line.startswith(command) for line in server.heard)


# --- warm connections ---------------------------------------------------------------------------


def test_one_connection_for_many_mails(relay_to: MakeRelay, sink: Sink) -> None:
    """Greeting, TLS and login are paid for once."""
    relay = relay_to(sink)

    assert [send(relay).verdict for _ in range(5)] == [Verdict.SENT] * 5
    assert (len(sink.messages), sink.connections) == (5, 1)


def test_a_limit_of_mails_on_a_connection(relay_to: MakeRelay, sink: Sink) -> None:
    """MAIL_MAX_EMAILS, for relays that count."""
    relay = relay_to(sink, MAIL_MAX_EMAILS=2)

    assert [send(relay).verdict for _ in range(5)] == [Verdict.SENT] * 5
    assert sink.connections == 3


def test_a_relay_that_has_hung_up(relay_to: MakeRelay, sink: Sink) -> None:
    """The mail that notices goes out over a new connection at once: nothing was lost, so nobody rests."""
    relay = relay_to(sink)
    sink.faults.add(Fault("dot", CLOSE_AFTER_250))

    assert [send(relay).verdict for _ in range(2)] == [Verdict.SENT] * 2
    assert (len(sink.messages), sink.connections) == (2, 2)


def test_a_relay_that_says_goodbye(relay_to: MakeRelay, sink: Sink) -> None:
    """The same for one that waits for the next mail to say that it has had enough."""
    relay = relay_to(sink)
    send(relay)
    sink.faults.add(Fault("mail", "421 4.4.2 idle for too long"))

    assert send(relay).verdict is Verdict.SENT
    assert (len(sink.messages), sink.connections) == (2, 2)


@pytest.mark.parametrize("stage", ["MAIL", "RCPT", "DATA", "."])
def test_a_relay_that_says_goodbye_and_stays(
    relay_to: MakeRelay, answering: Answering, stage: str
) -> None:
    """After a 421 nothing more is said over this connection."""
    server = answering(**{stage: b"421 4.3.2 closing\r\n"})
    relay = relay_to(server)

    assert send(relay).verdict is not Verdict.SENT
    greetings = said(server, b"ehlo")
    send(relay)

    assert said(server, b"ehlo") > greetings


def test_a_relay_that_has_hung_up_after_a_refusal(
    relay_to: MakeRelay, answering: Answering
) -> None:
    """A connection over which no mail has gone yet is as warm as any other."""
    server = answering(RCPT=b"550 5.1.1 no such user\r\n")
    relay = relay_to(server)
    assert send(relay).verdict is Verdict.REFUSED

    server.hang_up()

    assert send(relay).verdict is Verdict.REFUSED


def test_a_relay_that_restarts_under_a_warm_connection(relay_to: MakeRelay, sink: Sink) -> None:
    """That is noticed before a mail depends on it."""
    relay = relay_to(sink)
    send(relay)
    sink.stop()

    with Sink(port=sink.port) as restarted:
        assert send(relay).verdict is Verdict.SENT
        assert len(restarted.messages) == 1


def test_a_relay_that_has_taken_its_leave(relay_to: MakeRelay, answering: Answering) -> None:
    """Whoever speaks without being asked says goodbye: nothing is said to it any more."""
    server = answering(**{".": b"250 taken\r\n421 4.4.2 idle for too long\r\n"})
    relay = relay_to(server)

    assert [send(relay).verdict for _ in range(2)] == [Verdict.SENT] * 2
    assert said(server, b"ehlo") == said(server, b"mail") == 2


def test_a_connection_that_is_fine_costs_no_question(
    relay_to: MakeRelay, answering: Answering
) -> None:
    """A look at the socket is enough: no NOOP, no RSET, no second greeting."""
    server = answering()
    relay = relay_to(server)

    for _ in range(3):
        send(relay)

    assert {line[:4] for line in server.heard} == {b"ehlo", b"mail", b"rcpt", b"data"}
    assert said(server, b"ehlo") == 1


def test_connections_that_nobody_uses_are_closed(relay_to: MakeRelay, answering: Answering) -> None:
    """Politely, in their time, and without anybody seeing to it: firewalls forget connections without a word."""
    server = answering()
    relay = relay_to(server, MAILER_IDLE_TIMEOUT=SHORT)
    send(relay)
    assert said(server, b"quit") == 0

    wait_until(lambda: said(server, b"quit") == 1)
    wait_until(lambda: relay._closer is None)
    assert send(relay).verdict is Verdict.SENT
    wait_until(lambda: said(server, b"quit") == 2)


def test_hanging_up(relay_to: MakeRelay, answering: Answering) -> None:
    """At the end of a process the relay hears goodbye, and no thread stays behind."""
    server = answering()
    relay = relay_to(server)
    send(relay)

    relay.hang_up()

    wait_until(lambda: said(server, b"quit") == 1)
    wait_until(lambda: relay._closer is None)


# --- a relay that can't be reached --------------------------------------------------------------


def test_a_warm_connection_is_replaced_once(relay_to: MakeRelay, sink: Sink) -> None:
    """A relay that hangs up on the second one too is in trouble."""
    relay = relay_to(sink)
    send(relay)
    sink.faults.add(Fault("mail", DROP, times=2))

    assert send(relay).verdict is Verdict.UNREACHED
    assert sink.connections == 2


def test_a_mail_in_doubt_is_not_sent_again(relay_to: MakeRelay, sink: Sink) -> None:
    """Only what surely never began is tried a second time."""
    relay = relay_to(sink, MAILER_REPLY_TIMEOUT=SHORT)
    send(relay)
    sink.faults.add(Fault("dot", HANG))

    assert send(relay).verdict is Verdict.DOUBTFUL
    assert sink.connections == 1


# --- threads and processes ----------------------------------------------------------------------


def test_no_connection_is_lent_twice(relay_to: MakeRelay, sink: Sink) -> None:
    """Threads get connections of their own, warm ones as far as there are any."""
    relay = relay_to(sink)
    at_once = threading.Barrier(4)

    def send_three(_: int) -> list[RelayConnection]:
        used = []
        for _ in range(3):
            with relay.connection() as connection:
                at_once.wait(timeout=10)
                assert connection.send(make_letter()).verdict is Verdict.SENT
                at_once.wait(timeout=10)
            used.append(connection)
        return used

    with ThreadPoolExecutor(4) as threads:
        rounds = zip(*threads.map(send_three, range(4)), strict=True)

    assert all(len(set(connections)) == 4 for connections in rounds)
    assert len(sink.messages) == 12


def test_a_connection_is_not_kept_after_an_error(relay_to: MakeRelay, sink: Sink) -> None:
    """Nobody knows in the middle of what it was."""
    relay = relay_to(sink)

    with suppress(KeyboardInterrupt), relay.connection() as connection:
        connection.send(make_letter())
        raise KeyboardInterrupt

    assert send(relay).verdict is Verdict.SENT
    assert sink.connections == 2


def test_a_copy_of_the_socket_in_another_process_does_not_keep_a_connection_that_was_cut(
    relay_to: MakeRelay, sink: Sink
) -> None:
    """A relay in the middle of a mail would wait for the rest of it."""
    relay = relay_to(sink)
    with relay.connection() as connection:
        assert connection.try_open() is None
        assert connection.host is not None
        assert connection.host.sock is not None
        with connection.host.sock.dup() as copy:
            connection.drop()
            with pytest.raises(BrokenPipeError):
                copy.send(b"NOOP\r\n")


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_child_leaves_the_connections_of_its_parent_alone(
    relay_to: MakeRelay, sink: Sink
) -> None:
    """Two processes on one connection would mix their mails."""
    relay = relay_to(sink)
    send(relay)

    if (child := os.fork()) == 0:
        failed = True
        try:
            failed = send(relay).verdict is not Verdict.SENT
            relay.hang_up()
        finally:
            os._exit(failed)  # or pytest would go on here too
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

    assert send(relay).verdict is Verdict.SENT
    assert (len(sink.messages), sink.connections) == (3, 2)
