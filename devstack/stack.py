"""The parts of the local stack, as a pure function of the environment."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from devstack import probes
from devstack.broker import CannotStart, given_url, server_command, socket_path
from devstack.supervisor import Part

HOST = "127.0.0.1"

# Shorter than in production, since a person waits. Each can be set in the environment.
SHORT_WAITS = {
    "MAILER_CONNECT_TIMEOUT": "5",
    "MAILER_COMMAND_TIMEOUT": "10",
    "MAILER_DATA_TIMEOUT": "20",
    "MAILER_REPLY_TIMEOUT": "20",
    "MAILER_RETRY_FIRST": "5",
    "MAILER_DOUBT_RESEND_AFTER": "30",
}
PHASES = ("CONNECT", "COMMAND", "DATA", "REPLY")
# Left out, so that the local stack never sends mail to real people.
OF_ANOTHER_RELAY = (
    "MAIL_SERVER",
    "MAIL_PORT",
    "MAIL_USE_TLS",
    "MAIL_USE_SSL",
    "MAIL_USERNAME",
    "MAIL_PASSWORD",
    "MAILER_TLS_CA_FILE",
    "MAILER_TLS_CLIENT_CERT",
    "MAILER_OAUTH",
    "MAILER_PROXY",
    "MAILER_LMTP",
    "MAILER_SOURCE_ADDRESS",
    "MAILER_RELAYS",
)


@dataclass(frozen=True)
class Stack:
    """The parts and their addresses."""

    broker: Part | None  # None: one that runs already is used
    inbox: Part
    worker: Part
    web: Part
    broker_url: str
    ports: Mapping[str, int]  # variable -> the port it sets
    url: str


def plan(environ: Mapping[str, str], folder: Path, broker_program: Path | None, node: str) -> Stack:
    """Return the stack. `broker_program` is the server to start if no URL is given."""
    web_port = port(environ, "PORT", 5000)
    inbox_port = port(environ, "MAIL_PORT", 1025) if is_local(environ.get("MAIL_SERVER")) else 1025
    broker_url = given_url(environ) or f"unix://{socket_path(folder)}"
    environment = environment_of_parts(environ, folder, broker_url, inbox_port)
    return Stack(
        broker=broker(broker_program, folder, broker_url, environment) if broker_program else None,
        inbox=inbox(inbox_port, environment),
        worker=worker(node, broker_url, environment),
        web=web(web_port, environment),
        broker_url=broker_url,
        ports={"PORT": web_port, "MAIL_PORT": inbox_port},
        url=f"http://{HOST}:{web_port}",
    )


def broker(program: Path, folder: Path, url: str, environment: Mapping[str, str]) -> Part:
    return Part(
        "broker", server_command(program, folder), environment, partial(probes.broker_answers, url)
    )


def inbox(port: int, environment: Mapping[str, str]) -> Part:
    command = python("devstack.inbox")
    return Part("inbox", command, environment, partial(probes.inbox_greets, HOST, port))


def worker(node: str, broker_url: str, environment: Mapping[str, str]) -> Part:
    pool = ("--pool", "threads", "--concurrency", "8")
    alone = ("--without-mingle", "--without-gossip")
    command = python(
        "celery",
        "--quiet",
        "-A",
        "worker",
        "worker",
        "--hostname",
        node,
        *pool,
        *alone,
        "--loglevel",
        "INFO",
    )
    ready = partial(probes.worker_answers, broker_url, node)
    return Part("worker", command, environment, ready, grace=longest_mail(environment) + 10)


def web(port: int, environment: Mapping[str, str]) -> Part:
    threads = ("--worker-class", "gthread", "--threads", "8")
    command = python(
        "gunicorn",
        "devstack.demo:create_app()",
        "--bind",
        f"{HOST}:{port}",
        *threads,
        "--no-control-socket",
    )
    # Longer than the 30 s gunicorn gives a request to finish.
    return Part("web", command, environment, partial(probes.web_answers, HOST, port), grace=35.0)


def python(module: str, *arguments: str) -> tuple[str, ...]:
    return sys.executable, "-m", module, *arguments


def environment_of_parts(
    environ: Mapping[str, str], folder: Path, broker_url: str, inbox_port: int
) -> dict[str, str]:
    kept = {key: value for key, value in environ.items() if value and key not in OF_ANOTHER_RELAY}
    own = {
        "INSTANCE_PATH": str(folder),
        "MAILER_REDIS_URL": broker_url,
        "MAIL_SERVER": HOST,
        "MAIL_PORT": str(inbox_port),
        "MAILER_INBOX_DIR": str(folder / "inbox"),
    }
    return SHORT_WAITS | kept | own


def longest_mail(environment: Mapping[str, str]) -> float:
    """Return the seconds that one mail may take: a worker that stops finishes it."""
    connect, command, data, reply = (
        seconds(environment, f"MAILER_{phase}_TIMEOUT") for phase in PHASES
    )
    return connect + 5 * command + data + reply  # greeting, EHLO, MAIL, RCPT, DATA


def is_local(server: str | None) -> bool:
    return not server or server in (HOST, "localhost", "::1")


def port(environ: Mapping[str, str], key: str, default: int) -> int:
    text = environ.get(key) or str(default)
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise CannotStart(f"{key}={text} is no port: use a number from 1 to 65535.")
    return int(text)


def seconds(environ: Mapping[str, str], key: str) -> float:
    try:
        return float(environ[key])
    except ValueError:
        raise CannotStart(f"{key}={environ[key]} is no number of seconds.") from None
