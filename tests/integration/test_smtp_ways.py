"""Other routes to a relay: proxies, source addresses, Unix sockets and LMTP."""

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.lmtp import LMTP

from mailer.message import Outcome, Phase, Verdict
from mailer.settings import Settings
from mailer.smtp import Relay
from tests.services.logins import LoginServer
from tests.services.proxies import ProxyServer
from tests.services.relay import SHORT, RawServer, make_letter, make_relay, send, supply
from tests.services.script import ScriptedRelay
from tests.services.sink import Sink

MakeRelay = Callable[..., Relay]
Answering = Callable[..., RawServer]


def is_turned_away(outcome: Outcome) -> bool:
    return (outcome.verdict, outcome.phase) == (Verdict.UNREACHED, Phase.CONNECT)


# --- proxies ------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["socks5", "socks5h", "socks4", "http"])
def test_through_a_proxy(relay_to: MakeRelay, sink: Sink, scheme: str) -> None:
    """Mail goes through the proxy of MAILER_PROXY, with each protocol."""
    with ProxyServer() as proxy:
        relay = relay_to(sink, MAILER_PROXY=f"{scheme}://{proxy.host}:{proxy.port}")

        assert [send(relay).verdict for _ in range(2)] == [Verdict.SENT] * 2
        relay.hang_up()

    assert proxy.asked == [(scheme.rstrip("h"), "127.0.0.1", sink.port)]


@pytest.mark.parametrize("scheme", ["socks5", "http"])
@pytest.mark.parametrize("password", ["se:cret", "wrong"])
def test_a_proxy_that_wants_a_login(
    relay_to: MakeRelay, sink: Sink, scheme: str, password: str
) -> None:
    """A proxy's login comes from its URL; a wrong one gives advice and is not shown."""
    with ProxyServer(credentials=("ada", "se:cret")) as proxy:
        said = password.replace(":", "%3A")
        relay = relay_to(sink, MAILER_PROXY=f"{scheme}://ada:{said}@{proxy.host}:{proxy.port}")
        outcome = send(relay)
        relay.hang_up()

    if password == "wrong":
        assert is_turned_away(outcome)
        assert outcome.advice.startswith(
            f"MAILER_PROXY: the proxy 127.0.0.1:{proxy.port} refuses this"
        )
        assert "wrong" not in outcome.reply + outcome.advice
    else:
        assert outcome.verdict is Verdict.SENT


@pytest.mark.parametrize(
    ("scheme", "refusal", "is_ours"),
    [("socks5", 2, True), ("socks5", 5, False), ("http", 403, True), ("http", 503, False)],
)
def test_a_proxy_that_does_not_connect_us(
    relay_to: MakeRelay, sink: Sink, scheme: str, refusal: int, is_ours: bool
) -> None:
    """A proxy's refusal gives advice only if the configuration has to be changed."""
    with ProxyServer() as proxy:
        proxy.refusal = refusal
        outcome = send(relay_to(sink, MAILER_PROXY=f"{scheme}://{proxy.host}:{proxy.port}"))

    assert is_turned_away(outcome)
    assert f"the proxy 127.0.0.1:{proxy.port} does not connect us" in outcome.reply
    assert bool(outcome.advice) is is_ours


@pytest.mark.parametrize("scheme", ["socks5", "socks4", "http"])
def test_a_proxy_that_does_not_come_to_an_end(relay_to: MakeRelay, sink: Sink, scheme: str) -> None:
    """The connect time-out covers the whole dialogue with the proxy."""
    with ProxyServer() as proxy:
        proxy.drips = True
        outcome = send(
            relay_to(
                sink,
                MAILER_PROXY=f"{scheme}://{proxy.host}:{proxy.port}",
                MAILER_CONNECT_TIMEOUT=SHORT,
            )
        )

        assert is_turned_away(outcome)


def test_a_proxy_that_is_gone(relay_to: MakeRelay, sink: Sink) -> None:
    """A proxy that is down is named in the reply, so that nobody suspects the relay."""
    with ProxyServer() as proxy:
        pass

    outcome = send(relay_to(sink, MAILER_PROXY=f"socks5://{proxy.host}:{proxy.port}"))

    assert is_turned_away(outcome)
    assert f"the proxy 127.0.0.1:{proxy.port}: Connection refused" in outcome.reply


@pytest.mark.parametrize(
    ("scheme", "is_found"), [("socks5h", True), ("http", True), ("socks5", False)]
)
def test_who_asks_the_dns(relay_to: MakeRelay, sink: Sink, scheme: str, is_found: bool) -> None:
    """The proxy resolves the relay's name with socks5h and http, and we do with socks5."""
    with ProxyServer() as proxy:
        relay = relay_to(
            sink, MAIL_SERVER="relay.internal", MAILER_PROXY=f"{scheme}://{proxy.host}:{proxy.port}"
        )
        outcome = send(relay)
        relay.hang_up()

    assert (outcome.verdict is Verdict.SENT) is is_found
    assert ("socks5h://" in outcome.advice) is not is_found


