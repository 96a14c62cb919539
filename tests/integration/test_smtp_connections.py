"""Connections stay open between mails, serve one thread at a time, and end without losing mail."""

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
    """Return how often the server received this command."""
    return sum(line.startswith(command) for line in server.heard)


# --- warm connections ---------------------------------------------------------------------------


def test_one_connection_for_many_mails(relay_to: MakeRelay, sink: Sink) -> None:
    """Many mails share one connection, and so one greeting and login."""
    relay = relay_to(sink)

    assert [send(relay).verdict for _ in range(5)] == [Verdict.SENT] * 5
    assert (len(sink.messages), sink.connections) == (5, 1)


def test_a_limit_of_mails_on_a_connection(relay_to: MakeRelay, sink: Sink) -> None:
    """A connection carries at most MAIL_MAX_EMAILS mails."""
    relay = relay_to(sink, MAIL_MAX_EMAILS=2)

    assert [send(relay).verdict for _ in range(5)] == [Verdict.SENT] * 5
    assert sink.connections == 3


def test_a_relay_that_has_hung_up(relay_to: MakeRelay, sink: Sink) -> None:
    """A mail that finds its connection closed is sent at once over a new one."""
    relay = relay_to(sink)
    sink.faults.add(Fault("dot", CLOSE_AFTER_250))

    assert [send(relay).verdict for _ in range(2)] == [Verdict.SENT] * 2
    assert (len(sink.messages), sink.connections) == (2, 2)


def test_a_relay_that_says_goodbye(relay_to: MakeRelay, sink: Sink) -> None:
    """A mail that a kept connection answers with 421 is sent at once over a new one."""
    relay = relay_to(sink)
    send(relay)
    sink.faults.add(Fault("mail", "421 4.4.2 idle for too long"))

    assert send(relay).verdict is Verdict.SENT
    assert (len(sink.messages), sink.connections) == (2, 2)


@pytest.mark.parametrize("stage", ["MAIL", "RCPT", "DATA", "."])
def test_a_relay_that_says_goodbye_and_stays(
    relay_to: MakeRelay, answering: Answering, stage: str
) -> None:
    """After a 421 the connection is not used again, even if the relay leaves it open."""
    server = answering(**{stage: b"421 4.3.2 closing\r\n"})
    relay = relay_to(server)

    assert send(relay).verdict is not Verdict.SENT
    greetings = said(server, b"ehlo")
    send(relay)

    assert said(server, b"ehlo") > greetings


def test_a_relay_that_has_hung_up_after_a_refusal(
    relay_to: MakeRelay, answering: Answering
) -> None:
    """A closed connection is replaced even if no mail was taken over it yet."""
    server = answering(RCPT=b"550 5.1.1 no such user\r\n")
    relay = relay_to(server)
    assert send(relay).verdict is Verdict.REFUSED

    server.hang_up()

    assert send(relay).verdict is Verdict.REFUSED


def test_a_relay_that_restarts_under_a_warm_connection(relay_to: MakeRelay, sink: Sink) -> None:
    """A relay's restart is noticed before a mail is sent over the old connection."""
    relay = relay_to(sink)
    send(relay)
    sink.stop()

    with Sink(port=sink.port) as restarted:
        assert send(relay).verdict is Verdict.SENT
        assert len(restarted.messages) == 1


def test_a_relay_that_has_taken_its_leave(relay_to: MakeRelay, answering: Answering) -> None:
    """A connection over which the relay sent something unasked is not used again."""
    server = answering(**{".": b"250 taken\r\n421 4.4.2 idle for too long\r\n"})
    relay = relay_to(server)

    assert [send(relay).verdict for _ in range(2)] == [Verdict.SENT] * 2
    assert said(server, b"ehlo") == said(server, b"mail") == 2


def test_a_connection_that_is_fine_costs_no_question(
    relay_to: MakeRelay, answering: Answering
) -> None:
    """A kept connection is reused without NOOP, RSET or EHLO."""
    server = answering()
    relay = relay_to(server)

    for _ in range(3):
        send(relay)

    assert {line[:4] for line in server.heard} == {b"ehlo", b"mail", b"rcpt", b"data"}
    assert said(server, b"ehlo") == 1


def test_connections_that_nobody_uses_are_closed(relay_to: MakeRelay, answering: Answering) -> None:
    """Connections that are idle for MAILER_IDLE_TIMEOUT are closed with QUIT in the background."""
    server = answering()
    relay = relay_to(server, MAILER_IDLE_TIMEOUT=SHORT)
    send(relay)
    assert said(server, b"quit") == 0

    wait_until(lambda: said(server, b"quit") == 1)
    wait_until(lambda: relay._closer is None)
    assert send(relay).verdict is Verdict.SENT
    wait_until(lambda: said(server, b"quit") == 2)


def test_hanging_up(relay_to: MakeRelay, answering: Answering) -> None:
    """`hang_up()` sends QUIT and leaves no thread behind."""
    server = answering()
    relay = relay_to(server)
    send(relay)

    relay.hang_up()

    wait_until(lambda: said(server, b"quit") == 1)
    wait_until(lambda: relay._closer is None)


# --- a relay that can't be reached --------------------------------------------------------------


def test_a_warm_connection_is_replaced_once(relay_to: MakeRelay, sink: Sink) -> None:
    """If the new connection fails as the kept one did, the relay counts as unreached."""
    relay = relay_to(sink)
    send(relay)
    sink.faults.add(Fault("mail", DROP, times=2))

    assert send(relay).verdict is Verdict.UNREACHED
    assert sink.connections == 2


def test_a_mail_in_doubt_is_not_sent_again(relay_to: MakeRelay, sink: Sink) -> None:
    """A mail in doubt is never tried over a new connection."""
    relay = relay_to(sink, MAILER_REPLY_TIMEOUT=SHORT)
    send(relay)
    sink.faults.add(Fault("dot", HANG))

    assert send(relay).verdict is Verdict.DOUBTFUL
    assert sink.connections == 1


# --- threads and processes ----------------------------------------------------------------------


def test_no_connection_is_lent_twice(relay_to: MakeRelay, sink: Sink) -> None:
    """Threads never share a connection at the same time."""
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
    """A connection is closed after an exception, since its state is unknown."""
    relay = relay_to(sink)

    with suppress(KeyboardInterrupt), relay.connection() as connection:
        connection.send(make_letter())
        raise KeyboardInterrupt

    assert send(relay).verdict is Verdict.SENT
    assert sink.connections == 2


def test_a_copy_of_the_socket_in_another_process_does_not_keep_a_connection_that_was_cut(
    relay_to: MakeRelay, sink: Sink
) -> None:
    """A dropped connection is cut even if a forked process holds a copy of its socket."""
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
    """A forked child opens connections of its own and leaves its parent's alone."""
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
