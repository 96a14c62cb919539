"""One mail over a real connection: its outcome for each behaviour of the relay."""

import socket
import time
from collections.abc import Callable
from itertools import chain, repeat

import flask_mail
import pytest
from flask import Flask

from mailer.message import Address, Outcome, Phase, Verdict
from mailer.mime import WireMessage
from mailer.smtp import Relay
from mailer.smtp.session import Session
from mailer.smtpd.faults import ACCEPT_AND_DROP, DELAY, DROP, HANG, Fault, Stage
from tests.services.relay import (
    LONG,
    SHORT,
    TIMEOUTS,
    RawServer,
    make_letter,
    make_relay,
    send,
    supply,
)
from tests.services.sink import Sink

MakeRelay = Callable[..., Relay]
Answering = Callable[..., RawServer]


def phase_of(stage: Stage) -> Phase:
    return Phase.CONNECT if stage in ("connect", "ehlo", "auth") else Phase(stage)


# --- what is said -------------------------------------------------------------------------------


def test_a_mail_is_taken(relay_to: MakeRelay, sink: Sink) -> None:
    """A relay receives the right envelope and bytes, and the outcome has its reply."""
    letter = make_letter("eve@example.com", envelope_from="bounces@example.com")

    outcome = send(relay_to(sink), letter)

    assert outcome == Outcome(Verdict.SENT, "250 2.0.0 Ok: queued as 1")
    [received] = sink.messages
    assert (received.envelope_from, received.recipients) == (
        "bounces@example.com",
        ("eve@example.com",),
    )
    assert received.raw == letter.as_bytes()


@pytest.mark.parametrize(
    "text", [".", "..", ".first\n.\n..\n", "a\n.", "\n.\n\n", "a\r\n.\r\nQUIT\r\n"]
)
def test_dots_at_the_start_of_a_line_arrive(relay_to: MakeRelay, sink: Sink, text: str) -> None:
    """A line that is a single dot arrives, and does not end the mail early."""
    letter = make_letter(text=text)

    assert send(relay_to(sink), letter).verdict is Verdict.SENT
    assert sink.messages[0].raw == letter.as_bytes()


def test_the_size_is_announced_and_the_options_are_passed_on(
    relay_to: MakeRelay, answering: Answering
) -> None:
    """MAIL announces the size, and MAIL and RCPT carry the options of the mail."""
    server = answering(EHLO=b"250-relay\r\n250-SIZE 10000\r\n250 DSN\r\n")
    letter = make_letter(mail_options=("RET=HDRS",), rcpt_options=("NOTIFY=NEVER",))

    send(relay_to(server), letter)

    size = len(letter.as_bytes())
    assert f"mail from:<ada@example.com> size={size} ret=hdrs\r\n".encode() in server.heard
    assert b"rcpt to:<bob@example.com> notify=never\r\n" in server.heard


def test_a_mail_above_the_limit_of_the_relay_has_failed(
    relay_to: MakeRelay, answering: Answering
) -> None:
    """A mail above the relay's SIZE limit fails without being sent."""
    server = answering(EHLO=b"250-relay\r\n250 SIZE 100\r\n")
    letter = make_letter()
    size = len(letter.as_bytes())

    outcome = send(relay_to(server), letter)

    assert outcome == Outcome(
        Verdict.REFUSED, f"552 5.3.4 the mail has {size} octets, the relay takes 100", Phase.MAIL
    )
    assert [line[:4] for line in server.heard] == [b"ehlo"]


@pytest.mark.parametrize("limit", [b"SIZE", b"SIZE 0", b"SIZE 1000000", b"SIZE what"])
def test_a_relay_without_a_limit(relay_to: MakeRelay, answering: Answering, limit: bytes) -> None:
    """A SIZE that is missing, zero or no number is no limit (RFC 1870)."""
    assert (
        send(relay_to(answering(EHLO=b"250-relay\r\n250 " + limit + b"\r\n"))).verdict
        is Verdict.SENT
    )


@pytest.mark.parametrize(("offer", "said"), [(b"8BITMIME", b" body=8bitmime"), (b"HELP", b"")])
def test_letters_beyond_ascii_in_the_text(
    relay_to: MakeRelay, answering: Answering, offer: bytes, said: bytes
) -> None:
    """Non-ASCII text is sent as it is to relays with 8BITMIME, and encoded for others."""
    server = answering(EHLO=b"250-relay\r\n250 " + offer + b"\r\n")

    assert send(relay_to(server), make_letter(text="Grüße\n")).verdict is Verdict.SENT
    assert b"mail from:<ada@example.com>" + said + b"\r\n" in server.heard
    assert b"".join(server.mails[0].split(b"\r\n\r\n")[1:]).isascii() is (offer != b"8BITMIME")


