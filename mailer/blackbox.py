"""The black box: what a process has in its hands, noted on a local disk for whoever finds the process dead.

The database says what a worker had claimed and what it was about to send. The box says what of this was begun, and what the
relay had taken: after a `kill -9` only the mail that was on the wire is in doubt.

A note is a single write, without a sync: it survives the process, but not the machine. So what was noted before a reboot is
not believed. Whether a process lives is told by its lock on its box, which the kernel takes away with the process.
"""

import fcntl
import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from mailer.forks import survive_forks
from mailer.logs import get_logger
from mailer.machine import boot_id

_FORMAT = "mailer-1"
# Boxes that are not ours to settle: by then, all leases are over.
_USELESS_AFTER = 86400.0

log = get_logger(__name__)


@dataclass(slots=True)
class Remains:
    """What a process had in its hands when it died."""

    token: str  #: of its claim
    composing: str = ""  #: the mail whose bytes it was making
    begun: dict[int, str] = field(default_factory=dict)  #: the relay that was being told the mail, by delivery
    taken: dict[int, str] = field(default_factory=dict)  #: of these, those it took, and its words


class Box:
    """The notes of one thread that delivers. A box that can't be written goes away: half the truth would be a lie."""

    def __init__(self, path: Path, file: int | None) -> None:
        self._path = path
        self._file = file

    def claiming(self, token: str) -> None:
        """All before is settled; from now on, the claim with this token is in our hands."""
        if self._file is not None:
            os.ftruncate(self._file, 0)
        self._note(f"{_FORMAT} {_boot()} {token}")

    def calling(self, relay: str) -> None:
        """From now on, it is this relay that is waited for."""
        self._note(f"calling {relay}")

    def composing(self, mail_id: str) -> None:
        self._note(f"composing {mail_id}")

    def composed(self) -> None:
        """What comes next can't be the fault of the mail that was composed last."""
        self._note("composed")

    def begun(self, delivery_id: int, relay: str) -> None:
        """Its first byte is about to be said."""
        self._note(f"begun {delivery_id} {relay}")

    def taken(self, delivery_id: int, reply: str) -> None:
        self._note(f"taken {delivery_id} {reply}")

    def over(self, delivery_id: int) -> None:
        """The relay does not have it."""
        self._note(f"over {delivery_id}")

    def close(self) -> None:
        """Leave it to whoever looks for the boxes of the dead."""
        file, self._file = self._file, None
        if file is not None:
            os.close(file)

    def remove(self) -> None:
        """There is nothing left to settle."""
        if self._file is not None:
            self._path.unlink(missing_ok=True)
            self.close()

    def _note(self, note: str) -> None:
        if self._file is None:
            return
        line = f"{note}\n".encode("utf-8", "replace")
        try:
            if os.write(self._file, line) == len(line):
                return
            reason = "no space left"
        except OSError as error:
            reason = str(error)
        log.warning("%s can't be written (%s): if this process dies now, its mail waits for its leases.", self._path, reason)
        self.remove()


class BlackBox:
    """All boxes of one installation on this host. Without a folder nothing is noted."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._open: set[Box] = set()
        survive_forks(self)

    @contextmanager
    def box(self) -> Iterator[Box]:
        """One for the calling thread. What ends in an exception is not settled yet, so its box stays."""
        box = self._new()
        self._open.add(box)
        try:
            yield box
        except BaseException:
            box.close()
            raise
        else:
            box.remove()
        finally:
            self._open.discard(box)

    def settle_remains(self, settle: Callable[[Remains], None]) -> None:
        """Of each process of this host that died. If they can't be settled now, their box stays for the next one who looks."""
        for path in self._found():
            with _in_nobodys_hands(path) as file:
                if file is None:
                    continue
                if (remains := _read(file)) is not None:
                    settle(remains)
                elif not _is_useless(file):
                    continue
                path.unlink(missing_ok=True)

    def waited_for(self, seconds: float) -> set[str]:
        """The relays that keep somebody on this host waiting for so long, each without another note."""
        relays = set()
        for path in self._found():
            with suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > seconds:
                    relays.add(_calling(path.read_text(encoding="utf-8", errors="replace")))
        return relays - {""}

    def after_fork_in_child(self) -> None:
        """A child that kept its parent's boxes open would keep them locked."""
        for box in self._open:
            box.close()
        self._open.clear()

    def _new(self) -> Box:
        if self._folder is not None:
            try:
                self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                return Box(*_made(self._folder))
            except OSError as error:
                log.warning("No black box can be kept (%s): see MAILER_BLACK_BOX.", error)
                self._folder = None
        return Box(Path(), None)

    def _found(self) -> list[Path]:
        if self._folder is None:
            return []
        with suppress(FileNotFoundError):
            return sorted(self._folder.iterdir())
        return []


def _made(folder: Path) -> tuple[Path, int]:
    """A file that is there and locked. Before it is locked, whoever looks takes it for that of a dead process and removes it."""
    while True:
        path = folder / secrets.token_hex(8)
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
        fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(file).st_nlink:
            return path, file
        os.close(file)


@contextmanager
def _in_nobodys_hands(path: Path) -> Iterator[int | None]:
    """Locked, so that one of all who look settles it; None while somebody lives who has it."""
    try:
        file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        yield None
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield file if os.fstat(file).st_nlink else None
    except BlockingIOError:
        yield None
    finally:
        os.close(file)


def _read(file: int) -> Remains | None:
    """None: nothing that this code could settle."""
    header, *notes = os.pread(file, os.fstat(file).st_size, 0).decode("utf-8", "replace").split("\n")[:-1] or [""]
    form, boot, token = (*header.split(" "), "", "", "")[:3]
    if form != _FORMAT or boot != _boot():
        return None
    remains = Remains(token)
    for note in notes:
        what, _, about = note.partition(" ")
        _take_note(remains, what, *about.split(" ", 1))
    return remains


def _calling(notes: str) -> str:
    """The relay that was called last."""
    _, called, rest = notes.rpartition("\ncalling ")
    return rest.partition("\n")[0] if called else ""


def _take_note(remains: Remains, what: str, key: str, words: str = "") -> None:
    match what:
        case "composing":
            remains.composing = key
        case "composed":
            remains.composing = ""
        case "begun":
            remains.begun[int(key)] = words
        case "taken":
            remains.taken[int(key)] = words
        case "over":
            remains.begun.pop(int(key), None)


def _is_useless(file: int) -> bool:
    known = os.fstat(file)
    return known.st_size == 0 or time.time() - known.st_mtime > _USELESS_AFTER


@cache
def _boot() -> str:
    """Where nothing tells, no box is believed."""
    return boot_id() or secrets.token_hex(8)