def settings_in(environ: dict[str, str], **config: Any) -> Settings:
    return Settings.load(
        {"MAIL_SERVER": "smtp.example.com", **config}, environ, default_database_url="sqlite://"
    )


@pytest.mark.parametrize(
    ("environ", "config", "used"),
    [
        ({}, {}, None),
        ({"ALL_PROXY": "socks5://proxy:1080"}, {}, "socks5://proxy:1080"),
        ({"all_proxy": "http://proxy:3128"}, {}, "http://proxy:3128"),
        ({"ALL_PROXY": "socks5://proxy:1080"}, {"MAILER_PROXY": "none"}, None),
        (
            {"ALL_PROXY": "socks5://proxy:1080"},
            {"MAILER_PROXY": "http://other:3128"},
            "http://other:3128",
        ),
        ({"ALL_PROXY": "socks5://proxy:1080"}, {"MAIL_SERVER": "localhost"}, None),
        ({"ALL_PROXY": "socks5://proxy:1080"}, {"MAIL_SERVER": "127.0.0.2"}, None),
        ({"ALL_PROXY": "socks5://proxy:1080"}, {"MAIL_SERVER": "/run/relay.sock"}, None),
        (
            {},
            {"MAIL_SERVER": "127.0.0.2", "MAILER_PROXY": "http://other:3128"},
            "http://other:3128",
        ),
        ({"ALL_PROXY": "socks5://proxy:1080", "NO_PROXY": "localhost, example.com"}, {}, None),
        ({"ALL_PROXY": "socks5://proxy:1080", "no_proxy": ".example.com"}, {}, None),
        ({"ALL_PROXY": "socks5://proxy:1080", "NO_PROXY": "*"}, {}, None),
        (
            {"ALL_PROXY": "socks5://proxy:1080", "NO_PROXY": "ample.com,other.example"},
            {},
            "socks5://proxy:1080",
        ),
        (
            {"ALL_PROXY": "socks5://proxy:1080", "NO_PROXY": "192.0.2.0/24"},
            {"MAIL_SERVER": "192.0.2.7"},
            None,
        ),
        (
            {"ALL_PROXY": "socks5://proxy:1080", "NO_PROXY": "192.0.2.0/24"},
            {"MAIL_SERVER": "192.0.3.7"},
            "socks5://proxy:1080",
        ),
    ],
)
def test_the_proxy_of_the_environment(
    environ: dict[str, str], config: dict[str, str], used: str | None
) -> None:
    """ALL_PROXY and NO_PROXY apply to remote relays unless MAILER_PROXY is set."""
    settings = settings_in(environ, **config)
    entry = {"name": "first", "MAIL_SERVER": settings.mail_server}
    [listed] = settings_in(environ, **config, MAILER_RELAYS=[entry]).relays

    assert settings.proxy_to_use == listed.proxy_to_use == used


def test_a_proxy_of_the_environment_that_is_no_good(
    relay_to: MakeRelay, sink: Sink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bad ALL_PROXY does not stop the app, but is reported with the first mail."""
    settings = settings_in({"ALL_PROXY": "gopher://proxy"})

    outcome = send(make_relay("smtp.example.com", 25, environ={"ALL_PROXY": "gopher://proxy"}))

    assert settings.proxy_to_use == "gopher://proxy"
    assert is_turned_away(outcome)
    assert outcome.advice.startswith("ALL_PROXY: allowed: socks5://")


# --- addresses ----------------------------------------------------------------------------------


def test_a_source_address(relay_to: MakeRelay, sink: Sink) -> None:
    """Connections start from MAILER_SOURCE_ADDRESS, those to a proxy as well."""
    with ProxyServer() as proxy:
        url = f"socks5://{proxy.host}:{proxy.port}"
        relay = relay_to(sink, MAILER_PROXY=url, MAILER_SOURCE_ADDRESS="127.0.0.9")
        assert send(relay).verdict is Verdict.SENT
        relay.hang_up()

    assert [address for address, _ in proxy.clients] == ["127.0.0.9"]


def test_a_source_address_that_is_not_ours(relay_to: MakeRelay, sink: Sink) -> None:
    """A source address that this machine lacks makes the advice name the key."""
    outcome = send(relay_to(sink, MAILER_SOURCE_ADDRESS="192.0.2.1"))

    assert is_turned_away(outcome)
    assert "192.0.2.1" in outcome.reply
    assert outcome.advice.startswith("MAILER_SOURCE_ADDRESS: this machine has no such address")


def test_a_host_with_an_address_that_is_dead(
    relay_to: MakeRelay, sink: Sink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If one address of the relay does not answer, the next one is tried in time."""
    with (
        socket.create_server(("127.0.0.1", 0), backlog=0) as deaf,
        socket.socket() as first,
        socket.socket() as second,
    ):
        # Fill the kernel's backlog, so that further connections get no answer.
        for other in (first, second):
            other.setblocking(False)
            other.connect_ex(deaf.getsockname())
        addresses = [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", to)
            for to in (deaf.getsockname(), ("127.0.0.1", sink.port))
        ]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: addresses)

        assert (
            send(
                relay_to(sink, MAIL_SERVER="smtp.example.com", MAILER_CONNECT_TIMEOUT=4 * SHORT)
            ).verdict
            is Verdict.SENT
        )


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (
            socket.gaierror(socket.EAI_NONAME, "Name or service not known"),
            "MAIL_SERVER: the DNS does not know 'smtp.example.com'",
        ),
        (socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution"), ""),
        (UnicodeError("label too long"), "MAIL_SERVER: 'smtp.example.com' is not a host name"),
    ],
)
def test_a_name_that_is_not_found(
    relay_to: MakeRelay, monkeypatch: pytest.MonkeyPatch, error: Exception, advice: str
) -> None:
    """An unknown host name gives advice; a DNS that does not answer gives none."""

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(socket, "getaddrinfo", fail)

    outcome = send(make_relay("smtp.example.com", 25))

    assert is_turned_away(outcome)
    assert outcome.advice.startswith(advice)
    assert bool(outcome.advice) is bool(advice)


