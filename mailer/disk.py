"""The disk of the system."""

import errno
import fcntl
import os
import stat
from pathlib import Path

from mailer.message.ports import FileStatus
from mailer.private import create_private_file, make_private_folder


class SystemDisk:
    """Implement the port `Disk`. Open files are descriptors."""

    def make_folder(self, folder: Path) -> None:
        make_private_folder(folder)

    def write(self, fd: int, data: bytes) -> int:
        return os.write(fd, data)

    def close(self, fd: int) -> None:
        os.close(fd)

    def list_files(self, folder: Path) -> list[Path]:
        return sorted(folder.iterdir())

    def create(self, path: Path) -> int:
        return create_private_file(path, os.O_RDWR | os.O_APPEND)

    def open(self, path: Path) -> int:
        # O_NONBLOCK: it may be a pipe
        file = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            _refuse_special_file(file)
        except OSError:
            os.close(file)
            raise
        return file

    def lock(self, file: int, *, wait: bool) -> bool:
        try:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def read(self, file: int, size: int) -> bytes:
        return os.pread(file, size, 0)

    def truncate(self, file: int) -> None:
        os.ftruncate(file, 0)

    def status(self, file: int) -> FileStatus:
        known = os.fstat(file)
        return FileStatus(known.st_size, known.st_mtime, is_removed=not known.st_nlink)

    def remove(self, path: Path) -> None:
        path.unlink(missing_ok=True)


def _refuse_special_file(file: int) -> None:
    if not stat.S_ISREG(os.fstat(file).st_mode):
        raise OSError(errno.EINVAL, "not a regular file")
