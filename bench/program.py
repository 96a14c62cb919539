"""The processes of the bench."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Self, TypeVar

PROJECT = Path(__file__).parents[1]

T = TypeVar("T")


class Missing(Exception):
    """A contender is not installed here; the text names the missing program."""


class Failed(Exception):
    """A contender did not do its work; the text says what happened."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Peak resident memory, in bytes."""

    largest_process: int
    all_processes: int


class Program:
    """A process with its children, which all end with its context."""

    def __init__(
        self,
        command: Sequence[str | Path],
        log: Path,
        *,
        env: Mapping[str, str] | None = None,
        stdout: IO[bytes] | None = None,
    ) -> None:
        self._log = log
        with log.open("wb") as file:
            self._process = subprocess.Popen(
                list(map(str, command)),
                cwd=PROJECT,
                env={**os.environ, **(env or {})},
                stdin=subprocess.DEVNULL,
                stdout=stdout or file,
                stderr=file,
                start_new_session=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for pid in self._pids():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()

    def check(self) -> None:
        """Raise if the process has ended with an error."""
        if self._process.poll():
            raise Failed(f"ended with code {self._process.returncode}: {self.last_words()}")

    def wait(self, timeout: float) -> None:
        """Wait for the end of the process, and raise if it is an error."""
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise Failed(f"did not end within {timeout:.0f} s: {self.last_words()}") from None
        self.check()

    def wait_for_port(self, port: int) -> None:
        def listens() -> bool:
            self.check()
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                return True
            return False

        wait_until(listens)

    def last_words(self) -> str:
        return " / ".join(self._log.read_text(errors="replace").strip().splitlines()[-3:])[-600:]

    def memory(self) -> Memory:
        peaks = [peak for pid in self._pids() if (peak := _peak(pid))]
        return Memory(max(peaks, default=0), sum(peaks))

    def cpu_seconds(self) -> float:
        """Return the processor time of the processes that still run."""
        return sum(map(_cpu_seconds, self._pids()))

    def waiting_seconds(self) -> float:
        """Return the time for which its processes have waited for a processor."""
        return sum(map(waiting_seconds, self._pids()))

    def _pids(self) -> set[int]:
        """Return the processes of its session, and their children in other sessions."""
        everybody = _processes()
        found = {pid for pid, (_, session) in everybody.items() if session == self._process.pid}
        while (
            children := {pid for pid, (parent, _) in everybody.items() if parent in found} - found
        ):
            found |= children
        return found


def _processes() -> dict[int, tuple[int, int]]:
    """Return the parent and the session of each process, by its id."""
    processes = {}
    for entry in os.scandir("/proc"):
        with suppress(OSError):
            if entry.name.isdigit():
                fields = Path(entry.path, "stat").read_text().rpartition(")")[2].split()
                processes[int(entry.name)] = int(fields[1]), int(fields[3])
    return processes


def _peak(pid: int) -> int:
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    return 0


def _cpu_seconds(pid: int) -> float:
    with suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return 0.0


def waiting_seconds(pid: int) -> float:
    """Return the time for which the threads of a process have waited for a processor."""
    waited = 0.0
    with suppress(OSError):
        for thread in os.scandir(f"/proc/{pid}/task"):
            waited += int(Path(thread.path, "schedstat").read_text().split()[1]) / 1e9
    return waited


def wait_until(condition: Callable[[], T], timeout: float = 30) -> T:
    """Return the condition's value as soon as it is true."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise Failed(f"nothing happened for {timeout:.0f} s")
        time.sleep(0.01)
    return value


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
