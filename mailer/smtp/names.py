"""DNS look-ups with a time-out: the resolver of the system has none, and may block for minutes."""

import smtplib
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import cache
from typing import Any, TypeVar

T = TypeVar("T")

# The name that smtplib uses if it finds none.
_NAMELESS = "[127.0.0.1]"


class NameTimeout(TimeoutError):
    """The DNS did not answer in time."""


def addresses_of(host: str, port: int, family: int, deadline: float) -> list[tuple[Any, ...]]:
    """Return the result of `getaddrinfo`. Raise `NameTimeout` after the deadline."""
    try:
        return _call(
            lambda: socket.getaddrinfo(host, port, family, socket.SOCK_STREAM),
            deadline - time.monotonic(),
        )
    except TimeoutError:
        raise NameTimeout(f"the DNS took too long to find {host!r}") from None


def own_name(seconds: float) -> str:
    """Return our name for EHLO, or an address literal if the DNS does not result in time."""
    try:
        return _own_name(seconds)
    except TimeoutError:
        return _NAMELESS


@cache
def _own_name(seconds: float) -> str:
    # Once: a slow DNS takes seconds. Without a name, smtplib uses the address.
    return _call(lambda: smtplib.SMTP().local_hostname, seconds)


def _call(function: Callable[[], T], seconds: float) -> T:
    """Call the resolver in a thread, and abandon it after the time-out: it can't be interrupted."""
    result: Future[T] = Future()

    def find() -> None:
        try:
            result.set_result(function())
        except Exception as error:  # noqa: BLE001 -- it is raised in the caller
            result.set_exception(error)

    threading.Thread(target=find, name="mailer-dns", daemon=True).start()
    return result.result(max(0.0, seconds))
