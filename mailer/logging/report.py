"""The report about a log record: subject and text of an error mail, which are never too long."""

import logging
import os
import socket
import weakref
from collections.abc import Callable, Hashable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from traceback import walk_tb

from flask import Flask, has_request_context, request

from mailer.message.text import printable

_LONGEST_SUBJECT = 150
_LONGEST_LINE = 1000
_LONGEST_TEXT = 20_000

Format = Callable[[logging.LogRecord], str]


@dataclass(frozen=True, slots=True)
class Report:
    """An error mail without its recipients."""

    subject: str
    text: str
    app: "weakref.ref[Flask] | None"  #: the current app of the record

    def find_app(self) -> Flask | None:
        return None if self.app is None else self.app()


def kind_of(record: logging.LogRecord) -> Hashable:
    """Return a value that is equal for records of the same error.

    Flask logs all errors of views in one line: the traceback tells them apart.
    """
    error = record.exc_info[1] if isinstance(record.exc_info, tuple) else None
    frames = frozenset(
        (frame.f_code.co_filename, line)
        for frame, line in walk_tb(error.__traceback__ if error is not None else None)
    )
    return record.name, record.pathname, record.lineno, type(error), frames


def make_report(
    record: logging.LogRecord, write: Format, subject: str | None, app: Flask | None
) -> Report:
    """Return the report about a record. An object in it that can't be written is left out."""
    host = socket.gethostname()
    opening = subject or f"{record.levelname} on {host}"
    headline = _headline(record)[:_LONGEST_LINE]
    subject = printable(f"{opening}: {headline}")[:_LONGEST_SUBJECT]
    facts = {
        "Logger": f"{record.name}, line {record.lineno} of {record.pathname}",
        "Time": f"{datetime.fromtimestamp(record.created, UTC):%Y-%m-%d %H:%M:%S} UTC",
        "Process": f"{os.getpid()} ({record.processName}) on {host}, thread {record.threadName}",
        "Request": _request(),
    }
    lines = [f"{name:8} {printable(fact[:_LONGEST_LINE])}" for name, fact in facts.items() if fact]
    text = "\n".join([_cut(_written(record, write)), "", *lines, ""])
    return Report(subject, text, None if app is None else weakref.ref(app))


def _headline(record: logging.LogRecord) -> str:
    error = record.exc_info[1] if isinstance(record.exc_info, tuple) else None
    if error is None:
        return _message(record)
    words = ""
    with suppress(Exception):  # an exception of the application may fail to say anything
        words = str(error)
    return f"{type(error).__name__}: {words}" if words else type(error).__name__


def _message(record: logging.LogRecord) -> str:
    words = "A record that can't be written"
    with suppress(Exception):  # an object in it may raise anything
        words = str(record.msg)
        words = record.getMessage()
    return words


def _written(record: logging.LogRecord, write: Format) -> str:
    try:
        return write(record)
    except Exception:  # noqa: BLE001 -- as above
        words = [_message(record)]
    with suppress(Exception):
        if record.exc_info:
            words.append(logging.Formatter().formatException(record.exc_info))
    return "\n".join(words)


def _request() -> str:
    """Return the method and the URL of the request, without the query, which may have secrets."""
    with suppress(Exception):  # a host that the application does not trust
        if has_request_context():
            return f"{request.method} {request.base_url}"
    return ""


def _cut(text: str) -> str:
    """Return a text that a mail can carry, without its middle if it is long."""
    if (more := len(text) - _LONGEST_TEXT) > 0:
        half = _LONGEST_TEXT // 2
        text = f"{text[:half]}\n… {more:,} characters left out …\n{text[-half:]}"
    return text.encode(errors="backslashreplace").decode().replace("\x00", "\\x00")
