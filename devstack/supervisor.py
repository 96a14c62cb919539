"""Starts the parts of a stack, watches over them and stops them in the right order.

Each part leads a process group in a session of its own, so that Ctrl-C in the terminal reaches only the runner, which then asks
the parts to stop one after the other, the last started first.
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
INSISTING = 1.0  # a Ctrl-C this many seconds after the first request to stop is meant as another one
TETHER = Path(__file__).with_name("tether.py")


class PartFailed(Exception):
    """A part ended by itself, or never got ready."""


class StopRequested(Exception):
    """Ctrl-C, SIGTERM, or the terminal is gone."""


@dataclass(frozen=True)
class Part:
    """What to run, and how to see that it is ready."""

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    ready: Callable[[], bool]
    grace: float = 10.0
    start_limit: float = 30.0


class Interrupts:
    """Notes the requests to stop. The handler only notes: what follows happens in the loops that look here."""

    def __init__(self) -> None:
        self.requested = False
        self.insisted = False
        self._first = 0.0

    def __enter__(self) -> Self:
        # A signal that is ignored from the start stays so: that is how nohup and background jobs are made.
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        self._before = {number: handler for number in numbers if (handler := signal.getsignal(number)) is not signal.SIG_IGN}
        for number in self._before:
            signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if not self.requested:
            self.requested, self._first = True, time.monotonic()
        # One SIGTERM arrives several times when it went to a whole group: timeout and make pass it on.
        elif number == signal.SIGINT and time.monotonic() - self._first > INSISTING:
            self.insisted = True


class Supervisor:
    """Runs parts until somebody asks to stop, or until one of them fails."""

    def __init__(self, console: Console, ledger: Ledger, interrupts: Interrupts) -> None:
        self._console = console
        self._ledger = ledger
        self._interrupts = interrupts
        self._children: list[_Child] = []

    def recover(self) -> None:
        """Stops what an interrupted run left behind."""
        for process in reversed(self._ledger.left_behind()):
            if process.alive:  # still: stopping the others takes time
                self._console.say(f"An interrupted run left {process.name} behind (process {process.pid}): stopping it.")
                self._end(process)
        self._ledger.clear()

    def start(self, *parts: Part) -> None:
        """Starts parts at the same time and returns when all are ready."""
        began = time.monotonic()
        waiting = [self._spawn(part) for part in parts]
        while waiting:
            self._look()
            for child in [child for child in waiting if child.part.ready()]:
                self._console.say(f"{child.part.name} is ready ({time.monotonic() - began:.1f} s).")
                waiting.remove(child)
            for child in waiting:
                if time.monotonic() - began > child.part.start_limit:
                    raise PartFailed(f"{child.part.name} did not get ready within {child.part.start_limit:.0f} s.")
            time.sleep(PAUSE)

    def watch(self) -> None:
        """Returns only by an exception: `StopRequested` or `PartFailed`."""
        while True:
            self._look()
            time.sleep(PAUSE)

    def stop(self) -> bool:
        """Stops all parts, the last started first. True if each did so by itself."""
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
        """SIGTERM, and SIGKILL for what is left when its time is over or somebody insists."""
        process.terminate()
        deadline = time.monotonic() + process.grace
        while process.alive and time.monotonic() < deadline and not self._interrupts.insisted:
            time.sleep(PAUSE)
        obedient = not process.alive
        if not obedient:
            why = "as you insist" if self._interrupts.insisted else f"after waiting {process.grace:.0f} s"
            self._console.say(f"Killing {process.name}, {why}.")
        process.kill()
        return obedient


class _Child:
    """A part that was started, and the thread that shows its log."""

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
        self.process = Process(part.name, self._popen.pid, start_time(self._popen.pid) or "", part.grace)
        self._pump = threading.Thread(target=self._show_log, args=(console,), name=f"log of {part.name}", daemon=True)
        self._pump.start()

    def ending(self) -> str | None:
        """How it ended, or None while it runs."""
        code = self._popen.poll()
        if code is None:
            return None
        self._pump.join(timeout=1)  # its last words come first
        return f"ended by itself (exit code {code})" if code >= 0 else f"was ended by {signal.Signals(-code).name}"

    def close(self) -> None:
        """Waits for what has ended: no zombie, no thread, no open pipe."""
        self._popen.wait()
        self._pump.join()

    def _show_log(self, console: Console) -> None:
        assert self._popen.stdout is not None
        with self._popen.stdout as log:
            for line in log:
                console.show(self.part.name, line.decode(errors="replace").rstrip())


def _tethered(command: tuple[str, ...]) -> list[str]:
    """The same command; on Linux it is also asked to stop when the runner is killed."""
    if sys.platform != "linux":
        return list(command)
    return [sys.executable, "-I", "-S", str(TETHER), str(os.getpid()), *command]
