"""Logging in to a relay: the choice of the mechanism, and the outcome of a refused login."""

import base64
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mailer.message import Outcome, Phase, Verdict
from mailer.smtp import Relay, login
from mailer.smtpd.faults import Fault
from tests.services.logins import PASSWORD, USER, LoginServer
from tests.services.relay import RawServer, make_relay, send
from tests.services.sink import Sink

MakeRelay = Callable[..., Relay]
Answering = Callable[..., RawServer]

ADA = (USER, PASSWORD)
LOGIN = {"MAIL_USERNAME": USER, "MAIL_PASSWORD": PASSWORD}


def relay_at(server: LoginServer, **config: Any) -> Relay:
    return make_relay(server.path, 25, **{**LOGIN, **config})


def outcome_at(server: LoginServer, **config: Any) -> Outcome:
    relay = relay_at(server, **config)
    outcome = send(relay)
    relay.hang_up()
    return outcome


# --- mechanisms ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offers", "tried"),
    [
        (["PLAIN"], ["PLAIN at once"]),
        (["LOGIN"], ["LOGIN"]),
        (["CRAM-MD5"], ["CRAM-MD5"]),
        (["LOGIN", "PLAIN"], ["PLAIN at once"]),
        (["LOGIN", "PLAIN", "CRAM-MD5", "XOAUTH2"], ["CRAM-MD5"]),
    ],
    ids=" ".join,
)
def test_the_best_mechanism_is_taken(tmp_path: Path, offers: list[str], tried: list[str]) -> None:
    """Without TLS, a mechanism that does not reveal the password is preferred."""
    with LoginServer(tmp_path, *offers) as server:
        assert outcome_at(server).verdict is Verdict.SENT
        assert server.tried == tried


def test_with_tls_the_simplest_mechanism_is_taken() -> None:
    """With TLS, PLAIN is preferred, since relays that store only hashes cannot check CRAM-MD5."""
    names = [mechanism.name for mechanism in login._mechanisms(*ADA, in_clear=False)]

    assert names == ["PLAIN", "LOGIN", "CRAM-MD5"]


def test_where_md5_is_forbidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where MD5 is disabled (FIPS), CRAM-MD5 is skipped and the next mechanism is used."""
    monkeypatch.setattr(login, "_knows_md5", lambda: False)
    with LoginServer(tmp_path, "CRAM-MD5", "LOGIN") as server:
        assert outcome_at(server).verdict is Verdict.SENT
        assert server.tried == ["LOGIN"]


@pytest.mark.parametrize("reply", ["504 5.5.4 unknown", "534 5.7.9 too weak", "535 5.7.8 no"])
def test_a_mechanism_that_is_offered_and_does_not_work(tmp_path: Path, reply: str) -> None:
    """If an offered mechanism is refused, the next one is tried."""
    with LoginServer(tmp_path, "CRAM-MD5", "PLAIN", refusals={"CRAM-MD5": reply}) as server:
        assert outcome_at(server).verdict is Verdict.SENT
        assert server.tried == ["CRAM-MD5", "PLAIN at once"]


@pytest.mark.parametrize(
    ("user", "password"), [("adá", "gehéim"), ("ada", "two words"), ("ada", "x" * 400)]
)
def test_any_name_and_password_can_be_said(
    answering: Answering, relay_to: MakeRelay, user: str, password: str
) -> None:
    """Credentials are sent in UTF-8 (RFC 4616), in a second line if they are too long for one."""
    server = answering(EHLO=b"250-relay\r\n250 AUTH PLAIN\r\n", AUTH=b"235 welcome\r\n")
    said = base64.b64encode(f"\0{user}\0{password}".encode())
    if len(said) > 500:
        server.replies.update({"AUTH": b"334 \r\n", said.decode().upper(): b"235 welcome\r\n"})

    assert (
        send(relay_to(server, MAIL_USERNAME=user, MAIL_PASSWORD=password)).verdict is Verdict.SENT
    )
    assert said.lower() in b"".join(server.heard)
    assert max(map(len, server.heard[:2])) <= 512


# --- refusals -----------------------------------------------------------------------------------


def test_login(relay_to: MakeRelay) -> None:
    """A relay that demands a login takes mail after it."""
    with Sink(credentials=ADA) as sink:
        relay = relay_to(sink, **LOGIN)

        assert [send(relay).verdict for _ in range(2)] == [Verdict.SENT] * 2


@pytest.mark.parametrize("password", ["wrong", "gehéim"])
@pytest.mark.parametrize("offers", [["PLAIN", "LOGIN"], ["LOGIN"], ["CRAM-MD5"]], ids=" ".join)
def test_a_wrong_password(tmp_path: Path, offers: list[str], password: str) -> None:
    """A wrong password is tried once, counts against no mail, and is not shown in the outcome."""
    with LoginServer(tmp_path, *offers) as server:
        outcome = outcome_at(server, MAIL_PASSWORD=password)

        assert (outcome.verdict, outcome.phase) == (Verdict.UNREACHED, Phase.CONNECT)
        assert (
            outcome.reply
            == "no connection to the relay: 535 5.7.8 Authentication credentials invalid"
        )
        assert (
            outcome.advice
            == "MAIL_USERNAME and MAIL_PASSWORD: the relay refuses this login: correct it."
        )
        assert len(server.tried) == 1
        assert server.mails == []


def test_a_login_that_does_not_work_for_now(relay_to: MakeRelay) -> None:
    """A temporary failure of the login keeps the relay's reply and gives no advice."""
    with Sink(credentials=ADA) as sink:
        sink.faults.add(Fault("auth", "454 4.7.0 the directory is down", times=None))

        outcome = send(relay_to(sink, **LOGIN))

        assert "454 4.7.0 the directory is down" in outcome.reply
        assert outcome.advice == ""


