"""The machine of a run, since figures of two machines can't be compared."""

import os
import platform
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from statistics import median

from bench.program import Missing
from bench.sink import find_program as find_postfix
from devstack.broker import CannotStart
from devstack.broker import find_program as find_redis
from tests.services.postgres import DEBIAN_FOLDERS
from tests.services.requirement import find_program

#: Not /tmp, which may be in memory: an fsync has to reach a disk.
_ON_DISK = Path("/var/tmp")  # noqa: S108 -- each use makes a folder of its own in it
_SYNCS = 50


def work_on_disk() -> None:
    """Make all temporary folders on a disk from now on."""
    if _ON_DISK.is_dir() and "TMPDIR" not in os.environ:
        tempfile.tempdir = str(_ON_DISK)


def describe() -> str:
    """Describe the machine in one line, without its name."""
    return ", ".join(_words())


def load() -> float:
    """Return the average number of processes that wanted to run in the last minute."""
    return os.getloadavg()[0]


def _words() -> Iterator[str]:
    yield f"{len(os.sched_getaffinity(0))} cores ({_processor()})"
    yield f"an fsync takes {1000 * _fsync():.2g} ms"
    yield f"{platform.system()} {platform.release().split('-')[0]}"
    yield f"{platform.python_implementation()} {platform.python_version()}"
    yield f"Celery {version('celery')}"
    yield f"Flask-Mail {version('flask-mail')}"
    for name, command in _programs():
        printed = subprocess.run(command, check=False, capture_output=True, text=True).stdout
        if found := re.search(r"\d+(\.\d+)+", printed):
            yield f"{name} {found[0]}"


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def _fsync() -> float:
    with tempfile.TemporaryFile() as file:
        return median(_timed_fsync(file.fileno()) for _ in range(_SYNCS))


def _timed_fsync(file: int) -> float:
    os.write(file, b"a page that was not there before" * 128)
    started = time.perf_counter()
    os.fsync(file)
    return time.perf_counter() - started


def _programs() -> Iterator[tuple[str, Sequence[str]]]:
    with suppress(CannotStart):
        yield "Redis", [str(find_redis()), "--version"]
    if initdb := find_program("initdb", also_in=DEBIAN_FOLDERS):
        yield "PostgreSQL", [initdb, "--version"]
    with suppress(Missing):
        yield "Postfix", [find_postfix("postconf"), "-dh", "mail_version"]
