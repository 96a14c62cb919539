"""Ports that no other process of the test run picks as well."""

import os
import random
import socket

_FIRST, _EACH = 10_000, 1_000  # below the ports that the kernel gives to clients
_RANGES = 20


def free_port() -> int:
    """Return a free port from the range of this process of the test run."""
    number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    first = _FIRST + number % _RANGES * _EACH
    for port in random.sample(range(first, first + _EACH), _EACH):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise RuntimeError(
        f"No port from {first} to {first + _EACH} is free. End the processes that listen there."
    )
