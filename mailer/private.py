"""Files and folders that only their owner can read.

What root makes belongs to the owner of the folder that it is in: one command that was run as root
must not lock out the user that the application runs as.
"""

import errno
import os
import stat
from contextlib import suppress
from pathlib import Path

_FOLDER_MODE, _FILE_MODE = 0o700, 0o600


def make_private_folder(folder: Path) -> None:
    """Make the folder, and those above it that are missing. One that is there keeps its mode."""
    missing = []
    there = folder
    while not there.exists():
        missing.append(there)
        there = there.parent
    for one in reversed(missing):
        with suppress(FileExistsError):  # somebody else made it at the same moment
            one.mkdir(_FOLDER_MODE)
            _give_away_folder(one)
    if not folder.is_dir():  # a file, or a link that leads nowhere
        raise NotADirectoryError(errno.ENOTDIR, "Not a directory", str(folder))


def make_private_file(path: Path) -> None:
    """Make an empty file. One that is there keeps its mode and what it holds."""
    with suppress(FileExistsError):
        os.close(create_private_file(path))


def create_private_file(path: Path, flags: int = os.O_WRONLY) -> int:
    """Return the descriptor of a new file, opened with these flags; FileExistsError if it is there."""
    file = os.open(path, flags | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _FILE_MODE)
    try:
        _give_away(file, path.parent)
    except BaseException:
        os.close(file)
        raise
    return file


def _give_away_folder(folder: Path) -> None:
    """Change the owner of what was just made, and never of what a link at its place leads to."""
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
        with suppress(PermissionError):  # a root without that right, as in some containers
            os.fchown(file, owner.st_uid, owner.st_gid)
