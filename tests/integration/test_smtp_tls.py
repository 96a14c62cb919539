"""TLS: a relay whose certificate cannot be verified gets neither password nor mail."""

import socket
import ssl
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import pytest

from mailer.message import Outcome, Phase, Verdict
from mailer.smtp import Relay
from tests.services.certificates import make_certificate, server_context
from tests.services.relay import SHORT, RawServer, make_letter, make_relay, send
from tests.services.sink import Sink

MakeRelay = Callable[..., Relay]
Answering = Callable[..., RawServer]

ADA = ("ada", "secret")
LOGIN = {"MAIL_USERNAME": "ada", "MAIL_PASSWORD": "secret"}
both_ways = pytest.mark.parametrize("way", ["MAIL_USE_TLS", "MAIL_USE_SSL"])


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the relay's self-signed certificate for localhost."""
    return make_certificate(tmp_path_factory.mktemp("tls") / "relay.pem")


@contextmanager
def secure_sink(certificate: Path, way: str, **changes: Any) -> Iterator[Sink]:
    """Run a relay that takes mail over TLS only, and only after the login."""
    context = server_context(certificate)
    for name, value in changes.items():
        setattr(context, name, value)
    with Sink(tls=context, implicit_tls=way == "MAIL_USE_SSL", credentials=ADA) as sink:
        yield sink


def trusting(certificate: Path, way: str, **config: Any) -> dict[str, Any]:
    return {
        "MAIL_SERVER": "localhost",
        way: True,
        "MAILER_TLS_CA_FILE": str(certificate),
        **LOGIN,
        **config,
    }


def is_turned_away(outcome: Outcome) -> bool:
    return (outcome.verdict, outcome.phase) == (Verdict.UNREACHED, Phase.CONNECT)


# --- what is verified ---------------------------------------------------------------------------


@both_ways
def test_tls(relay_to: MakeRelay, certificate: Path, way: str) -> None:
    """A relay whose authority is configured gets mail over TLS, over one kept connection."""
    with secure_sink(certificate, way) as sink:
        relay = relay_to(sink, **trusting(certificate, way))

        assert [send(relay).verdict for _ in range(3)] == [Verdict.SENT] * 3
        assert (len(sink.messages), sink.connections) == (3, 1)


@both_ways
def test_an_unknown_authority_is_refused(relay_to: MakeRelay, certificate: Path, way: str) -> None:
    """A certificate of an unknown authority is refused before login and mail."""
    with secure_sink(certificate, way) as sink:
        outcome = send(relay_to(sink, MAIL_SERVER="localhost", **{way: True}, **LOGIN))

        assert is_turned_away(outcome)
        assert "CERTIFICATE_VERIFY_FAILED" in outcome.reply
        assert outcome.advice.startswith("MAILER_TLS_CA_FILE: no known authority")
        assert sink.messages == []


@both_ways
def test_another_authority_is_refused(
    relay_to: MakeRelay, certificate: Path, tmp_path: Path, way: str
) -> None:
    """If MAILER_TLS_CA_FILE holds another authority, the advice names that file."""
    other = make_certificate(tmp_path / "other.pem", "example.com")
    with secure_sink(certificate, way) as sink:
        outcome = send(relay_to(sink, **trusting(other, way)))

        assert is_turned_away(outcome)
        assert outcome.advice == (
            f"MAILER_TLS_CA_FILE: none of the authorities in {str(other)!r}"
            " has signed the relay's certificate."
        )


@both_ways
def test_a_certificate_for_another_name_is_refused(
    relay_to: MakeRelay, certificate: Path, way: str
) -> None:
    """A valid certificate for another name is refused."""
    with secure_sink(certificate, way) as sink:
        outcome = send(relay_to(sink, **trusting(certificate, way, MAIL_SERVER="127.0.0.1")))

        assert is_turned_away(outcome)
        assert "127.0.0.1" in outcome.reply
        assert outcome.advice.startswith(
            "MAIL_SERVER: the relay's certificate is not for '127.0.0.1'"
        )
        assert sink.messages == []


