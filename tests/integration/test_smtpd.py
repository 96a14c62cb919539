"""The inbox server over real sockets: receiving mail, and simulating a relay's faults."""

import smtplib
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from mailer.smtpd.faults import (
    ACCEPT_AND_DROP,
    BY_ADDRESS,
    CLOSE_AFTER_250,
    DELAY,
    DROP,
    HANG,
    Fault,
    Stage,
)
from mailer.smtpd.inbox import Inbox
from mailer.smtpd.server import InboxServer

MAIL = b"Subject: Hello\r\nMessage-ID: <1@example.com>\r\n\r\n.a dot\r\nGr\xc3\xbc\xc3\x9fe\r\n"


@pytest.fixture
def inbox(tmp_path: Path) -> Inbox:
    return Inbox(tmp_path / "inbox")


@pytest.fixture
def server(inbox: Inbox) -> Iterator[InboxServer]:
    with InboxServer(inbox.add) as server:
        yield server


def connect(server: InboxServer) -> smtplib.SMTP:
    return smtplib.SMTP(server.host, server.port, timeout=5)


def send(client: smtplib.SMTP, recipient: str = "bob@example.com") -> tuple[int, bytes]:
    """Send one mail, and return the reply to the final dot."""
    client.ehlo_or_helo_if_needed()
    client.rset()
    code, _ = client.mail("ada@example.com")
    assert code == 250
    code, text = client.rcpt(recipient)
    return client.data(MAIL) if code == 250 else (code, text)


def test_a_mail_is_kept_as_it_came_over_the_wire(server: InboxServer, inbox: Inbox) -> None:
    """The envelope and the exact bytes are kept, and the reply names the mail's id."""
    with connect(server) as client:
        code, text = send(client)

    (received,) = inbox.latest()
    assert (code, text.decode()) == (250, f"2.0.0 Ok: queued as {received.id}")
    assert (received.envelope_from, received.recipients, received.raw) == (
        "ada@example.com",
        ("bob@example.com",),
        MAIL,
    )
    assert inbox.get(received.id) == received


def test_an_empty_sender_is_taken(server: InboxServer, inbox: Inbox) -> None:
    """A mail with an empty sender is taken, since bounces have none."""
    with connect(server) as client:
        client.sendmail("", ["bob@example.com"], MAIL)

    assert inbox.latest()[0].envelope_from == ""


def test_a_connection_that_is_used_again_counts_once(server: InboxServer, inbox: Inbox) -> None:
    """`connections` counts a connection once, however many mails it carries."""
    with connect(server) as client:
        send(client)
        send(client)
    with connect(server) as client:
        send(client)

    assert (inbox.count(), server.connections) == (3, 2)


@pytest.mark.parametrize("stage", ["mail", "rcpt", "data", "dot"])
def test_a_reply_on_demand(server: InboxServer, inbox: Inbox, stage: Stage) -> None:
    """A fault gives its reply at its stage, as often as asked, and the mail is not taken."""
    server.faults.add(Fault(stage, "451 4.7.1 try later", times=2))
    with connect(server) as client:
        for _ in range(2):
            client.rset()
            with pytest.raises(
                (smtplib.SMTPResponseException, smtplib.SMTPRecipientsRefused),
                match=r"4\.7\.1 try later",
            ):
                client.sendmail("ada@example.com", ["bob@example.com"], MAIL)
        assert inbox.count() == 0
        assert send(client)[0] == 250


def test_a_refused_greeting(server: InboxServer) -> None:
    """A fault at stage `connect` replies and closes the connection."""
    server.faults.add(Fault("connect", "421 4.3.2 too busy"))

    with pytest.raises(smtplib.SMTPConnectError, match="too busy"):
        connect(server)


def test_a_refused_hello(server: InboxServer) -> None:
    """A fault at stage `ehlo` applies to HELO as well."""
    server.faults.add(Fault("ehlo", "550 5.7.1 not you", times=2))

    with connect(server) as client, pytest.raises(smtplib.SMTPHeloError, match="not you"):
        client.ehlo_or_helo_if_needed()