def test_a_port_that_begins_with_tls(
    relay_to: MakeRelay, answering: Answering, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Silence on port 465 makes the advice name MAIL_USE_SSL."""
    silent = answering(greeting=())
    create = socket.socket.connect
    monkeypatch.setattr(
        socket.socket, "connect", lambda sock, _: create(sock, (silent.host, silent.port))
    )

    outcome = send(make_relay("127.0.0.1", 465, MAILER_COMMAND_TIMEOUT=SHORT))

    assert outcome.advice.startswith("MAIL_USE_SSL: port 465 begins with TLS")


# --- sockets in the file system, and LMTP -------------------------------------------------------


def test_a_socket_in_the_file_system(tmp_path: Path) -> None:
    """MAIL_SERVER may be the path of a Unix socket."""
    with LoginServer(tmp_path) as server:
        relay = make_relay(server.path, 25, MAILER_PROXY="socks5://127.0.0.1:1")
        letter = make_letter()

        assert relay.name == server.path
        assert [send(relay, letter).verdict for _ in range(2)] == [Verdict.SENT] * 2
        relay.hang_up()

    assert server.mails == [letter.as_bytes()] * 2


def test_a_socket_that_is_not_there(tmp_path: Path) -> None:
    """A missing Unix socket is named in the reply and in the advice."""
    path = str(tmp_path / "relay.sock")

    outcome = send(make_relay(path, 25))

    assert is_turned_away(outcome)
    assert path in outcome.reply
    assert outcome.advice.startswith(f"MAIL_SERVER: the socket {path!r} can't be used")


def test_lmtp(tmp_path: Path) -> None:
    """With MAILER_LMTP, mail goes to an LMTP server, with a login."""
    with LoginServer(tmp_path, "PLAIN", protocol=LMTP) as server:
        relay = make_relay(
            server.path, 25, MAILER_LMTP=True, MAIL_USERNAME="ada", MAIL_PASSWORD="secret"
        )

        assert [send(relay).verdict for _ in range(2)] == [Verdict.SENT] * 2
        relay.hang_up()
        assert send(make_relay(server.path, 25)).verdict is Verdict.UNREACHED

    assert len(server.mails) == 2


def test_lmtp_has_no_helo(relay_to: MakeRelay, answering: Answering) -> None:
    """There is no fallback from LHLO to HELO."""
    server = answering(LHLO=b"500 what?\r\n")

    assert is_turned_away(send(relay_to(server, MAILER_LMTP=True)))
    assert [line[:4] for line in server.heard] == [b"lhlo"]


def test_lmtp_has_no_reply_to_a_mail_for_nobody() -> None:
    """With LMTP, a refused recipient ends the connection: an empty mail has no reply (RFC 2033)."""
    with ScriptedRelay("PIPELINING") as server:
        server.faults["m1@example.com", "rcpt"] = ["550 5.1.1 no such user"]
        relay = make_relay(server.host, server.port, MAILER_LMTP=True)
        mails = [make_letter(envelope_from=f"m{number}@example.com") for number in (1, 2)]
        with relay.connection() as connection:
            verdicts = [outcome.verdict for outcome in connection.exchange(supply(mails))]
        relay.hang_up()

    assert verdicts == [Verdict.REFUSED, Verdict.SENT]
    assert server.connections == 2
