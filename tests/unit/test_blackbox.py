"""The black box: its notes, who may settle them, and when they are not trusted."""

import ctypes
import errno
import os
import signal
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from mailer import blackbox, machine
from mailer.blackbox import BlackBox, Remains
from mailer.clock import SystemClock
from mailer.disk import SystemDisk
from mailer.forks import notice_fork
from tests.services.mounts import immutable, read_only, small_disk
from tests.services.users import as_another_user
from tests.services.waiting import wait_until

Box = blackbox.Box
Write = Callable[[Box], None]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "instance" / "black-box"


@pytest.fixture
def black_box(folder: Path) -> BlackBox:
    return BlackBox(folder, SystemDisk(), SystemClock())


def leave(black_box: BlackBox, write: Write) -> None:
    """Write notes as a thread does that delivers, and end it with an exception."""
    with suppress(ZeroDivisionError), black_box.box() as box:
        write(box)
        raise ZeroDivisionError


def found(black_box: BlackBox) -> list[Remains]:
    return settled(black_box, was_known=True)


def settled(black_box: BlackBox, *, was_known: bool) -> list[Remains]:
    found: list[Remains] = []

    def settle(remains: Remains) -> bool:
        found.append(remains)
        return was_known

    black_box.settle_remains(settle)
    return found


# --- what it says -------------------------------------------------------------------------------


def delivering(box: Box) -> None:
    box.claiming("token")
    box.composing("mail1")
    box.composed()
    for number in (1, 2, 3):
        box.begun(number, "our relay")
    box.taken(1, "250 2.0.0 queued as 4 F")
    box.over(2)
    box.composing("mail2")


def test_what_a_thread_had_in_its_hands(black_box: BlackBox) -> None:
    """The notes tell which mails were taken, in flight or being composed."""
    leave(black_box, delivering)

    [remains] = found(black_box)

    assert remains == Remains(
        "token",
        composing="mail2",
        begun={1: "our relay", 3: "our relay"},
        taken={1: "250 2.0.0 queued as 4 F"},
    )


def test_a_mail_that_is_composed_is_not_suspected(black_box: BlackBox) -> None:
    """A mail that is already composed is not blamed for the death of its process."""

    def composed(box: Box) -> None:
        box.claiming("token")
        box.composing("mail1")
        box.composed()

    leave(black_box, composed)

    assert found(black_box) == [Remains("token")]


def test_a_new_claim_means_that_the_one_before_is_settled(black_box: BlackBox) -> None:
    """A new claim discards the notes of the one before."""

    def twice(box: Box) -> None:
        delivering(box)
        box.claiming("another")

    leave(black_box, twice)

    assert found(black_box) == [Remains("another")]


def test_a_note_that_was_cut_off(black_box: BlackBox, folder: Path) -> None:
    """A note that was cut off is ignored, since its step was not taken."""
    leave(black_box, delivering)
    [path] = folder.iterdir()
    with path.open("a") as box:
        box.write("taken 3 25")

    assert found(black_box)[0].taken.keys() == {1}


# --- who may read it ----------------------------------------------------------------------------


def test_the_box_of_a_living_process(black_box: BlackBox) -> None:
    """The box of a process that is alive is left alone."""
    with black_box.box() as box:
        delivering(box)

        assert found(black_box) == []
        assert found(BlackBox(black_box._folder, SystemDisk(), SystemClock())) == []


def test_the_box_of_a_killed_process(black_box: BlackBox) -> None:
    """The box of a killed process can be settled."""
    read, write = os.pipe()
    if not (child := os.fork()):
        with black_box.box() as box:
            delivering(box)
            os.write(write, b".")
            signal.pause()  # until it is killed
    os.read(read, 1)
    assert found(black_box) == []

    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)

    assert [remains.token for remains in found(black_box)] == ["token"]


