"""Memory, file descriptors and threads of processes, read from /proc."""

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_ESTABLISHED = "01"


@dataclass(frozen=True, slots=True)
class Taken:
    """Resources that some processes use together."""

    memory: int  #: bytes; pages that several processes share are divided among them
    descriptors: int
    threads: int


def taken_by(pids: Iterable[int]) -> Taken:
    """Raise FileNotFoundError or ProcessLookupError if one of the processes has ended."""
    pids = list(pids)
    return Taken(
        memory=sum(_memory(pid) for pid in pids),
        descriptors=sum(_entries(pid, "fd") for pid in pids),
        threads=sum(_entries(pid, "task") for pid in pids),
    )


def children_of(pid: int) -> list[int]:
    """Return the children that the main thread started. Return none once it has ended."""
    with suppress(FileNotFoundError):
        return [
            int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        ]
    return []


def descriptors_of(path: Path, pids: Iterable[int]) -> int:
    """Count the descriptors of these processes that refer to this file."""
    return sum(target == str(path) for pid in pids for target in _targets(pid))


def connections_at(port: int) -> int:
    """Count the established connections to this port of the machine."""
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(
        int(line[1].rpartition(":")[2], 16) == port and line[3] == _ESTABLISHED for line in lines
    )


def _targets(pid: int) -> Iterable[str]:
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed since
            yield str(descriptor.readlink())


def _entries(pid: int, folder: str) -> int:
    return sum(1 for _ in Path(f"/proc/{pid}/{folder}").iterdir())


def _memory(pid: int) -> int:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return 1024 * int(line.split()[1])
    raise ProcessLookupError(pid)