def test_a_421_closes_the_connection(server: InboxServer) -> None:
    """The server closes the connection after a 421 reply."""
    server.faults.add(Fault("mail", "421 4.3.0 shutting down"))
    with connect(server) as client:
        client.ehlo()
        assert client.mail("ada@example.com")[0] == 421
        with pytest.raises(smtplib.SMTPServerDisconnected):
            client.noop()


@pytest.mark.parametrize("stage", ["connect", "ehlo", "mail", "rcpt", "data", "dot"])
def test_drop(server: InboxServer, inbox: Inbox, stage: Stage) -> None:
    """DROP closes the connection instead of replying, at every stage."""
    server.faults.add(Fault(stage, DROP))
    with (
        pytest.raises((smtplib.SMTPServerDisconnected, ConnectionError)),
        connect(server) as client,
    ):
        send(client)

    assert inbox.count() == 0


@pytest.mark.parametrize("stage", ["connect", "ehlo", "mail", "rcpt", "data", "dot"])
def test_hang(server: InboxServer, inbox: Inbox, stage: Stage) -> None:
    """HANG never replies, and blocks neither other connections nor `stop()`."""
    server.faults.add(Fault(stage, HANG))
    with pytest.raises(smtplib.SMTPServerDisconnected, match="timed out"):
        send(smtplib.SMTP(server.host, server.port, timeout=0.1))
    with connect(server) as other:
        send(other)
        server.stop()

    assert inbox.count() == 1


def test_accept_and_drop(server: InboxServer, inbox: Inbox) -> None:
    """ACCEPT_AND_DROP keeps the mail and closes the connection without a reply."""
    server.faults.add(Fault("dot", ACCEPT_AND_DROP))
    with (
        pytest.raises((smtplib.SMTPServerDisconnected, ConnectionError)),
        connect(server) as client,
    ):
        send(client)

    assert inbox.count() == 1


def test_close_after_250(server: InboxServer, inbox: Inbox) -> None:
    """CLOSE_AFTER_250 keeps the mail, replies and closes the connection."""
    server.faults.add(Fault("dot", CLOSE_AFTER_250))
    with connect(server) as client:
        assert send(client)[0] == 250
        with pytest.raises(smtplib.SMTPServerDisconnected):
            client.noop()

    assert inbox.count() == 1


def test_a_quit_that_fails(server: InboxServer, inbox: Inbox) -> None:
    """A fault at stage `quit` comes after the mail was taken."""
    server.faults.add(Fault("quit", DROP))
    client = connect(server)
    send(client)
    with pytest.raises((smtplib.SMTPServerDisconnected, ConnectionError)):
        client.quit()

    assert inbox.count() == 1


def test_a_fault_for_one_recipient(server: InboxServer) -> None:
    """A fault with a recipient does not affect other recipients."""
    server.faults.add(
        Fault("rcpt", "550 5.1.1 no such user", recipient="bob@example.com", times=None)
    )
    with connect(server) as client:
        assert send(client, "ada@example.com")[0] == 250
        assert send(client, "bob@example.com")[0] == 550


def test_faults_can_be_asked_for_by_address(inbox: Inbox) -> None:
    """With `BY_ADDRESS`, the recipient's address selects the fault, every time."""
    with InboxServer(inbox.add, faults=BY_ADDRESS) as server, connect(server) as client:
        assert [send(client, "450@fault.example")[0] for _ in range(2)] == [450, 450]
        assert send(client, "550@fault.example")[0] == 550
        assert send(client, "bob@example.com")[0] == 250