@pytest.mark.parametrize("fork", [os.fork, ctypes.PyDLL(None).fork])
def test_a_child_does_not_keep_its_parents_box_locked(
    black_box: BlackBox, fork: Callable[[], int]
) -> None:
    """The box of a killed process can be settled while its forked child is alive."""
    with suppress(ZeroDivisionError), black_box.box() as box:
        delivering(box)
        if not (child := fork()):
            notice_fork()
            signal.pause()  # until it is killed
        raise ZeroDivisionError

    try:
        wait_until(lambda: found(black_box))
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_box_that_is_seen_before_it_is_locked(black_box: BlackBox, folder: Path) -> None:
    """A box removed by another process before its owner locked it is replaced by its owner."""
    removed: list[list[Path]] = []

    class SlowDisk(SystemDisk):
        def lock(self, file: int, *, wait: bool) -> bool:
            if not removed:
                removed.append([*folder.iterdir()])
                assert found(black_box) == []
            return super().lock(file, wait=wait)

    leave(BlackBox(folder, SlowDisk(), SystemClock()), delivering)

    assert removed[0] != [*folder.iterdir()]
    assert [remains.token for remains in found(black_box)] == ["token"]


def test_it_is_settled_once(black_box: BlackBox, folder: Path) -> None:
    """A box is removed once it is settled, or once its thread has ended without an error."""
    leave(black_box, delivering)
    with black_box.box() as box:
        delivering(box)

    assert len(found(black_box)) == 1
    assert found(black_box) == []
    assert list(folder.iterdir()) == []


def test_what_can_t_be_settled_now(black_box: BlackBox) -> None:
    """A box whose settling failed stays for the next attempt."""

    def unable(_remains: Remains) -> bool:
        raise ZeroDivisionError

    leave(black_box, delivering)
    with pytest.raises(ZeroDivisionError):
        black_box.settle_remains(unable)

    assert [remains.token for remains in found(black_box)] == ["token"]


def test_a_box_that_can_t_be_settled_does_not_hold_up_the_others(
    black_box: BlackBox, folder: Path
) -> None:
    """A box that cannot be settled does not prevent settling the others."""
    leave(black_box, delivering)
    [first] = folder.iterdir()
    first.rename(folder / "0")  # it is looked at first
    leave(black_box, lambda box: box.claiming("another"))
    settled: list[str] = []

    def settle(remains: Remains) -> bool:
        if remains.token == "token":
            raise ZeroDivisionError
        settled.append(remains.token)
        return True

    with pytest.raises(ZeroDivisionError):
        black_box.settle_remains(settle)

    assert settled == ["another"]
    assert [*folder.iterdir()] == [folder / "0"]


def test_a_box_of_which_nothing_is_known(folder: Path) -> None:
    """A box with an unknown token, perhaps another installation's, is kept for a limited time."""
    black_box = BlackBox(folder, SystemDisk(), SystemClock(), kept=60)
    leave(black_box, delivering)
    [path] = folder.iterdir()
    leave(black_box, lambda box: box.claiming("another"))

    assert len(settled(black_box, was_known=False)) == 2
    assert [*folder.iterdir()] == [path]
    assert settled(black_box, was_known=False) == []

    assert len(found(BlackBox(folder / "other", SystemDisk(), SystemClock(), former=folder))) == 1
    assert not path.exists()
    leave(black_box, delivering)
    for path in folder.iterdir():
        os.utime(path, (0, 0))
    assert len(settled(black_box, was_known=False)) == 1
    assert not [*folder.iterdir()]


# --- who is waited for --------------------------------------------------------------------------


def test_a_relay_that_keeps_somebody_waiting(black_box: BlackBox, folder: Path) -> None:
    """A process without notes for a while is waiting for the relay it called last."""
    with black_box.box() as box:
        box.claiming("token")
        box.calling("first")
        box.begun(1, "first")
        box.over(1)
        box.calling("the second")
        assert black_box.waited_for(60) == set()
        [path] = folder.iterdir()

        os.utime(path, (0, 0))

        assert black_box.waited_for(60) == {"the second"}
        box.claiming("another")
        os.utime(path, (0, 0))
        assert black_box.waited_for(60) == set()