@pytest.mark.parametrize("options", [("BODY=8BITMIME",), ("size=1",), ("SMTPUTF8",)])
def test_options_that_are_ours_to_say(
    relay_to: MakeRelay, answering: Answering, options: tuple[str, ...]
) -> None:
    """The caller cannot set MAIL options that Mailer sets by itself."""
    server = answering(EHLO=b"250-relay\r\n250 8BITMIME\r\n")

    assert send(relay_to(server), make_letter(mail_options=options)).verdict is Verdict.SENT
    assert b"mail from:<ada@example.com>\r\n" in server.heard


def test_a_relay_that_knows_only_helo_gets_plain_smtp(
    relay_to: MakeRelay, answering: Answering
) -> None:
    """A relay that knows only HELO gets no ESMTP options."""
    server = answering(EHLO=b"500 what?\r\n")

    assert send(relay_to(server), make_letter(mail_options=("RET=HDRS",))).verdict is Verdict.SENT
    assert b"mail from:<ada@example.com>\r\n" in server.heard


def test_letters_beyond_ascii_in_an_address_need_smtputf8(relay_to: MakeRelay, sink: Sink) -> None:
    """A mail to a non-ASCII address asks for SMTPUTF8 exactly once."""
    letter = make_letter(
        "jürgen@example.com", to=(Address("jürgen@example.com"),), mail_options=("SMTPUTF8",)
    )

    assert send(relay_to(sink), letter).verdict is Verdict.SENT
    assert sink.messages[0].recipients == ("jürgen@example.com",)
    assert send(relay_to(sink)).verdict is Verdict.SENT


@pytest.mark.parametrize("options", [(), ("SMTPUTF8",)])
def test_a_relay_without_smtputf8_can_not_take_such_an_address(
    relay_to: MakeRelay, answering: Answering, options: tuple[str, ...]
) -> None:
    """A relay without SMTPUTF8 fails a mail to a non-ASCII address, but not the next mail."""
    server = answering()
    relay = relay_to(server)

    outcome = send(relay, make_letter("jürgen@example.com", mail_options=options))

    assert (outcome.verdict, outcome.phase) == (Verdict.REFUSED, Phase.MAIL)
    assert "SMTPUTF8" in outcome.reply
    assert send(relay).verdict is Verdict.SENT
    assert [line for line in server.heard if line.startswith(b"ehlo")] == server.heard[:1]


def slipped_past(**attributes: str | list[str]) -> WireMessage:
    """Return a mail with values that the checks at the call should have refused."""
    letter = make_letter()
    for name, value in attributes.items():
        setattr(letter, name, value)
    return letter


@pytest.mark.parametrize(
    "letter",
    [
        make_letter(mail_options=("RET=ÄLL",)),
        make_letter(rcpt_options=("ORCPT=rfc822;jürgen@example.com",)),
        slipped_past(mail_options=["RET=HDRS\r\nRCPT TO:<eve@example.com>"]),
        slipped_past(rcpt_options=["NOTIFY=NEVER DATA"]),
        slipped_past(recipient="bob@example.com>\r\nRCPT TO:<eve@example.com"),
        slipped_past(recipient="bob@example.com> NOTIFY=NEVER"),
        slipped_past(recipient="bob@example.com\0"),
    ],
    ids=["mail in ascii", "rcpt in ascii", "mail option", "rcpt option", "line", "bracket", "nul"],
)
def test_what_can_not_be_said_is_the_fault_of_the_mail(
    relay_to: MakeRelay, sink: Sink, letter: WireMessage
) -> None:
    """A mail whose envelope cannot be sent fails alone; the relay is not blamed for it."""
    relay = relay_to(sink)

    assert send(relay, letter).verdict is Verdict.REFUSED
    assert send(relay).verdict is Verdict.SENT


