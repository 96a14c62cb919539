"""The locks of SQLite in a child that was forked while the parent had the file open.

SQLite keeps an account of its locks in the memory of a process. A child inherits the account but
not the locks, which POSIX gives to one process alone. To close the inherited connections would
spoil the parent's work, and without locks, other processes would delete the log that the child
writes to. So the child takes the locks that its SQLite believes to have, and keeps them until it
ends.
"""

import fcntl
import os
from contextlib import suppress
from pathlib import Path

# From SQLite's file format: the range of bytes that is locked while the database is in use, and the
# byte in the index of its log.
_SHARED_FIRST, _SHARED_SIZE = 0x40000002, 510
_INDEX_IN_USE = 128

_kept: list[int] = []  # closing any of them would give up all locks of this process on the file


def is_open(database: Path) -> bool:
    """Return whether this process has the file open. Return False where the system can't tell."""
    try:
        there, numbers = database.stat(), list(Path("/proc/self/fd").iterdir())
    except OSError:
        return False
    return any(_leads_to(int(number.name), there) for number in numbers)


def _leads_to(number: int, there: os.stat_result) -> bool:
    try:
        return os.path.samestat(os.fstat(number), there)
    except OSError:  # the listing's own descriptor, which is closed by now
        return False


def take_over(database: Path) -> None:
    """Hold the locks of an open connection until this process ends."""
    _hold(database, _SHARED_FIRST, _SHARED_SIZE)
    with suppress(FileNotFoundError):
        _hold(Path(f"{database}-shm"), _INDEX_IN_USE, 1)


def _hold(path: Path, start: int, length: int) -> None:
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    _kept.append(file)
    fcntl.lockf(file, fcntl.LOCK_SH, length, start)