def test_a_relay_that_nobody_waits_for_any_more(black_box: BlackBox, folder: Path) -> None:
    """A process that died while calling a relay does not count as waiting for it."""

    def calling(box: Box) -> None:
        box.claiming("token")
        box.calling("main")

    leave(black_box, calling)
    with black_box.box() as box:
        box.claiming("token")
        box.calling("backup")
        for path in folder.iterdir():
            os.utime(path, (0, 0))

        assert black_box.waited_for(60) == {"backup"}


# --- when it is not believed --------------------------------------------------------------------


@pytest.fixture
def rebooted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[], None]]:
    """Yield a function that simulates a reboot of the machine."""

    def reboot() -> None:
        (tmp_path / "boot_id").write_text("another\n")
        monkeypatch.setattr(machine, "_BOOT_ID", tmp_path / "boot_id")
        blackbox._boot.cache_clear()

    yield reboot
    blackbox._boot.cache_clear()


def test_what_was_noted_before_a_reboot(
    black_box: BlackBox, folder: Path, rebooted: Callable[[], None]
) -> None:
    """A box from before a reboot is not trusted, and is removed when all its leases are over.

    Its file was never synced, so any part of it may be missing.
    """
    leave(black_box, delivering)
    rebooted()
    assert found(black_box) == []
    [path] = folder.iterdir()

    os.utime(path, (0, 0))

    assert found(black_box) == []
    assert not path.exists()


@pytest.mark.parametrize(
    "content", [b"", b"\n", b"\xff\n", b"mailer-99 boot token\nbegun 1 relay\n"]
)
def test_what_is_no_box_of_ours(black_box: BlackBox, folder: Path, content: bytes) -> None:
    """A file of an unknown format settles nothing."""
    folder.mkdir(parents=True)
    (folder / "0123").write_bytes(content)

    assert found(black_box) == []


HEADER = f"mailer-1 {machine.boot_id()} token\n".encode()

OBSTACLES: dict[str, Callable[[Path], object]] = {
    "a folder": Path.mkdir,
    "a pipe": os.mkfifo,
    "a loop": lambda path: path.symlink_to(path),
    "a socket": lambda path: os.mknod(path, stat.S_IFSOCK | 0o600),
    "a note without a number": lambda path: path.write_bytes(HEADER + b"begun x relay\n"),
    "a note that is cut off": lambda path: path.write_bytes(HEADER + b"taken\n"),
    "null bytes": lambda path: path.write_bytes(HEADER + b"begun 1 re\0lay\n"),
    "a token of null bytes": lambda path: path.write_bytes(HEADER.replace(b"token", b"\0\0\0")),
    "too much": lambda path: os.truncate(path, 1 << 40) if path.write_bytes(HEADER) else None,
}