# --- replies ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stage", "reply", "verdict"),
    [
        ("connect", "421 4.3.2 too busy", Verdict.UNREACHED),
        ("connect", "554 5.7.1 not you", Verdict.UNREACHED),
        ("ehlo", "421 4.3.2 too busy", Verdict.UNREACHED),
        ("ehlo", "550 5.7.1 not you", Verdict.UNREACHED),
        ("mail", "421 4.3.2 closing", Verdict.UNREACHED),
        ("mail", "451 4.7.1 try later", Verdict.DEFERRED),
        ("mail", "530 5.7.0 log in first", Verdict.UNREACHED),
        ("mail", "550 5.7.1 not that sender", Verdict.REFUSED),
        ("rcpt", "421 4.3.2 closing", Verdict.DEFERRED),
        ("rcpt", "450 4.2.0 greylisted", Verdict.DEFERRED),
        ("rcpt", "552 5.5.3 too many recipients", Verdict.DEFERRED),
        ("rcpt", "550 5.1.1 no such user", Verdict.REFUSED),
        ("data", "421 4.3.2 closing", Verdict.DEFERRED),
        ("data", "451 4.3.0 disk full", Verdict.DEFERRED),
        ("data", "554 5.5.1 no valid recipients", Verdict.REFUSED),
        ("dot", "421 4.3.2 closing", Verdict.DEFERRED),
        ("dot", "452 4.3.1 disk full", Verdict.DEFERRED),
        ("dot", "554 5.6.0 spam", Verdict.REFUSED),
    ],
)
def test_a_reply_that_is_no_yes(
    relay_to: MakeRelay, sink: Sink, stage: Stage, reply: str, verdict: Verdict
) -> None:
    """The verdict of a negative reply depends on its phase; the outcome has its text."""
    # After EHLO comes HELO.
    sink.faults.add(Fault(stage, reply, times=2 if (stage, reply[0]) == ("ehlo", "5") else 1))
    relay = relay_to(sink)

    outcome = send(relay)

    assert (outcome.verdict, outcome.phase) == (verdict, phase_of(stage))
    assert reply in outcome.reply
    assert sink.messages == []
    assert send(relay).verdict is Verdict.SENT


@pytest.mark.parametrize("stage", ["mail", "rcpt", "data", "dot"])
@pytest.mark.parametrize("reply", ["450 4.7.1 not now", "550 5.7.1 never"])
def test_the_session_goes_on_after_a_mail_that_was_not_taken(
    relay_to: MakeRelay, sink: Sink, stage: Stage, reply: str
) -> None:
    """A refused mail does not cost the next mail a new connection."""
    sink.faults.add(Fault(stage, reply))
    relay = relay_to(sink)

    assert send(relay).verdict is not Verdict.SENT
    assert send(relay).verdict is Verdict.SENT
    assert sink.connections == 1


