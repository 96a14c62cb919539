"""The black box: what a process has in its hands, noted on a local disk for whoever finds the process dead.

The database says what a worker had claimed and what it was about to send. The box says what of this was begun, and what the
relay had taken: after a `kill -9` only the mail that was on the wire is in doubt.

A note is a single write, without a sync: it survives the process, but not the machine. So what was noted before a reboot is
not believed. Whether a process lives is told by its lock on its box, which the kernel takes away with the process.
"""

import errno
import fcntl
import os
import secrets
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path

from mailer.forks import notice_fork, survive_forks
from mailer.logs import get_logger
from mailer.machine import boot_id
from mailer.private import create_private_file, make_private_folder

_FORMAT = "mailer-1"
# Boxes that are not ours to settle: by then, all leases are over.
_USELESS_AFTER = 86400.0
# One of which the database knows nothing is looked into again so seldom.
_LOOK_AGAIN_SECONDS = 10.0
# A box has the notes of one claim, a few hundred kilobytes at most. What is larger is not read.
_LARGEST = 64 << 20

log = get_logger(__name__)


@dataclass(slots=True)
class Remains:
    """The deliveries that a process had in its hands when it died, or lost the database."""

    token: str  #: of its claim
    calling: str = ""  #: the relay that it called last
    composing: str = ""  #: the mail whose bytes it was making
    begun: dict[int, str] = field(default_factory=dict)  #: the relay that was being told the mail, by delivery
    taken: dict[int, str] = field(default_factory=dict)  #: of these, those it took, and its words

    @property
    def tells_something(self) -> bool:
        """Tell whether they say more than which claim it was."""
        return bool(self.begun or self.composing)


class Box:
    """The notes of one thread that delivers. A box that can't be written goes away: half the truth would be a lie."""

    def __init__(self, path: Path, file: int | None, warn: "Warn") -> None:
        self._path = path
        self._file = file
        self._warn = warn

    def claiming(self, token: str) -> None:
        """Begin anew with the claim that has this token: all before is settled."""
        if self._file is not None:
            try:
                os.ftruncate(self._file, 0)
            except OSError as error:
                self._go_without(error)
        self._note(f"{_FORMAT} {_boot()} {token}")

    def calling(self, relay: str) -> None:
        """Note the relay that is waited for from now on."""
        self._note(f"calling {relay}")

    def composing(self, mail_id: str) -> None:
        self._note(f"composing {mail_id}")

    def composed(self) -> None:
        """Note that the mail is composed: what comes next can't be its fault."""
        self._note("composed")

    def begun(self, delivery_id: int, relay: str) -> None:
        """Note that the first byte of a mail is about to be sent."""
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
        """There is nothing left to settle. An empty box settles nothing, where files can't be removed."""
        if self._file is None:
            return
        emptied = _succeeds(partial(os.ftruncate, self._file, 0))
        removed = _succeeds(partial(self._path.unlink, missing_ok=True))
        if emptied or removed:
            self.close()
        else:
            self._file = None  # still locked, so that nobody believes it while this process lives

    def _note(self, note: str) -> None:
        if self._file is None:
            return
        line = f"{note}\n".encode("utf-8", "replace")
        try:
            if os.write(self._file, line) != len(line):
                self._go_without(OSError(errno.ENOSPC, "no space left"))
        except OSError as error:
            self._go_without(error)

    def _go_without(self, error: OSError) -> None:
        self._warn("written", self._path, error)
        self.remove()