def test_a_relay_that_offers_no_login(relay_to: MakeRelay, sink: Sink) -> None:
    """If a login is configured but the relay offers none, the mail waits."""
    outcome = send(relay_to(sink, **LOGIN))

    assert (outcome.verdict, outcome.phase) == (Verdict.UNREACHED, Phase.CONNECT)
    assert "AUTH" in outcome.reply
    assert outcome.advice.startswith("MAIL_USERNAME: the relay offers no login that we know")


def test_a_relay_that_wants_a_login_we_do_not_have(relay_to: MakeRelay) -> None:
    """A 530 reply to MAIL is blamed on the configuration, not on the mail."""
    with Sink(credentials=ADA) as sink:
        outcome = send(relay_to(sink))

    assert (outcome.verdict, outcome.phase) == (Verdict.UNREACHED, Phase.MAIL)
    assert "530 5.7.0" in outcome.reply
    assert outcome.advice.startswith("MAIL_USERNAME and MAIL_PASSWORD: ")


@pytest.mark.parametrize("stage", ["MAIL", "AUTH"])
def test_a_relay_that_wants_tls_first(
    relay_to: MakeRelay, answering: Answering, stage: str
) -> None:
    """A relay that demands STARTTLS makes the advice name MAIL_USE_TLS."""
    wanted = b"530 5.7.0 Must issue a STARTTLS command first\r\n"
    server = answering(
        EHLO=b"250-relay\r\n250 AUTH PLAIN\r\n", **{"AUTH": b"235 welcome\r\n", stage: wanted}
    )

    assert send(relay_to(server, **LOGIN)).advice.startswith("MAIL_USE_TLS: ")


@pytest.mark.parametrize(("server", "warnings"), [("127.0.0.1", 0), ("localhost.localdomain", 1)])
def test_a_password_that_others_can_hear(
    relay_to: MakeRelay,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    server: str,
    warnings: int,
) -> None:
    """A login without TLS works, and is warned about once unless the relay is on this machine."""
    with Sink(credentials=ADA) as sink, caplog.at_level(logging.WARNING, "mailer.smtp"):
        monkeypatch.setattr(
            "socket.getaddrinfo", lambda *_: [(2, 1, 6, "", ("127.0.0.1", sink.port))]
        )
        relay = relay_to(sink, MAIL_SERVER=server, MAIL_MAX_EMAILS=1, **LOGIN)

        assert [send(relay).verdict for _ in range(3)] == [Verdict.SENT] * 3

    assert [record.message for record in caplog.records if record.name.startswith("mailer")] == [
        f"Login is sent without TLS: relay={server}:{sink.port}. Set MAIL_USE_TLS or MAIL_USE_SSL."
    ] * warnings