def test_a_relay_that_does_not_answer_rset_loses_the_connection_only(
    relay_to: MakeRelay, answering: Answering, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A missing reply to RSET costs the connection, not the outcome that is already known."""
    monkeypatch.setattr(Session, "courtesy_seconds", SHORT)
    server = answering(RSET=(), RCPT=b"550 5.1.1 no such user\r\n")
    relay = relay_to(server)

    assert send(relay) == Outcome(Verdict.REFUSED, "550 5.1.1 no such user", Phase.RCPT)
    send(relay)
    assert sum(line.startswith(b"ehlo") for line in server.heard) == 2


@pytest.mark.parametrize(
    ("stage", "verdict"),
    [
        ("greeting", Verdict.UNREACHED),
        ("EHLO", Verdict.UNREACHED),
        ("MAIL", Verdict.UNREACHED),
        ("RCPT", Verdict.DEFERRED),
        ("DATA", Verdict.DEFERRED),
        (".", Verdict.DOUBTFUL),
    ],
)
@pytest.mark.parametrize(
    "garbage",
    [
        b"what?\r\n",
        b"\r\n",
        b"\xff\xfe\x00\n",
        b"25 ok\r\n",
        b"2_5 ok\r\n",
        b"999 ok\r\n",
        b"-50 ok\r\n",
    ],
)
def test_garbage_is_no_reply(
    relay_to: MakeRelay, answering: Answering, stage: str, verdict: Verdict, garbage: bytes
) -> None:
    """A line that is no SMTP reply counts as no reply."""
    server = answering(HELO=garbage, **{stage: garbage})

    assert send(relay_to(server)).verdict is verdict


def test_a_very_long_reply_is_cut(relay_to: MakeRelay, answering: Answering) -> None:
    """A very long positive reply counts as positive, and its text is cut."""
    x, z = b"x" * 100_000, b"z" * 100_000
    relay = relay_to(answering(**{".": b"250-%s\r\n" % x + b"250-y\r\n" * 500 + b"250 %s\r\n" % z}))

    outcome = send(relay)

    assert (outcome.verdict, len(outcome.reply)) == (Verdict.SENT, 1000)
    assert outcome.reply.startswith("250 xxxx")
    assert send(relay).verdict is Verdict.SENT


@pytest.mark.parametrize(
    ("stage", "verdict"), [("MAIL", Verdict.UNREACHED), (".", Verdict.DOUBTFUL)]
)
def test_a_reply_without_end(
    relay_to: MakeRelay, answering: Answering, stage: str, verdict: Verdict
) -> None:
    """A reply with too many lines counts as no reply."""
    server = answering(**{stage: b"250-and so on\r\n" * 20_000 + b"250 ok\r\n"})

    outcome = send(relay_to(server))

    assert outcome.verdict is verdict
    assert outcome.reply.endswith("the relay's reply has no end")


def test_the_words_of_a_reply_are_made_printable(relay_to: MakeRelay, answering: Answering) -> None:
    """Control characters are removed from replies, since PostgreSQL cannot store a NUL."""
    server = answering(**{".": b"250-2.0.0\t taken\x00\r\n250 2.0.0 as \x1b[31m \xff\xc3\xbc\r\n"})

    assert (
        send(relay_to(server)).reply == "250 2.0.0 taken 2.0.0 as [31m \N{REPLACEMENT CHARACTER}ü"
    )


# --- silence ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stage", "verdict"),
    [
        ("connect", Verdict.UNREACHED),
        ("ehlo", Verdict.UNREACHED),
        ("auth", Verdict.UNREACHED),
        ("mail", Verdict.UNREACHED),
        ("rcpt", Verdict.DEFERRED),
        ("data", Verdict.DEFERRED),
        ("dot", Verdict.DOUBTFUL),
    ],
)
@pytest.mark.parametrize("action", [HANG, DROP])
def test_a_relay_that_falls_silent(
    relay_to: MakeRelay, action: str, stage: Stage, verdict: Verdict
) -> None:
    """A missing reply leaves a mail in doubt only after all its bytes were sent.

    Each phase has a time-out of its own.
    """
    key = "MAILER_REPLY_TIMEOUT" if stage == "dot" else "MAILER_COMMAND_TIMEOUT"
    login = {"MAIL_USERNAME": "ada", "MAIL_PASSWORD": "secret"}
    with Sink(credentials=("ada", "secret")) as sink:
        relay = relay_to(sink, **login, **{key: SHORT})
        sink.faults.add(Fault(stage, action))
        started = time.monotonic()

        outcome = send(relay)

        assert (outcome.verdict, outcome.phase) == (verdict, phase_of(stage))
        assert time.monotonic() - started < LONG / 2
        assert send(relay).verdict is Verdict.SENT
        assert len(sink.messages) == 1


def test_nobody_accepts_the_connection() -> None:
    """A relay that never accepts the connection is unreached after the connect time-out."""
    with (
        socket.create_server(("127.0.0.1", 0), backlog=0) as listener,
        socket.socket() as first,
        socket.socket() as second,
    ):
        # Fill the kernel's backlog, so that further connections get no answer.
        for other in (first, second):
            other.setblocking(False)
            other.connect_ex(listener.getsockname())

        outcome = send(make_relay(*listener.getsockname(), MAILER_CONNECT_TIMEOUT=SHORT))

    assert outcome == Outcome(
        Verdict.UNREACHED, "no connection to the relay: TimeoutError: timed out", Phase.CONNECT
    )


def test_nobody_listens(relay_to: MakeRelay) -> None:
    """A refused connection is reported at once."""
    with RawServer() as gone:
        relay = relay_to(gone)

    outcome = send(relay)

    assert (outcome.verdict, outcome.phase) == (Verdict.UNREACHED, Phase.CONNECT)
    assert "refused" in outcome.reply


def test_a_relay_that_stops_reading(relay_to: MakeRelay, answering: Answering) -> None:
    """A relay that stops reading before the final dot leaves no mail in doubt."""
    server = answering(DATA=chain([b"354 go on\r\n"], repeat(b"")))
    large = make_letter(text="all work and no play\n" * 500_000)

    outcome = send(relay_to(server, MAILER_DATA_TIMEOUT=SHORT), large)

    assert (outcome.verdict, outcome.phase) == (Verdict.DEFERRED, Phase.DATA)


@pytest.mark.parametrize(
    ("stage", "verdict"),
    [("greeting", Verdict.UNREACHED), ("RCPT", Verdict.DEFERRED), (".", Verdict.DOUBTFUL)],
)
@pytest.mark.parametrize("piece", [b"2", b"250-still thinking\r\n"])
def test_a_reply_that_does_not_end(
    relay_to: MakeRelay, answering: Answering, stage: str, verdict: Verdict, piece: bytes
) -> None:
    """The time-out covers a whole reply, so a relay that drips bytes cannot hold a worker."""
    server = answering(**{stage: repeat(piece)})
    short = dict.fromkeys(TIMEOUTS, SHORT)

    assert send(relay_to(server, **short)).verdict is verdict


def test_the_dialogue_can_be_watched(
    relay_to: MakeRelay, sink: Sink, capsys: pytest.CaptureFixture[str]
) -> None:
    """MAIL_DEBUG prints both sides of the dialogue, with masked addresses and without the mail."""
    send(relay_to(sink, MAIL_DEBUG=True))

    seen = capsys.readouterr().err
    assert "mail from:<a***@example.com>" in seen.lower()
    assert "Hello" not in seen
    assert "250 2.0.0 Ok: queued as 1" in seen


# --- what must not change the outcome -----------------------------------------------------------


def test_the_line_dies_between_the_mail_and_the_reply(relay_to: MakeRelay, sink: Sink) -> None:
    """A connection that ends between the mail and its reply leaves the mail in doubt."""
    sink.faults.add(Fault("dot", ACCEPT_AND_DROP))

    outcome = send(relay_to(sink))

    assert (outcome.verdict, outcome.phase) == (Verdict.DOUBTFUL, Phase.DOT)
    assert len(sink.messages) == 1


def test_a_reply_that_is_late_is_a_reply(relay_to: MakeRelay, sink: Sink) -> None:
    """The reply to the final dot has a longer time-out, since giving up early makes duplicates."""
    sink.faults.add(Fault("dot", DELAY, delay=2 * SHORT))

    assert (
        send(relay_to(sink, MAILER_COMMAND_TIMEOUT=SHORT, MAILER_DATA_TIMEOUT=SHORT)).verdict
        is Verdict.SENT
    )


@pytest.mark.parametrize("action", [HANG, DROP, "421 4.3.2 closing", "500 5.5.1 what?"])
def test_a_quit_that_fails(
    relay_to: MakeRelay, sink: Sink, monkeypatch: pytest.MonkeyPatch, action: str
) -> None:
    """A failing QUIT changes no outcome and does not delay closing."""
    monkeypatch.setattr(Session, "courtesy_seconds", SHORT)
    sink.faults.add(Fault("quit", action, times=None))
    relay = relay_to(sink, MAIL_MAX_EMAILS=2)
    started = time.monotonic()

    assert [send(relay).verdict for _ in range(3)] == [Verdict.SENT] * 3
    relay.hang_up()

    assert time.monotonic() - started < LONG / 2
    assert sink.connections == 2


def test_a_receiver_of_the_signal_that_raises(relay_to: MakeRelay, sink: Sink) -> None:
    """A mail counts as sent even if a receiver of `email_dispatched` raises."""

    def fail(app: Flask, message: flask_mail.Message) -> None:
        raise RuntimeError("no disk for the statistics")

    with flask_mail.email_dispatched.connected_to(fail):
        assert send(relay_to(sink)).verdict is Verdict.SENT


def test_the_signal_tells_what_was_sent_to_whom(relay_to: MakeRelay, sink: Sink) -> None:
    """`email_dispatched` passes a Flask-Mail message for each recipient that the relay took."""
    heard: list[WireMessage] = []

    def hear(app: Flask, message: WireMessage) -> None:
        heard.append(message)

    sink.faults.add(Fault("rcpt", "550 5.1.1 no such user"))
    relay = relay_to(sink)
    with flask_mail.email_dispatched.connected_to(hear):
        send(relay, make_letter("nobody@example.com"))
        send(relay, letter := make_letter("eve@example.com"))

        with relay.connection() as connection:
            outcomes = connection.exchange(supply(letters := [make_letter() for _ in range(3)]))
            [*_two] = [next(outcomes), next(outcomes)]
            outcomes.close()  # type: ignore[attr-defined]  # it is a generator

    assert heard == [letter, *letters[:2]]
    assert isinstance(letter, flask_mail.Message)
    assert (letter.subject, letter.send_to) == ("Hello", {"eve@example.com"})
