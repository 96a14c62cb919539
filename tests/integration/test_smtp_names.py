"""DNS look-ups end within their time-out, whatever the DNS does."""

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from mailer.message import Phase, Verdict
from mailer.smtp import names
from tests.services import deaf_dns
from tests.services.relay import SHORT, make_relay, send
from tests.services.sink import Sink
from tests.services.worker import PROJECT

# Send a mail and print the reply; run where the DNS does not answer.
_TRY = f"""
from tests.services.relay import make_relay, send

print(send(make_relay("smtp.example.com", 25, MAILER_CONNECT_TIMEOUT={SHORT})).reply)
"""


@pytest.fixture
def deaf(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Replace the resolver by one that does not answer until the test is over."""
    end = threading.Event()

    def ask(*_: object, **__: object) -> None:
        end.wait()
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    look_up = socket.getaddrinfo
    monkeypatch.setattr(socket, "getfqdn", ask)
    monkeypatch.setattr(
        socket,
        "getaddrinfo",
        lambda host, *how: look_up(host, *how) if host == "127.0.0.1" else ask(),
    )
    names._own_name.cache_clear()
    yield
    end.set()
    names._own_name.cache_clear()


def test_a_dns_that_does_not_answer() -> None:
    """The connect time-out ends a DNS look-up long before the resolver's own time-out."""
    done = subprocess.run(
        deaf_dns.command(sys.executable, "-c", _TRY),
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.stdout.endswith(
        "NameTimeout: the DNS took too long to find 'smtp.example.com'\n"
    ), done.stderr


@pytest.mark.parametrize(
    "proxy", ["none", "socks5://proxy.example.com:1080", "socks5h://proxy.example.com:1080"]
)
def test_a_resolver_without_end(deaf: None, proxy: str) -> None:
    """A DNS look-up without end leaves the relay unreached, and the mail uncharged."""
    outcome = send(
        make_relay("smtp.example.com", 25, MAILER_CONNECT_TIMEOUT=SHORT, MAILER_PROXY=proxy)
    )

    assert (outcome.verdict, outcome.phase) == (Verdict.UNREACHED, Phase.CONNECT)
    assert "took too long" in outcome.reply


def test_our_own_name_is_not_waited_for(deaf: None, sink: Sink) -> None:
    """A look-up of this machine's own name without end does not delay a mail."""
    assert send(make_relay(sink.host, sink.port)).verdict is Verdict.SENT