def test_auth(inbox: Inbox) -> None:
    """With credentials the server demands a login; without them it offers no AUTH."""
    with InboxServer(inbox.add, credentials=("ada", "secret")) as server:
        with connect(server) as client:
            client.ehlo()
            assert client.mail("ada@example.com")[0] == 530
            with pytest.raises(smtplib.SMTPAuthenticationError):
                client.login("ada", "wrong")
            client.login("ada", "secret")
            assert send(client)[0] == 250
        server.faults.add(Fault("auth", "454 4.7.0 no directory", times=None))
        with (
            connect(server) as client,
            pytest.raises(smtplib.SMTPAuthenticationError, match="no directory"),
        ):
            client.login("ada", "secret")
    with InboxServer(inbox.add) as server, connect(server) as client:
        client.ehlo()
        assert not client.has_extn("auth")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a self-signed certificate for "localhost", with its key in the same file."""
    directory = tmp_path_factory.mktemp("tls")
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    files = ["-keyout", str(directory / "key.pem"), "-out", str(directory / "cert.pem")]
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", *subject, *files],
        check=True,
        capture_output=True,
    )
    both = directory / "both.pem"
    both.write_text((directory / "key.pem").read_text() + (directory / "cert.pem").read_text())
    return both


def server_context(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


def test_starttls(inbox: Inbox, certificate: Path) -> None:
    """A server with TLS demands STARTTLS, and offers AUTH only after it."""
    trusting = ssl.create_default_context(cafile=str(certificate))
    with InboxServer(
        inbox.add, tls=server_context(certificate), credentials=("ada", "secret")
    ) as server:
        with smtplib.SMTP("localhost", server.port, timeout=5) as client:
            client.ehlo()
            assert client.mail("ada@example.com")[0] == 530
            assert not client.has_extn("auth")
            client.starttls(context=trusting)
            client.login("ada", "secret")
            assert send(client)[0] == 250
        assert server.connections == 1


def test_implicit_tls(inbox: Inbox, certificate: Path) -> None:
    """With implicit TLS the greeting is already encrypted."""
    trusting = ssl.create_default_context(cafile=str(certificate))
    with (
        InboxServer(
            inbox.add,
            tls=server_context(certificate),
            implicit_tls=True,
            credentials=("ada", "secret"),
        ) as server,
        smtplib.SMTP_SSL("localhost", server.port, timeout=5, context=trusting) as client,
    ):
        client.login("ada", "secret")
        assert send(client)[0] == 250


def test_a_client_that_does_not_trust_the_certificate(inbox: Inbox, certificate: Path) -> None:
    """A failed STARTTLS handshake does not affect other clients."""
    with InboxServer(inbox.add, tls=server_context(certificate)) as server:
        with (
            smtplib.SMTP("localhost", server.port, timeout=5) as client,
            pytest.raises(ssl.SSLCertVerificationError),
        ):
            client.starttls(context=ssl.create_default_context())
        with connect(server) as other:
            assert other.noop()[0] == 250


def test_a_client_that_does_not_trust_the_certificate_of_implicit_tls(
    inbox: Inbox, certificate: Path
) -> None:
    """A failed handshake of implicit TLS does not affect other clients."""
    with InboxServer(inbox.add, tls=server_context(certificate), implicit_tls=True) as server:
        with pytest.raises(ssl.SSLCertVerificationError):
            smtplib.SMTP_SSL(
                "localhost", server.port, timeout=5, context=ssl.create_default_context()
            )
        trusting = ssl.create_default_context(cafile=str(certificate))
        with smtplib.SMTP_SSL("localhost", server.port, timeout=5, context=trusting) as other:
            assert other.noop()[0] == 250


def test_a_delay(server: InboxServer, inbox: Inbox) -> None:
    """DELAY replies after the given time."""
    server.faults.add(Fault("dot", DELAY, delay=0.05))
    with connect(server) as client:
        assert send(client)[0] == 250


def test_stop_leaves_no_thread_and_frees_the_port(inbox: Inbox) -> None:
    """A stopped server leaves no thread and frees its port, even with clients connected."""
    before = threading.active_count()
    with InboxServer(inbox.add) as server:
        idle = socket.create_connection((server.host, server.port))
    idle.close()

    assert threading.active_count() == before
    with InboxServer(inbox.add, port=server.port):
        pass


def test_a_port_in_use_is_an_error_at_start(server: InboxServer, inbox: Inbox) -> None:
    """A port in use raises an error in the caller's thread."""
    with pytest.raises(OSError, match="in use"):
        InboxServer(inbox.add, port=server.port).start()


def test_mail_that_cannot_be_kept_is_refused_for_now() -> None:
    """A mail that cannot be stored gets a temporary error with the reason."""

    def full(sender: str, recipients: list[str], raw: bytes) -> str:
        raise OSError("disk full")

    with InboxServer(full) as server, connect(server) as client:
        code, text = send(client)

    assert (code, b"disk full" in text) == (451, True)
