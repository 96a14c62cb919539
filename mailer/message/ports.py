"""The ports: interfaces that lower modules call, so that a test can put something else there."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from mailer.message.events import AnyEvent, EventKind
from mailer.message.states import Lane


class Bell(Protocol):
    """The doorbell of the workers. A ring may come late, twice or never: it only saves time."""

    def ring(
        self,
        mails: Collection[str] = (),
        *,
        lanes: Collection[Lane] = (Lane.NORMAL,),
        urge: bool = False,
    ) -> bool:
        """Tell the workers of these lanes that mail is due. Return False if some will not hear it.

        `mails` are the ids of the mails that the caller has just stored, if the ring is about
        these. A ring to workers never raises and never waits for long. With `urge`, ring even if
        the last ring was not answered: it may have been lost.
        """

    def answer(self, queue: str = "") -> None:
        """Note that a worker is about to look for mail, so that the next ring is sent.

        `queue` is the queue of the broker in which the worker has found the ring.
        """


class Clock(Protocol):
    """Time, sleep and chance."""

    def time(self) -> float:
        """Return the seconds since the epoch."""

    def monotonic(self) -> float:
        """Return seconds that never run backwards."""

    def sleep(self, seconds: float) -> None:
        """Wait."""

    def random(self) -> float:
        """Return a number in [0, 1)."""


@dataclass(frozen=True, slots=True)
class FileStatus:
    """The status of an open file."""

    size: int  #: in bytes
    modified_at: float  #: in seconds since the epoch
    is_removed: bool  #: from its folder, while it was open


class Disk(Protocol):
    """A local disk. Open files are numbers. Failures raise `OSError`.

    Writes are not synced: they survive the process, but not the machine.
    """

    def make_folder(self, folder: Path, /) -> None:
        """Make a folder and its missing parents, for their owner only."""

    def list_files(self, folder: Path) -> list[Path]:
        """Return the paths in a folder, sorted."""

    def create(self, path: Path) -> int:
        """Create a file for its owner only, and open it to append."""

    def open(self, path: Path) -> int:
        """Open a regular file to read it, lock it or truncate it."""

    def lock(self, file: int, *, wait: bool) -> bool:
        """Lock a file until it is closed. Return False if another process has the lock.

        With `wait`, wait for the lock instead.
        """

    def write(self, file: int, data: bytes, /) -> int:
        """Append to a file. Return the number of bytes for which there was room."""

    def read(self, file: int, size: int) -> bytes:
        """Return the first bytes of a file."""

    def truncate(self, file: int) -> None:
        """Remove the content of a file."""

    def status(self, file: int) -> FileStatus:
        """Return the size and the age of a file, and whether it was removed."""

    def close(self, file: int, /) -> None:
        """Close a file, which unlocks it."""

    def remove(self, path: Path) -> None:
        """Remove a file, if it is still there."""


class Outlet(Protocol):
    """The receiver of events, after the commit."""

    def listens_to(self, kind: EventKind) -> bool:
        """Return whether anybody wants such events. If not, they are not even read."""

    def publish(self, events: Sequence[AnyEvent]) -> None:
        """Take events whose transaction is committed. Never raise, never wait."""