@both_ways
def test_a_certificate_that_is_over_is_refused(
    relay_to: MakeRelay, tmp_path: Path, way: str
) -> None:
    """An expired certificate is refused, and the advice says so."""
    expired = make_certificate(tmp_path / "expired.pem", days=-1)
    with secure_sink(expired, way) as sink:
        outcome = send(relay_to(sink, **trusting(expired, way)))

        assert is_turned_away(outcome)
        assert outcome.advice.startswith("The relay's certificate is not valid at this time")


@both_ways
@pytest.mark.parametrize(("minimum", "is_taken"), [("TLSv1.2", True), ("TLSv1.3", False)])
def test_the_oldest_version(
    relay_to: MakeRelay, certificate: Path, way: str, minimum: str, is_taken: bool
) -> None:
    """A relay whose TLS version is below MAILER_TLS_MINIMUM gets no mail."""
    with secure_sink(certificate, way, maximum_version=ssl.TLSVersion.TLSv1_2) as sink:
        outcome = send(relay_to(sink, **trusting(certificate, way, MAILER_TLS_MINIMUM=minimum)))

        assert (outcome.verdict is Verdict.SENT) is is_taken


def test_a_relay_that_says_that_its_version_is_older(certificate: Path) -> None:
    """A relay that answers with a version alert makes the advice name MAILER_TLS_MINIMUM."""
    context = server_context(certificate)
    context.maximum_version = ssl.TLSVersion.TLSv1_2

    def shake_hands(listener: socket.socket) -> None:
        client, _ = listener.accept()
        with client, suppress(ssl.SSLError):
            context.wrap_socket(client, server_side=True)

    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as threads:
        threads.submit(shake_hands, listener)
        config = trusting(certificate, "MAIL_USE_SSL", MAILER_TLS_MINIMUM="TLSv1.3")
        outcome = send(
            make_relay(**{"host": "localhost", "port": listener.getsockname()[1], **config})
        )

    assert outcome.advice.startswith("MAILER_TLS_MINIMUM: the relay speaks no TLSv1.3")


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1 is deprecated:DeprecationWarning")
@pytest.mark.parametrize(("minimum", "is_taken"), [("TLSv1", True), ("TLSv1.2", False)])
def test_an_old_relay(relay_to: MakeRelay, certificate: Path, minimum: str, is_taken: bool) -> None:
    """A relay with TLS 1.0 gets mail only if MAILER_TLS_MINIMUM allows that version."""
    context = server_context(certificate)
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    with Sink(tls=context, implicit_tls=True, credentials=ADA) as sink:
        outcome = send(
            relay_to(sink, **trusting(certificate, "MAIL_USE_SSL", MAILER_TLS_MINIMUM=minimum))
        )

        assert (outcome.verdict is Verdict.SENT) is is_taken


@both_ways
def test_a_relay_that_wants_to_see_a_certificate(
    relay_to: MakeRelay, certificate: Path, tmp_path: Path, way: str
) -> None:
    """A relay that demands a client certificate gets that of MAILER_TLS_CLIENT_CERT."""
    ours = make_certificate(tmp_path / "ours.pem", "client.example.com")
    context = server_context(certificate)
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(ours)
    with Sink(tls=context, implicit_tls=way == "MAIL_USE_SSL", credentials=ADA) as sink:
        given = trusting(certificate, way)

        assert send(relay_to(sink, **given)).verdict is Verdict.UNREACHED
        assert (
            send(relay_to(sink, **given, MAILER_TLS_CLIENT_CERT=str(ours))).verdict is Verdict.SENT
        )


@both_ways
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_second_connection_shakes_hands_faster(
    relay_to: MakeRelay, certificate: Path, way: str, version: ssl.TLSVersion
) -> None:
    """A second connection resumes the TLS session of the first one."""
    with secure_sink(certificate, way, maximum_version=version) as sink:
        relay = relay_to(sink, **trusting(certificate, way, MAIL_MAX_EMAILS=1))
        resumed = []
        for _ in range(3):
            with relay.connection() as connection:
                assert connection.try_open() is None
                assert connection.host is not None
                assert isinstance(connection.host.sock, ssl.SSLSocket)
                resumed.append(connection.host.sock.session_reused)
                assert connection.send(make_letter()).verdict is Verdict.SENT

    assert resumed == [False, True, True]


