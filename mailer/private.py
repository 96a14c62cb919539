"""Files and folders that only their owner can read.

Files made by root are given to the owner of their folder: a single command run as root must not
lock out the user that the application runs as.
"""

import errno
import os
import stat
from contextlib import suppress
from pathlib import Path

_FOLDER_MODE, _FILE_MODE = 0o700, 0o600


def make_private_folder(folder: Path) -> None:
    """Make the folder and its missing parents. An existing folder keeps its mode."""
    missing = []
    there = folder
    while not there.exists():
        missing.append(there)
        there = there.parent
    for one in reversed(missing):
        with suppress(FileExistsError):  # another process made it in the meantime
            one.mkdir(_FOLDER_MODE)
            _give_away_folder(one)
    if not folder.is_dir():  # a file, or a link that leads nowhere
        raise NotADirectoryError(errno.ENOTDIR, "Not a directory", str(folder))


def make_private_file(path: Path) -> None:
    """Make an empty file. An existing file keeps its mode and content."""
    with suppress(FileExistsError):
        os.close(create_private_file(path))


def create_private_file(path: Path, flags: int = os.O_WRONLY) -> int:
    """Open a new file with these flags. Raise FileExistsError if it exists."""
    file = os.open(path, flags | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _FILE_MODE)
    try:
        _give_away(file, path.parent)
    except BaseException:
        os.close(file)
        raise
    return file


def _give_away_folder(folder: Path) -> None:
    """Change the owner of a folder that was just made. Never follow a link in its place."""
    if os.geteuid() != 0:
        return
    file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        with os.scandir(file) as entries:
            is_empty = next(entries, None) is None
        if is_empty:
            _give_away(file, folder.parent)
    finally:
        os.close(file)


def _give_away(file: int, folder: Path) -> None:
    if os.geteuid() != 0:
        return
    owner, known = folder.stat(), os.fstat(file)
    if known.st_uid == 0 and (stat.S_ISDIR(known.st_mode) or known.st_nlink == 1):
        with suppress(PermissionError):  # root without CAP_CHOWN, as in some containers
            os.fchown(file, owner.st_uid, owner.st_gid)
