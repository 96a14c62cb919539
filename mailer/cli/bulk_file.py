"""The file of `flask mail bulk`, and how far it is read."""

import os
import stat
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

import click

from mailer.intake.bulk_files import FileLines, read_csv, read_ndjson

_ENDINGS_OF_NDJSON = (".ndjson", ".jsonl")
# Rows between two looks at the clock of the progress bar, and between two lines of text.
_ROWS_BETWEEN_BARS, _ROWS_BETWEEN_LINES = 500, 10_000


class Recipients(Iterable[Any]):
    """The rows of a file. Reading them shows the progress."""

    def __init__(self, rows: Iterator[Any], show: Callable[[int], None]) -> None:
        self._rows = rows
        self._show = show
        self.rows_read: int = 0

    def __iter__(self) -> Iterator[Any]:
        for row in self._rows:
            yield row
            self.rows_read += 1
            self._show(self.rows_read)


@contextmanager
def open_recipients(file: IO[bytes], kind: str | None, *, max_size: int) -> Iterator[Recipients]:
    """Open the rows of a file. A header that can't be used is refused at once."""
    name = getattr(file, "name", "<stdin>")
    is_ndjson = kind == "ndjson" or (kind is None and Path(name).suffix in _ENDINGS_OF_NDJSON)
    lines = FileLines(cast("BinaryIO", file), Path(name).name, longest=max_size)
    rows = read_ndjson(lines) if is_ndjson else read_csv(lines)
    size = _size(file)
    if not is_terminal() or not size:
        yield Recipients(rows, _show_line)
        return
    with click.progressbar(length=size, label=Path(name).name, file=sys.stderr) as bar:

        def show(rows_read: int) -> None:
            if rows_read % _ROWS_BETWEEN_BARS == 0:
                bar.update(lines.bytes_read - bar.pos)

        yield Recipients(rows, show)
        bar.update(lines.bytes_read - bar.pos)


def is_terminal() -> bool:
    """Return whether there is a person to draw a bar for."""
    return sys.stderr.isatty()


def _show_line(rows_read: int) -> None:
    if rows_read % _ROWS_BETWEEN_LINES == 0:
        click.echo(f"{rows_read:,} rows", err=True)


def _size(file: IO[bytes]) -> int:
    """Return the size of a file, or 0 for a pipe."""
    try:
        found = os.fstat(file.fileno())
    except (OSError, AttributeError):
        return 0
    return found.st_size if stat.S_ISREG(found.st_mode) else 0
