"""A lock on the machine, which test processes share and some tests take for themselves."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Existing files, so that nothing has to be created for a run or removed after it.
_GATE = Path(__file__)
_MACHINE = Path(__file__).parents[1] / "conftest.py"


@contextmanager
def share_of_machine(*, alone: bool) -> Iterator[None]:
    """Hold the machine together with the other processes of the test run, or alone.

    A process that waits to be alone holds the gate, so that no other process begins a test.
    """
    with _GATE.open() as gate, _MACHINE.open() as machine:
        fcntl.flock(gate, fcntl.LOCK_EX)
        fcntl.flock(machine, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        fcntl.flock(gate, fcntl.LOCK_UN)
        try:
            yield
        finally:
            fcntl.flock(machine, fcntl.LOCK_UN)  # for children that have it open, too