@pytest.mark.parametrize("obstacle", OBSTACLES)
def test_what_is_in_the_way(
    black_box: BlackBox, folder: Path, obstacle: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Anything in the folder that is no box is left there, logged once, and stops no other box."""
    folder.mkdir(parents=True)
    OBSTACLES[obstacle](folder / "0")
    leave(black_box, delivering)
    assert black_box.waited_for(-1) == set()

    assert [remains.token for remains in found(black_box)] == ["token"]
    assert [found(black_box) for _ in range(3)] == [[]] * 3

    assert [*folder.iterdir()] == [folder / "0"]
    assert caplog.text.count("Black box can't be") == 1


# --- disks --------------------------------------------------------------------------------------


class LimitedDisk(SystemDisk):
    """A disk that gets full. Like a file system, it writes a part of the data then."""

    is_full = False

    def write(self, file: int, data: bytes, /) -> int:
        return super().write(file, data[:-1] if self.is_full else data)


def test_a_full_disk(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A box that misses a note because the disk is full is removed, and delivery goes on."""
    disk = LimitedDisk()
    with BlackBox(folder, disk, SystemClock()).box() as box:
        box.claiming("token")
        disk.is_full = True
        box.begun(1, "relay")
        disk.is_full = False
        box.taken(1, "250 ok")

        assert list(folder.iterdir()) == []
    assert "no space left" in caplog.text


def test_a_folder_that_can_t_be_made(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """If the folder cannot be made, delivery goes on, and the log names MAILER_BLACK_BOX once."""
    (tmp_path / "file").touch()
    black_box = BlackBox(tmp_path / "file" / "black-box", SystemDisk(), SystemClock())

    for _ in range(2):
        with black_box.box() as box:
            delivering(box)

    assert caplog.text.count("MAILER_BLACK_BOX") == 1
    assert found(black_box) == []


class DiskWithoutLocks(SystemDisk):
    def lock(self, file: int, *, wait: bool) -> bool:
        raise OSError(errno.ENOLCK, "No locks available")


def test_a_file_system_without_locks(black_box: BlackBox, folder: Path) -> None:
    """On a file system without locks, nothing is noted, settled or left behind."""
    leave(black_box, delivering)
    without_locks = BlackBox(folder, DiskWithoutLocks(), SystemClock())

    with without_locks.box() as box:
        delivering(box)

    assert found(without_locks) == []
    assert [remains.token for remains in found(black_box)] == ["token"]


def test_a_disk_that_recovers(black_box: BlackBox, folder: Path) -> None:
    """Notes are written again once the disk has recovered."""
    folder.parent.mkdir()
    folder.touch()
    leave(black_box, delivering)
    folder.unlink()

    leave(black_box, delivering)

    assert [remains.token for remains in found(black_box)] == ["token"]


def test_a_disk_that_can_only_be_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A read-only disk is logged once; nothing there is noted or settled until it is writable."""
    with small_disk(tmp_path, "1m") as disk:
        black_box = BlackBox(disk, SystemDisk(), SystemClock())
        leave(black_box, delivering)
        with read_only(disk):
            assert [found(black_box) for _ in range(3)] == [[]] * 3
            with black_box.box() as box:
                delivering(box)
            assert caplog.text.count("Black box can't be read") == 1
            assert caplog.text.count("Black box can't be kept") == 1

        assert [remains.token for remains in found(black_box)] == ["token"]


def test_files_that_nobody_can_change(black_box: BlackBox, folder: Path) -> None:
    """A box that cannot be removed is emptied, and one that cannot be written stops no delivery."""
    with black_box.box() as box:
        delivering(box)
        with immutable(folder):
            box.remove()
    assert [path.stat().st_size for path in folder.iterdir()] == [0]
    with black_box.box() as box, immutable(*folder.iterdir()):
        delivering(box)


def test_the_folder_of_another_user(caplog: pytest.LogCaptureFixture) -> None:
    """Another user's folder is logged once; delivery goes on without a box."""
    with TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        folder = Path(name, "black-box")
        leave(BlackBox(folder, SystemDisk(), SystemClock()), delivering)

        def work() -> None:
            black_box = BlackBox(folder, SystemDisk(), SystemClock())
            for _ in range(3):
                with black_box.box() as box:
                    delivering(box)
                assert found(black_box) == []
                assert black_box.waited_for(-1) == set()
            assert caplog.text.count("Black box can't be found") == 1
            assert caplog.text.count("Black box can't be kept") == 1

        as_another_user(work)


def test_the_file_of_another_user() -> None:
    """Another user's box is left alone, and the others are settled."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o777)
        leave(BlackBox(folder, SystemDisk(), SystemClock()), delivering)

        def work() -> None:
            black_box = BlackBox(folder, SystemDisk(), SystemClock())
            leave(black_box, lambda box: box.claiming("mine"))
            assert [remains.token for remains in found(black_box)] == ["mine"]

        as_another_user(work)


def test_nobody_else_may_read_it(black_box: BlackBox, folder: Path) -> None:
    """A box is private, since replies of relays in it contain addresses."""
    leave(black_box, delivering)

    [path] = folder.iterdir()
    assert (folder.stat().st_mode & 0o777, path.stat().st_mode & 0o777) == (0o700, 0o600)
