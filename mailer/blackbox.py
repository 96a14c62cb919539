"""The black box: a journal on a local disk of the mails that a process is sending.

The database knows the claimed and the marked deliveries of a worker. The box knows which of these
were begun, and which the relay accepted: after a `kill -9`, only the mail on the wire is in doubt.

A note is a single write, without a sync: it survives the process, but not the machine. Notes from
before a reboot are therefore ignored. A process holds a file lock on its box as long as it lives.
"""

import errno
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache, partial
from logging import Logger
from pathlib import Path

from mailer.forks import notice_fork, survive_forks
from mailer.logs import get_logger
from mailer.machine import boot_id
from mailer.message.ports import Clock, Disk

_FORMAT = "mailer-1"
# The age at which unreadable boxes are removed: all leases have ended by then.
_USELESS_AFTER = 86400.0
# The time between two reads of a box of which the database knows nothing.
_LOOK_AGAIN_SECONDS = 10.0
# A box has the notes of one claim, a few hundred kilobytes at most. Larger files are not read.
_MAX_SIZE = 64 << 20

log: Logger = get_logger(__name__)


@dataclass(slots=True)
class Remains:
    """The notes of a process that died, or that lost the database."""

    token: str  #: of the claim
    calling: str = ""  #: the relay of the last connection
    composing: str = ""  #: the content that was being composed
    #: delivery -> relay, for mails that were being sent
    begun: dict[int, str] = field(default_factory=dict)
    #: delivery -> reply, for mails that the relay accepted
    taken: dict[int, str] = field(default_factory=dict)

    @property
    def tells_something(self) -> bool:
        """True if there is more than the token of the claim."""
        return bool(self.begun or self.composing)


class Box:
    """The notes of a delivering thread. An unwritable box is removed: half of it would mislead."""

    def __init__(self, disk: Disk, path: Path, file: int | None, warn: "Warn") -> None:
        self._disk = disk
        self._path = path
        self._file = file
        self._warn = warn
        #: The notes of the present claim could be neither continued nor removed.
        self.is_stale: bool = False

    def claiming(self, token: str) -> None:
        """Begin the notes of a new claim: everything before is settled."""
        if self._file is not None:
            try:
                self._disk.truncate(self._file)
            except OSError as error:
                self._give_up(error)
        self._note(f"{_FORMAT} {_boot()} {token}")
        self.is_stale = False  # notes that stayed are of another claim

    def calling(self, relay: str) -> None:
        """Note the relay that the process waits for from now on."""
        self._note(f"calling {relay}")

    def composing(self, content_key: str) -> None:
        self._note(f"composing {content_key}")

    def composed(self) -> None:
        """Note that the mail is composed: later failures are not its fault."""
        self._note("composed")

    def begun(self, delivery_id: int, relay: str) -> None:
        """Note that the first byte of a mail is about to be sent."""
        self._note(f"begun {delivery_id} {relay}")

    def taken(self, delivery_id: int, reply: str) -> None:
        self._note(f"taken {delivery_id} {reply}")

    def over(self, delivery_id: int) -> None:
        """Note that the relay did not accept the mail."""
        self._note(f"over {delivery_id}")

    def close(self) -> None:
        """Unlock the box, so that another process settles it."""
        file, self._file = self._file, None
        if file is not None:
            self._disk.close(file)

    def remove(self) -> None:
        """Remove the box: nothing is left to settle. Empty it in case it can't be removed."""
        if self._file is None:
            return
        emptied = _succeeds(partial(self._disk.truncate, self._file))
        removed = _succeeds(partial(self._disk.remove, self._path))
        if emptied or removed:
            self.close()
        else:
            # Still locked: others ignore it while this process lives.
            self._file, self.is_stale = None, True

    def _note(self, note: str) -> None:
        if self._file is None:
            return
        line = f"{note}\n".encode("utf-8", "replace")
        try:
            if self._disk.write(self._file, line) != len(line):
                self._give_up(OSError(errno.ENOSPC, "no space left"))
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        self._warn("written", self._path, error)
        self.remove()


