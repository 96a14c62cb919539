"""Who the relay is, and who we are: TLS is verified or there is no mail, and a wrong password is no mail's fault."""

import ssl
import subprocess
from collections.abc import Callable
from itertools import chain, repeat
from pathlib import Path

import pytest

from mailer.devstack.faults import Fault
from mailer.message import Phase, Verdict
from mailer.smtp import Relay
from tests.services.relay import SHORT, RawServer, send
from tests.services.requirement import find_program, require
from tests.services.sink import Sink

MakeRelay = Callable[..., Relay]
Answering = Callable[..., RawServer]

ADA = ("ada", "secret")
LOGIN = {"MAIL_USERNAME": "ada", "MAIL_PASSWORD": "secret"}
both_ways = pytest.mark.parametrize("way", ["MAIL_USE_TLS", "MAIL_USE_SSL"])


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The relay's certificate, its own authority, for the name localhost; the key is beside it."""
    openssl = require("OpenSSL", find_program("openssl"))
    folder = tmp_path_factory.mktemp("tls")
    certificate = folder / "cert.pem"
    files = ["-keyout", str(folder / "key.pem"), "-out", str(certificate)]
    named = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    command = [str(openssl), "req", "-x509", "-newkey", "rsa:2048", "-nodes", *named, *files]
    subprocess.run(command, check=True, capture_output=True)
    return certificate


def secure_sink(certificate: Path, way: str) -> Sink:
    """A relay that takes mail over TLS only, and only after the login."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, certificate.with_name("key.pem"))
    return Sink(tls=context, implicit_tls=way == "MAIL_USE_SSL", credentials=ADA)


# --- TLS --------------------------------------------------------------------------------------------------------------


@both_ways
def test_tls(relay_to: MakeRelay, certificate: Path, way: str) -> None:
    """With an authority of one's own; the connection stays warm as any other."""
    with secure_sink(certificate, way) as sink:
        relay = relay_to(sink, MAIL_SERVER="localhost", **{way: True}, MAILER_TLS_CA_FILE=str(certificate), **LOGIN)

        assert [send(relay).verdict for _ in range(3)] == [Verdict.SENT] * 3
        assert (len(sink.messages), sink.connections) == (3, 1)


@both_ways
def test_an_unknown_authority_is_refused(relay_to: MakeRelay, certificate: Path, way: str) -> None:
    """Whoever it is, it gets neither password nor mail; the mail waits until somebody has mended that."""
    with secure_sink(certificate, way) as sink:
        outcome = send(relay_to(sink, MAIL_SERVER="localhost", **{way: True}, **LOGIN))

        assert (outcome.verdict, outcome.phase) == (Verdict.UNREACHED, Phase.CONNECT)
        assert "CERTIFICATE_VERIFY_FAILED" in outcome.reply
        assert sink.messages == []


@both_ways
def test_a_certificate_for_another_name_is_refused(relay_to: MakeRelay, certificate: Path, way: str) -> None:
    """A valid certificate of somebody else proves nothing."""
    with secure_sink(certificate, way) as sink:
        outcome = send(relay_to(sink, MAIL_SERVER="127.0.0.1", **{way: True}, MAILER_TLS_CA_FILE=str(certificate), **LOGIN))

        assert (outcome.verdict, outcome.phase) == (Verdict.UNREACHED, Phase.CONNECT)
        assert "127.0.0.1" in outcome.reply
        assert sink.messages == []


def test_no_starttls_no_mail(relay_to: MakeRelay, answering: Answering) -> None:
    """Somebody in between may have stripped it: nothing is said in clear, the password least of all."""
    server = answering(EHLO=b"250-relay\r\n250 AUTH PLAIN\r\n")

    outcome = send(relay_to(server, MAIL_USE_TLS=True, **LOGIN))

    assert (outcome.verdict, outcome.phase) == (Verdict.UNREACHED, Phase.CONNECT)
    assert "STARTTLS" in outcome.reply
    assert [line[:4] for line in server.heard] == [b"ehlo"]


@pytest.mark.parametrize("reply", [b"454 4.7.0 not now\r\n", b"what?\r\n", b"220 go on\r\nbut not in TLS\r\n"])
def test_a_starttls_that_fails(relay_to: MakeRelay, answering: Answering, reply: bytes) -> None:
    """Nor does anything go in clear when it was offered and does not work."""
    server = answering(EHLO=b"250-relay\r\n250 STARTTLS\r\n", STARTTLS=reply)

    outcome = send(relay_to(server, MAIL_USE_TLS=True, MAILER_COMMAND_TIMEOUT=SHORT, **LOGIN))

    assert (outcome.verdict, outcome.phase) == (Verdict.UNREACHED, Phase.CONNECT)
    assert b"auth" not in b"".join(server.heard).lower()


def test_a_silent_handshake(relay_to: MakeRelay, answering: Answering) -> None:
    """It has a time-out as every other wait."""
    upgrading = answering(EHLO=b"250-relay\r\n250 STARTTLS\r\n", STARTTLS=chain([b"220 go on\r\n"], repeat(b"")))
    silent = answering(greeting=repeat(b""))

    outcomes = [
        send(relay_to(upgrading, MAIL_USE_TLS=True, MAILER_COMMAND_TIMEOUT=SHORT)),
        send(relay_to(silent, MAIL_USE_SSL=True, MAILER_CONNECT_TIMEOUT=SHORT)),
    ]

    assert [outcome.verdict for outcome in outcomes] == [Verdict.UNREACHED] * 2


# --- login ------------------------------------------------------------------------------------------------------------


def test_login(relay_to: MakeRelay) -> None:
    """Once a connection."""
    with Sink(credentials=ADA) as sink:
        relay = relay_to(sink, **LOGIN)

        assert [send(relay).verdict for _ in range(2)] == [Verdict.SENT] * 2


@pytest.mark.parametrize("password", ["wrong", "gehéim"])
def test_a_wrong_password(relay_to: MakeRelay, password: str) -> None:
    """It must not fail ten thousand mails; and it is not shown to those who read the outcome."""
    with Sink(credentials=ADA) as sink:
        relay = relay_to(sink, MAIL_USERNAME="ada", MAIL_PASSWORD=password)
        outcome = send(relay)

        assert (outcome.verdict, outcome.phase) == (Verdict.UNREACHED, Phase.CONNECT)
        assert relay.is_resting
        assert password not in outcome.reply
        assert sink.messages == []


def test_a_login_that_does_not_work_for_now(relay_to: MakeRelay) -> None:
    """The relay's own words are kept."""
    with Sink(credentials=ADA) as sink:
        sink.faults.add(Fault("auth", "454 4.7.0 the directory is down", times=None))

        assert "454 4.7.0 the directory is down" in send(relay_to(sink, **LOGIN)).reply


def test_a_relay_that_offers_no_login(relay_to: MakeRelay, sink: Sink) -> None:
    """Configured to log in, and not let in, is not configured: the mail waits."""
    outcome = send(relay_to(sink, **LOGIN))

    assert (outcome.verdict, outcome.phase) == (Verdict.UNREACHED, Phase.CONNECT)
    assert "AUTH" in outcome.reply


def test_a_relay_that_wants_a_login_we_do_not_have(relay_to: MakeRelay) -> None:
    """The same the other way round: 530 at MAIL is about us, not about the mail."""
    with Sink(credentials=ADA) as sink:
        outcome = send(relay_to(sink))

    assert (outcome.verdict, outcome.phase) == (Verdict.UNREACHED, Phase.MAIL)
    assert "530 5.7.0" in outcome.reply
