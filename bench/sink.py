"""The receiver of all mail of the bench: Postfix's `smtp-sink`, which counts."""

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
    """Find a program of Postfix."""
    found = which(name, path=_FOLDERS)
    if found is None:
        raise Missing(f"{name} is not installed (Debian package postfix)")
    return found


@dataclass(frozen=True, slots=True)
class Flow:
    """The time from the first mail to the last, so that a slow start does not count."""

    mails: int
    seconds: float

    @property
    def per_second(self) -> float:
        return self.mails / max(self.seconds, _LOOK_EVERY)


class Sink:
    """A running SMTP server that writes "mesg=N" and a carriage return to a file for each mail."""

    host = "127.0.0.1"

    def __init__(self, port: int, counter: Path) -> None:
        self.port = port
        self._file = os.open(counter, os.O_RDONLY)

    @property
    def count(self) -> int:
        """Return the number of mails that have arrived."""
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
        """Wait until this many mails have arrived; more are an error unless allowed.

        `check` raises if the sender has failed. The time counts from the first mail, or from
        `since`.
        """
        seen, at, before = self._next_change(0, check)
        first_count, first_at = (seen, at) if since is None else (0, since)
        if first_count >= count:  # all of them came between two looks
            first_count, first_at = 0, before
        while seen < count:
            seen, at, _before = self._next_change(seen, check)
        if seen > count and not then_more:
            raise Failed(f"{seen} mails arrived, {count} were sent")
        return Flow(seen - first_count, at - first_at)

    def _next_change(self, seen: int, check: Callable[[], None]) -> tuple[int, float, float]:
        """Return the next count, with the times of the look that saw it and of the one before."""
        before = time.perf_counter()
        deadline = before + _LONGEST_SILENCE
        while True:
            # Pause even while mails pour in: a busy loop would take a core from the contender.
            time.sleep(_LOOK_EVERY)
            count, now = self.count, time.perf_counter()
            if count != seen:
                return count, now, before
            before = now
            check()
            if now > deadline:
                raise Failed(f"{count} mails arrived, then none for {_LONGEST_SILENCE:.0f} s")

    @property
    def env(self) -> dict[str, str]:
        """Return the settings of Flask-Mail that lead to this server."""
        return {"MAIL_SERVER": self.host, "MAIL_PORT": str(self.port)}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        os.close(self._file)


@contextmanager
def running_sink(folder: Path) -> Iterator[Sink]:
    """Start an smtp-sink, whose count begins at 0."""
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