class BlackBox:
    """The boxes of an installation on this machine. Without a folder, there are none.

    `former` is the folder of workers of an older version. A box of which the database knows nothing
    may belong to another installation: it stays for `kept` seconds.
    """

    def __init__(
        self,
        folder: Path | None,
        disk: Disk,
        clock: Clock,
        *,
        former: Path | None = None,
        kept: float = _USELESS_AFTER,
    ) -> None:
        self._folder = folder
        self._folders = [one for one in (folder, former) if one is not None]
        self._disk = disk
        self._clock = clock
        self._kept = kept
        # box -> when, for boxes of which nothing was found
        self._look_again: dict[Path, float] = {}
        self._open: set[Box] = set()
        self._warned: set[tuple[str, str]] = set()
        survive_forks(self)

    @contextmanager
    def box(self) -> Iterator[Box]:
        """Open a box for the calling thread. It stays after an exception, to be settled."""
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
        """Settle the boxes of processes of this machine that died.

        `settle` returns whether the database knew of any of the notes. If it raises, the box stays
        for later, and the first error is raised at the end.
        """
        errors: list[Exception] = []
        paths, now = self._found(), self._clock.monotonic()
        self._look_again = {path: at for path, at in self._look_again.items() if path in paths}
        for path in paths:
            if self._look_again.get(path, now) > now:
                continue
            try:
                if error := self._settle_box(path, settle):
                    errors.append(error)
            except FileNotFoundError:
                continue  # another process has settled it
            except OSError as error:
                self._warn("read or removed", path, error)
        if errors:
            raise errors[0]

    def _settle_box(self, path: Path, settle: Callable[[Remains], bool]) -> Exception | None:
        """Settle a box. Return the error of `settle`, if any."""
        disk = self._disk
        with self._opened(path) as file:
            if not self._is_orphaned(file):
                return None
            if (remains := self._read(path, file)) is not None:
                try:
                    was_known = settle(remains)
                except Exception as error:  # noqa: BLE001 -- no error may stop the other boxes
                    return error
                if (
                    not was_known
                    and remains.tells_something
                    and not self._is_older(file, self._kept)
                ):
                    self._look_again[path] = self._clock.monotonic() + _LOOK_AGAIN_SECONDS
                    return None
                disk.truncate(file)  # settled, should the file stay
            elif disk.status(file).size and not self._is_older(file, _USELESS_AFTER):
                return None
            disk.remove(path)
        return None

    def waited_for(self, seconds: float) -> set[str]:
        """Return the relays for which living processes have waited so long without a note."""
        relays = set()
        for path in self._found():
            # `settle_remains` warns about unreadable files
            with suppress(OSError, ValueError), self._opened(path) as file:
                if self._is_older(file, seconds) and not self._is_orphaned(file):
                    relays.add(self._calling(file))
        return relays - {""}

    def after_fork_in_child(self) -> None:
        """Close the boxes of the parent, which would stay locked."""
        for box in self._open:
            box.close()
        self._open.clear()

    def _new(self) -> Box:
        if self._folder is not None:
            try:
                self._disk.make_folder(self._folder)
                return Box(self._disk, *self._create(self._folder), self._warn)
            except OSError as error:
                self._warn("kept", self._folder, error)
        return Box(self._disk, Path(), None, self._warn)

    def _create(self, folder: Path) -> tuple[Path, int]:
        """Create and lock a file. Repeat that if another process removed it before the lock."""
        disk = self._disk
        while True:
            path = folder / secrets.token_hex(8)
            file = disk.create(path)
            try:
                disk.lock(file, wait=True)
            except OSError:  # the file system has no locks, or no more of them
                disk.remove(path)
                disk.close(file)
                raise
            if not disk.status(file).is_removed:
                return path, file
            disk.close(file)

    def _found(self) -> list[Path]:
        return [path for folder in self._folders for path in self._found_in(folder)]

    def _found_in(self, folder: Path) -> list[Path]:
        try:
            return self._disk.list_files(folder)
        except FileNotFoundError:
            return []
        except OSError as error:
            self._warn("found", folder, error)
            return []

    @contextmanager
    def _opened(self, path: Path) -> Iterator[int]:
        file = self._disk.open(path)
        try:
            yield file
        finally:
            self._disk.close(file)

    def _is_orphaned(self, file: int) -> bool:
        """Lock the box if its process is dead, so that only one process settles it."""
        return self._disk.lock(file, wait=False) and not self._disk.status(file).is_removed

    def _is_older(self, file: int, seconds: float) -> bool:
        return self._clock.time() - self._disk.status(file).modified_at > seconds

    def _read(self, path: Path, file: int) -> Remains | None:
        """Return None for notes of another boot or version, or invalid ones."""
        try:
            return self._remains(file)
        except ValueError as error:
            self._warn("understood", path, error)
            return None

    def _remains(self, file: int) -> Remains | None:
        """Return the notes of a box. Raise ValueError if they are invalid."""
        size = self._disk.status(file).size
        if size > _MAX_SIZE:
            raise ValueError("too large")
        return _parse(self._disk.read(file, size))

    def _calling(self, file: int) -> str:
        """Return the relay of the last connection, or "" without one."""
        remains = self._remains(file)
        return remains.calling if remains else ""

    def _warn(self, verb: str, path: Path, error: Exception) -> None:
        """Log a failure of the disk, once for each reason: a sweep looks twice a second."""
        reason = getattr(error, "strerror", None) or str(error)
        if (verb, reason) in self._warned:
            return
        self._warned.add((verb, reason))
        log.warning(
            "Black box can't be %s: path=%r error=%r. Mail goes on, but that of a dead worker waits"
            " for its leases. Give the folder to the user that the workers run as, or set"
            " MAILER_BLACK_BOX to another folder on a local disk.",
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


def _parse(content: bytes) -> Remains | None:
    """Return the notes of a box. Return None for another boot or an unknown version."""
    header, *notes = content.decode("utf-8", "replace").split("\n")[:-1] or [""]
    form, boot, token = (*header.split(" "), "", "", "")[:3]
    if form != _FORMAT or boot != _boot():
        return None
    if any("\0" in line for line in (token, *notes)):
        raise ValueError("null bytes")
    remains = Remains(token)
    for note in notes:
        kind, _, details = note.partition(" ")
        _apply_note(remains, kind, details)
    return remains


def _apply_note(remains: Remains, kind: str, details: str) -> None:
    key, _, text = details.partition(" ")
    match kind:
        case "calling":
            remains.calling = details
        case "composing":
            remains.composing = key
        case "composed":
            remains.composing = ""
        case "begun":
            remains.begun[_number(key)] = text
        case "taken":
            remains.taken[_number(key)] = text
        case "over":
            remains.begun.pop(_number(key), None)


def _number(key: str) -> int:
    if not key.isdecimal():
        raise ValueError("a note without a number")
    return int(key)


@cache
def _boot() -> str:
    """Return the id of this boot, or a random one, so that all other boxes are ignored."""
    return boot_id() or secrets.token_hex(8)
