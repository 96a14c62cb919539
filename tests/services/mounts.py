"""Full disks and read-only files, which only root can arrange."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """Mount a small disk below the folder."""
    disk = folder / "disk"
    disk.mkdir()
    _as_root("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk))
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


@contextmanager
def read_only(disk: Path) -> Iterator[None]:
    """Let a disk fail, so that the kernel refuses all writes."""
    _as_root("mount", "-o", "remount,ro", str(disk))
    try:
        yield
    finally:
        subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)


@contextmanager
def immutable(*paths: Path) -> Iterator[None]:
    """Make files, or folders without their contents, unwritable even for root and open files."""
    names = [str(path) for path in paths]
    _as_root("chattr", "+i", *names)
    try:
        yield
    finally:
        subprocess.run(["chattr", "-i", *names], check=True)


def _as_root(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"This needs root, on a file system that knows it: {done.stderr.strip()}")
