"""Which process is which. A pid alone does not say: it is used again. With its start time it names one process for good."""

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
        """Asks the main process, and it alone, to stop: its helpers are its own business."""
        if self.alive:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        """Ends it and everything in its group."""
        with suppress(ProcessLookupError, PermissionError):  # nobody is left (on macOS: nobody but a zombie)
            os.killpg(self.pid, signal.SIGKILL)


def start_time(pid: int) -> str | None:
    """When the process began, in words that no other process of this pid shares; None if it has ended."""
    if Path("/proc/self/stat").exists():
        return _start_time_on_linux(pid)
    listed = subprocess.run(["ps", "-o", "stat=,lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
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
    """The file that says what runs, so that a run that could not tidy up is tidied up after."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._running: list[Process] = []

    def add(self, process: Process) -> None:
        self._running.append(process)
        unfinished = self._path.with_suffix(".part")
        unfinished.write_text(json.dumps([asdict(each) for each in self._running]), encoding="utf-8")
        unfinished.replace(self._path)

    def left_behind(self) -> list[Process]:
        """What an earlier run started and what still runs."""
        try:
            noted = [Process(**entry) for entry in json.loads(self._path.read_text(encoding="utf-8"))]
        except (FileNotFoundError, ValueError, TypeError):
            return []
        return [process for process in noted if process.alive]

    def clear(self) -> None:
        self._running.clear()
        self._path.unlink(missing_ok=True)
