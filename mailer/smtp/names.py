"""Names of hosts, looked up in time: the resolver of the system knows no time-out, and may keep who asks for minutes."""

import smtplib
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import cache
from typing import Any, TypeVar

T = TypeVar("T")

# What smtplib calls itself where it finds no name, either.
_NAMELESS = "[127.0.0.1]"


def addresses_of(host: str, port: int, family: int, deadline: float) -> list[tuple[Any, ...]]:
    """What `getaddrinfo` finds by then."""
    try:
        return _ask(lambda: socket.getaddrinfo(host, port, family, socket.SOCK_STREAM), deadline - time.monotonic())
    except TimeoutError:
        raise TimeoutError(f"the DNS took too long to find {host!r}") from None


def own_name(seconds: float) -> str:
    """What we say that we are. While the DNS does not tell, that has no name."""
    try:
        return _own_name(seconds)
    except TimeoutError:
        return _NAMELESS


@cache
def _own_name(seconds: float) -> str:
    # Asked once: where DNS is slow, each look-up takes seconds. Where there is no name, smtplib takes the address.
    return _ask(lambda: smtplib.SMTP().local_hostname, seconds)


def _ask(question: Callable[[], T], seconds: float) -> T:
    """In a thread of its own, which is left to itself if the answer takes too long: nobody can interrupt the resolver."""
    answer: Future[T] = Future()

    def find() -> None:
        try:
            answer.set_result(question())
        except Exception as error:  # noqa: BLE001 -- it belongs to who asked
            answer.set_exception(error)

    threading.Thread(target=find, name="looks up a name", daemon=True).start()
    return answer.result(max(0.0, seconds))
