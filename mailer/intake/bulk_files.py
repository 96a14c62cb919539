"""Files of recipients: CSV and NDJSON, read row by row in flat memory.

An error of one row alone is a row that is refused. An error after which nobody can tell where the
next row begins ends the reading.
"""

import csv
import json
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

from mailer.errors import InvalidMail
from mailer.intake.bulk_rows import ADDRESS_COLUMNS, UnreadableRow
from mailer.message.text import shown

_MAX_COLUMNS = 1000
_LARGEST_FIELD = 2**31 - 1
_BOM = b"\xef\xbb\xbf"
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")
_COMMON_ENCODING = "windows-1252"
_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars"}
_ADDRESSES = " or ".join(ADDRESS_COLUMNS)

Row = dict[str, str] | UnreadableRow


class FileLines(Iterator[str]):
    """The lines of a file in UTF-8, with or without a BOM."""

    def __init__(self, file: BinaryIO, name: str, *, longest: int) -> None:
        self._file = file
        self._name = name
        self._longest = longest  # bytes of a row
        self.number: int = 0  #: of the line that was read last
        self.bytes_read: int = 0
        self._row_begins = 1
        self._bytes_before = 0

    def __next__(self) -> str:
        line = self._file.readline(self._longest + 1)
        if not line:
            raise StopIteration
        self.number += 1
        self.bytes_read += len(line)
        if self.bytes_read - self._bytes_before > self._longest:
            raise self.error(
                f"the row has more than {self._longest:,} bytes, which MAILER_MAX_SIZE allows:"
                ' close its quotes ("), and begin a new line for each recipient.',
                self._row_begins,
            )
        if self.number == 1:
            if line.startswith(_UTF_16):
                raise self.error("the file is in UTF-16: save it as UTF-8.")
            line = line.removeprefix(_BOM)
        try:
            return line.decode()
        except UnicodeDecodeError as error:
            raise self.error(
                f"the byte 0x{line[error.start]:02x} is no UTF-8: save the file as UTF-8, or"
                f" convert it, for example with iconv -f {_COMMON_ENCODING} -t utf-8."
            ) from None

    def begin_row(self) -> int:
        """Begin a row with the next line. Return the number of that line."""
        self._row_begins, self._bytes_before = self.number + 1, self.bytes_read
        return self._row_begins

    def error(self, words: str, number: int | None = None) -> InvalidMail:
        """Return an error with the name of the file and the number of the line."""
        return InvalidMail(f"{self._name}, line {number or self.number}: {words}")


# --- CSV ------------------------------------------------------------------------------------------


def read_csv(lines: FileLines) -> Iterator[Row]:
    """Read a CSV file (RFC 4180) whose first row has the names of the columns.

    Raise `InvalidMail` at once if the first row can't be used, and while reading for a file that is
    broken.
    """
    csv.field_size_limit(_LARGEST_FIELD)  # of the whole process; `lines` has a limit of its own
    reader = csv.reader(lines, strict=True)
    _line, header = _next(reader, lines)
    if header is None:
        raise lines.error("the file is empty: write the names of the columns.", 1)
    return _rows(reader, _checked_header(header, lines), lines)


def _rows(reader: Iterator[list[str]], columns: Sequence[str], lines: FileLines) -> Iterator[Row]:
    place = next(columns.index(name) for name in ADDRESS_COLUMNS if name in columns)
    while True:
        line, values = _next(reader, lines)
        if values is None:
            return
        if len(values) == len(columns):
            row = dict(zip(columns, values, strict=True))
            row.pop("", None)  # spreadsheets leave columns without a name at the right
            yield row
        else:
            address = values[place] if place < len(values) else ""
            yield UnreadableRow(
                f"line {line} has {len(values)} columns, and the first row has {len(columns)}.",
                address,
            )


def _next(reader: Iterator[list[str]], lines: FileLines) -> tuple[int, list[str] | None]:
    """Return the next row that is not empty, after the line in which it begins. None: the end."""
    begin = lines.begin_row()
    try:
        for values in reader:
            if values:
                return begin, values
            begin = lines.begin_row()
    except csv.Error as error:
        raise lines.error(_explained(str(error)), begin) from None
    return begin, None


def _explained(words: str) -> str:
    if "unexpected end of data" in words:
        return 'a quote (") opens a field that never ends: close it.'
    if "expected after" in words:
        return 'text follows a closing quote ("): write a quote inside of a field twice ("").'
    if "new-line character" in words:
        return "it ends with a carriage return alone: save the file with line breaks of Unix."
    return f"{words}: write it as RFC 4180 says."


def _checked_header(header: list[str], lines: FileLines) -> list[str]:
    columns = [name.strip() for name in header]
    if len(columns) > _MAX_COLUMNS:
        raise lines.error(
            f"the file has {len(columns):,} columns, {_MAX_COLUMNS:,} are allowed: leave out those"
            " that the templates do not use."
        )
    if not any(name in ADDRESS_COLUMNS for name in columns):
        columns = [name.lower() if name.lower() in ADDRESS_COLUMNS else name for name in columns]
    twice = next((name for name in columns if name and columns.count(name) > 1), None)
    if twice is not None:
        raise lines.error(f"the column {shown(twice)} is there twice: rename one of them.")
    if any(name in ADDRESS_COLUMNS for name in columns):
        return columns
    for separator, name in _SEPARATORS.items():
        if separator in header[0]:
            raise lines.error(f"the columns are separated by {name}: save it with commas.")
    named = shown(", ".join(columns))
    raise lines.error(
        f"no column has the name {_ADDRESSES}, but there are {named}: write the names of the"
        " columns into the first row."
    )


# --- NDJSON ---------------------------------------------------------------------------------------


def read_ndjson(lines: FileLines) -> Iterator[Any]:
    """Read a file with a JSON object in each line."""
    for line in lines:
        lines.begin_row()
        if not line.strip():
            continue
        try:
            yield json.loads(line)
        except (ValueError, RecursionError) as error:
            words = "it is nested too deeply" if isinstance(error, RecursionError) else error
            yield UnreadableRow(f"line {lines.number} is no JSON: {words}.")