# --- a relay without TLS ------------------------------------------------------------------------


def test_no_starttls_no_mail(relay_to: MakeRelay, answering: Answering) -> None:
    """Without an offer of STARTTLS nothing is sent in clear, as an attacker may have removed it."""
    server = answering(EHLO=b"250-relay\r\n250 AUTH PLAIN\r\n")

    outcome = send(relay_to(server, MAIL_USE_TLS=True, **LOGIN))

    assert is_turned_away(outcome)
    assert "STARTTLS" in outcome.reply
    assert outcome.advice.startswith(
        f"MAIL_USE_TLS: the relay offers no STARTTLS on port {server.port}"
    )
    assert [line[:4] for line in server.heard] == [b"ehlo"]


@pytest.mark.parametrize(
    "reply", [b"454 4.7.0 not now\r\n", b"what?\r\n", b"220 go on\r\nbut not in TLS\r\n"]
)
def test_a_starttls_that_fails(relay_to: MakeRelay, answering: Answering, reply: bytes) -> None:
    """A STARTTLS that fails sends nothing in clear either."""
    server = answering(EHLO=b"250-relay\r\n250 STARTTLS\r\n", STARTTLS=reply)

    outcome = send(relay_to(server, MAIL_USE_TLS=True, MAILER_COMMAND_TIMEOUT=SHORT, **LOGIN))

    assert is_turned_away(outcome)
    assert b"auth" not in b"".join(server.heard).lower()


def test_words_slipped_in_before_tls_are_found(certificate: Path) -> None:
    """Replies injected before the TLS handshake are detected and refused."""

    def be_in_between(listener: socket.socket) -> None:
        client, _ = listener.accept()
        with client, suppress(OSError):
            for reply in (
                b"220 relay\r\n",
                b"250-relay\r\n250 STARTTLS\r\n",
                b"220 go on\r\n250-relay\r\n250 AUTH PLAIN\r\n",
            ):
                client.sendall(reply)
                client.recv(1000)
            with server_context(certificate).wrap_socket(client, server_side=True) as secure:
                secure.recv(1000)

    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as threads:
        threads.submit(be_in_between, listener)
        config = trusting(certificate, "MAIL_USE_TLS", MAIL_PORT=listener.getsockname()[1])
        outcome = send(make_relay("localhost", 25, **config))

    assert is_turned_away(outcome)
    assert "somebody may be intercepting" in outcome.reply


def test_what_was_offered_before_tls_counts_for_nothing(
    relay_to: MakeRelay, certificate: Path
) -> None:
    """Extensions that were offered before TLS are forgotten after the handshake."""
    with secure_sink(certificate, "MAIL_USE_TLS") as sink:
        relay = relay_to(sink, **trusting(certificate, "MAIL_USE_TLS"))
        with relay.connection() as connection:
            assert connection.try_open() is None
            assert connection.host is not None
            assert not connection.host.has_extn("starttls")
            assert connection.host.has_extn("auth")


def test_tls_from_the_first_byte_to_a_port_without_it(
    relay_to: MakeRelay, answering: Answering
) -> None:
    """MAIL_USE_SSL with a port that does not begin with TLS makes the advice say so."""
    outcome = send(relay_to(server := answering(), MAIL_USE_SSL=True))

    assert is_turned_away(outcome)
    assert outcome.advice.startswith(
        f"MAIL_USE_SSL: port {server.port} of the relay does not begin with TLS"
    )


def test_a_silent_handshake(relay_to: MakeRelay, answering: Answering) -> None:
    """A TLS handshake that gets no answer ends with a time-out."""
    upgrading = answering(
        EHLO=b"250-relay\r\n250 STARTTLS\r\n", STARTTLS=chain([b"220 go on\r\n"], repeat(b""))
    )
    silent = answering(greeting=repeat(b""))

    outcomes = [
        send(relay_to(upgrading, MAIL_USE_TLS=True, MAILER_COMMAND_TIMEOUT=SHORT)),
        send(relay_to(silent, MAIL_USE_SSL=True, MAILER_CONNECT_TIMEOUT=SHORT)),
    ]

    assert [outcome.verdict for outcome in outcomes] == [Verdict.UNREACHED] * 2
