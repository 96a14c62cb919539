"""Where all mail of the bench arrives: Postfix's `smtp-sink`, which counts what it received."""

import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from shutil import which
from typing import Self

from bench.program import Failed, Missing, Program, free_port

#: Debian keeps the programs of Postfix off the PATH of ordinary users.
_FOLDERS = os.pathsep.join(
    [os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/lib/postfix/sbin"]
)
_COUNT = re.compile(rb"mesg=(\d+)\r")
_LOOK_EVERY = 0.001
_LONGEST_SILENCE = 60.0


def find_program(name: str) -> str:
    """A program of Postfix."""
    found = which(name, path=_FOLDERS)
    if found is None:
        raise Missing(f"{name} is not installed (Debian package postfix)")
    return found


@dataclass(frozen=True, slots=True)
class Flow:
    """How fast mail arrived, from the first one to the last: what starts slowly is not blamed for its start."""

    mails: int
    seconds: float

    @property
    def per_second(self) -> float:
        return self.mails / max(self.seconds, _LOOK_EVERY)


class Sink:
    """A running SMTP server that writes "mesg=N" and a carriage return into a file, whenever it received a mail."""

    host = "127.0.0.1"

    def __init__(self, port: int, counter: Path) -> None:
        self.port = port
        self._file = os.open(counter, os.O_RDONLY)

    @property
    def count(self) -> int:
        """How many mails it has received so far."""
        end = os.fstat(self._file).st_size
        counts = _COUNT.findall(os.pread(self._file, 256, max(0, end - 256)))
        return int(counts[-1]) if counts else 0

    def wait_for(
        self,
        count: int,
        *,
        check: Callable[[], None] = lambda: None,
        since: float | None = None,
        then_more: bool = False,
    ) -> Flow:
        """Wait until it has received this many, and no more unless more are queued.

        `check` raises when there is no hope. The time counts from the first mail, or `since`
        another moment.
        """
        seen, at = self._next_change(0, check)
        first_count, first_at = (seen, at) if since is None else (0, since)
        while seen < count:
            seen, at = self._next_change(seen, check)
        if seen > count and not then_more:
            raise Failed(f"{seen} mails arrived, {count} were sent")
        return Flow(seen - first_count, at - first_at)

    def _next_change(self, seen: int, check: Callable[[], None]) -> tuple[int, float]:
        deadline = time.perf_counter() + _LONGEST_SILENCE
        while True:
            # Also while mails pour in: who looks without a pause takes a core from those who work.
            time.sleep(_LOOK_EVERY)
            count, now = self.count, time.perf_counter()
            if count != seen:
                return count, now
            check()
            if now > deadline:
                raise Failed(
                    f"{count} mails had arrived, and none came for {_LONGEST_SILENCE:.0f} s"
                )

    @property
    def env(self) -> dict[str, str]:
        """Where it is, in Flask-Mail's words."""
        return {"MAIL_SERVER": self.host, "MAIL_PORT": str(self.port)}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        os.close(self._file)


@contextmanager
def running_sink(folder: Path) -> Iterator[Sink]:
    """A fresh smtp-sink: its count begins at 0."""
    as_nobody = ["-u", "nobody"] if os.geteuid() == 0 else []
    port = free_port()
    command = [
        find_program("smtp-sink"),
        "-c",
        *as_nobody,
        "-m",
        "512",
        f"{Sink.host}:{port}",
        "1024",
    ]
    counter = folder / "sink.count"
    with counter.open("wb") as file, Program(command, folder / "sink.log", stdout=file) as program:
        program.wait_for_port(port)
        with Sink(port, counter) as sink:
            yield sink
