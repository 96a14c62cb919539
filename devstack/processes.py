"""Processes, identified by pid and start time: a pid alone is used again."""

import json
import os
import signal
import subprocess
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from mailer.machine import boot_id


@dataclass(frozen=True)
class Process:
    """A process we started, the leader of a group of its own."""

    name: str
    pid: int
    started: str
    grace: float  # seconds it is given to stop by itself

    @property
    def alive(self) -> bool:
        return start_time(self.pid) == self.started

    def terminate(self) -> None:
        """Send SIGTERM to the main process, which stops its own helpers."""
        if self.alive:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        """Kill the process and its group."""
        # Nobody is left (on macOS: nobody but a zombie).
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)


def start_time(pid: int) -> str | None:
    """Return the start time, unique among processes of this pid. Return None if it has ended."""
    if Path("/proc/self/stat").exists():
        return _start_time_on_linux(pid)
    command = ["ps", "-o", "stat=,lstart=", "-p", str(pid)]
    listed = subprocess.run(command, capture_output=True, text=True, check=False)
    state, _, started = listed.stdout.strip().partition(" ")
    return None if state.startswith("Z") else started.strip() or None


def _start_time_on_linux(pid: int) -> str | None:
    try:
        line = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    after_name = line.rpartition(")")[2].split()  # the name may hold spaces and brackets
    state, ticks_since_boot = after_name[0], after_name[19]
    return None if state in "ZX" else f"{boot_id()} {ticks_since_boot}"


class Ledger:
    """The file with the running processes, so that the next run can stop those of a killed one."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._running: list[Process] = []

    def add(self, process: Process) -> None:
        self._running.append(process)
        unfinished = self._path.with_suffix(".part")
        content = json.dumps([asdict(each) for each in self._running])
        unfinished.write_text(content, encoding="utf-8")
        unfinished.replace(self._path)

    def left_behind(self) -> list[Process]:
        """Return the processes of an earlier run that still run."""
        try:
            entries = json.loads(self._path.read_text(encoding="utf-8"))
            noted = [Process(**entry) for entry in entries]
        except (FileNotFoundError, ValueError, TypeError):
            return []
        return [process for process in noted if process.alive]

    def clear(self) -> None:
        self._running.clear()
        self._path.unlink(missing_ok=True)
