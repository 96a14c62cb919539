"""Start the parts of a stack, watch them, and stop them in order.

Each part leads a process group in a session of its own, so that Ctrl-C in the terminal reaches only
the runner, which then stops the parts one after the other, the last started first.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Self

from devstack.console import Console
from devstack.processes import Ledger, Process, start_time

PAUSE = 0.05  # seconds between two looks
INSISTING = 1.0  # seconds after the first request, from which on Ctrl-C means: kill
TETHER = Path(__file__).with_name("tether.py")


class PartFailed(Exception):
    """A part ended by itself or did not get ready."""


class StopRequested(Exception):
    """Ctrl-C, SIGTERM or SIGHUP arrived."""


@dataclass(frozen=True)
class Part:
    """A command, and the probe that tells when it is ready."""

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    ready: Callable[[], bool]
    grace: float = 10.0
    start_limit: float = 30.0


class Interrupts:
    """The requests to stop. The signal handler only takes note; the loops look here."""

    def __init__(self) -> None:
        self.requested = False
        self.insisted = False
        self._first = 0.0

    def __enter__(self) -> Self:
        # A signal that is ignored from the start stays ignored, as nohup and background jobs need.
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        handlers = {number: signal.getsignal(number) for number in numbers}
        self._before = {
            number: handler for number, handler in handlers.items() if handler is not signal.SIG_IGN
        }
        for number in self._before:
            signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if not self.requested:
            self.requested, self._first = True, time.monotonic()
        # One SIGTERM to a whole group arrives several times: timeout and make pass it on.
        elif number == signal.SIGINT and time.monotonic() - self._first > INSISTING:
            self.insisted = True


class Supervisor:
    """The runner of the parts, until a request to stop or the failure of one."""

    def __init__(self, console: Console, ledger: Ledger, interrupts: Interrupts) -> None:
        self._console = console
        self._ledger = ledger
        self._interrupts = interrupts
        self._children: list[_Child] = []

    def recover(self) -> None:
        """Stop the processes of a killed run."""
        for process in reversed(self._ledger.left_behind()):
            if process.alive:  # still: stopping the others takes time
                left = f"{process.name} behind (process {process.pid})"
                self._console.say(f"An interrupted run left {left}: stopping it.")
                self._end(process)
        self._ledger.clear()

    def start(self, *parts: Part) -> None:
        """Start parts at the same time and return when all are ready."""
        began = time.monotonic()
        waiting = [self._spawn(part) for part in parts]
        while waiting:
            self._look()
            for child in [child for child in waiting if child.part.ready()]:
                self._console.say(f"{child.part.name} is ready ({time.monotonic() - began:.1f} s).")
                waiting.remove(child)
            for child in waiting:
                if time.monotonic() - began > child.part.start_limit:
                    limit = f"{child.part.start_limit:.0f} s"
                    raise PartFailed(f"{child.part.name} did not get ready within {limit}.")
            time.sleep(PAUSE)

    def watch(self) -> None:
        """Watch the parts until `StopRequested` or `PartFailed` is raised."""
        while True:
            self._look()
            time.sleep(PAUSE)

    def stop(self) -> bool:
        """Stop all parts, the last started first. Return whether each ended within its time."""
        obedient = True
        while self._children:
            child = self._children.pop()
            if child.process.alive:
                self._console.say(f"Stopping {child.part.name} ...")
            obedient &= self._end(child.process)
            child.close()
        self._ledger.clear()
        return obedient

    def _spawn(self, part: Part) -> "_Child":
        child = _Child(part, self._console)
        self._children.append(child)
        self._ledger.add(child.process)
        return child

    def _look(self) -> None:
        if self._interrupts.requested:
            raise StopRequested
        for child in self._children:
            ending = child.ending()
            if ending:
                self._children.remove(child)
                child.process.kill()  # its helpers, and at once: its pid may soon be another's
                child.close()
                raise PartFailed(f"{child.part.name} {ending}, see its log above.")

    def _end(self, process: Process) -> bool:
        """Send SIGTERM, then SIGKILL when the time is over or Ctrl-C came again."""
        process.terminate()
        deadline = time.monotonic() + process.grace
        while process.alive and time.monotonic() < deadline and not self._interrupts.insisted:
            time.sleep(PAUSE)
        obedient = not process.alive
        if not obedient:
            why = f"after waiting {process.grace:.0f} s"
            if self._interrupts.insisted:
                why = "as you insist"
            self._console.say(f"Killing {process.name}, {why}.")
        process.kill()
        return obedient


class _Child:
    """A started part, and the thread that shows its log."""

    def __init__(self, part: Part, console: Console) -> None:
        self.part = part
        self._popen = subprocess.Popen(
            _tethered(part.command),
            env={**part.environment, "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self.process = Process(
            part.name, self._popen.pid, start_time(self._popen.pid) or "", part.grace
        )
        self._pump = threading.Thread(
            target=self._show_log, args=(console,), name=f"log of {part.name}", daemon=True
        )
        self._pump.start()

    def ending(self) -> str | None:
        """Return how the process ended, or None while it runs."""
        code = self._popen.poll()
        if code is None:
            return None
        self._pump.join(timeout=1)  # its last words come first
        if code >= 0:
            return f"ended by itself (exit code {code})"
        return f"was ended by {signal.Signals(-code).name}"

    def close(self) -> None:
        """Wait for the ended process and its thread, so that nothing is left over."""
        self._popen.wait()
        self._pump.join()

    def _show_log(self, console: Console) -> None:
        assert self._popen.stdout is not None
        with self._popen.stdout as log:
            for line in log:
                console.show(self.part.name, line.decode(errors="replace").rstrip())


def _tethered(command: tuple[str, ...]) -> list[str]:
    """Return the command, which on Linux also gets SIGTERM when the runner is killed."""
    if sys.platform != "linux":
        return list(command)
    return [sys.executable, "-I", "-S", str(TETHER), str(os.getpid()), *command]