class BlackBox:
    """All boxes of one installation on this host. Without a folder nothing is noted.

    `former` is a folder where workers of an older version have theirs. A box of which the database
    knows nothing may be that of another installation: it stays for `kept` seconds.
    """

    def __init__(self, folder: Path | None, *, former: Path | None = None, kept: float = _USELESS_AFTER) -> None:
        self._folder = folder
        self._folders = [one for one in (folder, former) if one is not None]
        self._kept = kept
        self._look_again: dict[Path, float] = {}  # when, by boxes of which nothing was found
        self._open: set[Box] = set()
        self._warned: set[tuple[str, str]] = set()
        survive_forks(self)

    @contextmanager
    def box(self) -> Iterator[Box]:
        """Open a box for the calling thread. What ends in an exception is not settled yet, so its box stays."""
        notice_fork()
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

    def settle_remains(self, settle: Callable[[Remains], bool]) -> None:
        """Settle what each process of this host that died had in its hands.

        `settle` tells whether the database knew of any of it.
        If that can't be done now, its box stays for the next one who looks, and the first error is raised at the end.
        """
        errors: list[Exception] = []
        paths, now = self._found(), time.monotonic()
        self._look_again = {path: at for path, at in self._look_again.items() if path in paths}
        for path in paths:
            if self._look_again.get(path, now) > now:
                continue
            try:
                if error := self._settle_box(path, settle):
                    errors.append(error)
            except OSError as error:
                self._warn("read or removed", path, error)
        if errors:
            raise errors[0]

    def _settle_box(self, path: Path, settle: Callable[[Remains], bool]) -> Exception | None:
        """Return why what a dead process left there could not be settled."""
        with _in_nobodys_hands(path) as file:
            if file is None:
                return None
            if (remains := self._read(path, file)) is not None:
                try:
                    was_known = settle(remains)
                except Exception as error:  # noqa: BLE001 -- the other boxes have nothing to do with it
                    return error
                if not was_known and remains.tells_something and not _is_older(file, self._kept):
                    self._look_again[path] = time.monotonic() + _LOOK_AGAIN_SECONDS
                    return None
                os.ftruncate(file, 0)  # settled, should the file stay
            elif os.fstat(file).st_size and not _is_older(file, _USELESS_AFTER):
                return None
            path.unlink(missing_ok=True)
        return None

    def waited_for(self, seconds: float) -> set[str]:
        """Return the relays that a living process of this host has been waiting for, for so long, without another note."""
        relays = set()
        for path in self._found():
            with suppress(OSError, ValueError):  # the tick says what can't be read
                if _is_unchanged_for(path, seconds) and not _is_in_nobodys_hands(path):
                    relays.add(_calling(path))
        return relays - {""}

    def after_fork_in_child(self) -> None:
        """A child that kept its parent's boxes open would keep them locked."""
        for box in self._open:
            box.close()
        self._open.clear()

    def _new(self) -> Box:
        if self._folder is not None:
            try:
                make_private_folder(self._folder)
                return Box(*_made(self._folder), self._warn)
            except OSError as error:
                self._warn("kept", self._folder, error)
        return Box(Path(), None, self._warn)

    def _found(self) -> list[Path]:
        return [path for folder in self._folders for path in self._found_in(folder)]

    def _found_in(self, folder: Path) -> list[Path]:
        try:
            return sorted(folder.iterdir())
        except FileNotFoundError:
            return []
        except OSError as error:
            self._warn("found", folder, error)
            return []

    def _read(self, path: Path, file: int) -> Remains | None:
        """Return None if the notes are not of this boot and this version, or make no sense."""
        try:
            return _read(file)
        except ValueError as error:
            self._warn("understood", path, error)
            return None

    def _warn(self, verb: str, path: Path, error: Exception) -> None:
        """Log what is wrong with the disk, once for each reason: a sweep looks twice a second."""
        reason = getattr(error, "strerror", None) or str(error)
        if (verb, reason) in self._warned:
            return
        self._warned.add((verb, reason))
        log.warning(
            "No black box can be %s: path=%r error=%r. Mail goes on, and that of a worker that dies waits for its leases. Give"
            " the folder to the user that the workers run as, or set MAILER_BLACK_BOX to another folder on a local disk.",
            verb,
            str(path),
            reason,
        )


Warn = Callable[[str, Path, Exception], None]


def _succeeds(change: Callable[[], object]) -> bool:
    try:
        change()
    except OSError:
        return False
    return True


def _made(folder: Path) -> tuple[Path, int]:
    """A file that is there and locked. Before it is locked, whoever looks takes it for that of a dead process and removes it."""
    while True:
        path = folder / secrets.token_hex(8)
        file = create_private_file(path, os.O_RDWR | os.O_APPEND)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:  # this file system has no locks, or no more of them
            path.unlink(missing_ok=True)
            os.close(file)
            raise
        if os.fstat(file).st_nlink:
            return path, file
        os.close(file)


@contextmanager
def _in_nobodys_hands(path: Path) -> Iterator[int | None]:
    """Locked, so that one of all who look settles it; None while somebody lives who has it."""
    try:  # without waiting, should it be a pipe
        file = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        yield None
        return
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise OSError(errno.EINVAL, "it is no regular file")
        yield file if _locks(file) and os.fstat(file).st_nlink else None
    finally:
        os.close(file)


def _is_in_nobodys_hands(path: Path) -> bool:
    with _in_nobodys_hands(path) as file:
        return file is not None


def _is_unchanged_for(path: Path, seconds: float) -> bool:
    known = path.lstat()
    return stat.S_ISREG(known.st_mode) and time.time() - known.st_mtime > seconds


def _locks(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _read(file: int) -> Remains | None:
    """Return the notes of a box; None if it is of another boot, or of a version that this code does not know."""
    size = os.fstat(file).st_size
    if size > _LARGEST:
        raise ValueError("it is too large")
    header, *notes = os.pread(file, size, 0).decode("utf-8", "replace").split("\n")[:-1] or [""]
    form, boot, token = (*header.split(" "), "", "", "")[:3]
    if form != _FORMAT or boot != _boot():
        return None
    if any("\0" in line for line in (token, *notes)):
        raise ValueError("it has null bytes")
    remains = Remains(token)
    for note in notes:
        what, _, about = note.partition(" ")
        _take_note(remains, what, about)
    return remains


def _calling(path: Path) -> str:
    """Return the relay that was called last; "" if none was, or the notes can't be believed."""
    with path.open("rb") as file:
        remains = _read(file.fileno())
    return remains.calling if remains else ""


def _take_note(remains: Remains, what: str, about: str) -> None:
    key, _, words = about.partition(" ")
    match what:
        case "calling":
            remains.calling = about
        case "composing":
            remains.composing = key
        case "composed":
            remains.composing = ""
        case "begun":
            remains.begun[_number(key)] = words
        case "taken":
            remains.taken[_number(key)] = words
        case "over":
            remains.begun.pop(_number(key), None)


def _number(key: str) -> int:
    if not key.isdecimal():
        raise ValueError("it has a note without a number")
    return int(key)


def _is_older(file: int, seconds: float) -> bool:
    return time.time() - os.fstat(file).st_mtime > seconds


@cache
def _boot() -> str:
    """Return the id of this boot. Where the system has none it is a random one, and no box of others is believed."""
    return boot_id() or secrets.token_hex(8)
