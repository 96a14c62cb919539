"""Log lines in which nobody's address can be read: what a relay says has addresses in it, and so have errors.

`MAILER_LOG_ADDRESSES` of the current app shows them. The database has all of it, for `flask mail status`.
"""

import logging
import re
from collections.abc import Mapping
from typing import Any

from flask import current_app, has_app_context

_ADDRESS = re.compile(
    r"""(?P<local>"[^"\n]{1,64}"|[^\s<>()\[\]{},;:?&"'@/\\][^\s<>()\[\],;:?&"@/\\]{0,127})(?:@|%40)"""
    r"""(?P<domain>\[[^\]\s]{2,50}\]|[\w-]+(?:\.[\w-]+)*)"""
)
_formatter = logging.Formatter()


def masked(text: str) -> str:
    """a***@example.com: enough to find out more in the database, not enough to write to anybody."""
    return _ADDRESS.sub(_mask, text) if "@" in text or "%40" in text else text


def _mask(found: re.Match[str]) -> str:
    initial = found["local"].lstrip('"')[:1]
    return f"{initial}***@{found['domain']}"


def discreet(text: str) -> str:
    """For what is printed, and not logged."""
    return text if _addresses_are_shown() else masked(text)


def _addresses_are_shown() -> bool:
    """Where no app is at hand, nobody has said so."""
    return has_app_context() and bool(current_app.extensions["mailer"].settings.log_addresses)


class Mask(logging.Filter):
    """Changes what passes: the text of a line, and the traceback below it."""

    def filter(self, record: logging.LogRecord) -> bool:
        if self.concerns(record):
            record.msg = masked(str(record.msg))
            record.args = _masked_args(record.args)
            if record.exc_info:
                record.exc_text = masked(_formatter.formatException(record.exc_info))
        return True

    def concerns(self, record: logging.LogRecord) -> bool:
        return not _addresses_are_shown()


class TaskMask(Mask):
    """For Celery's own line about a task that failed, if it is one of these."""

    def __init__(self, *tasks: str) -> None:
        super().__init__()
        self._tasks = tasks

    def concerns(self, record: logging.LogRecord) -> bool:
        return isinstance(record.args, Mapping) and record.args.get("name") in self._tasks

    def filter(self, record: logging.LogRecord) -> bool:
        if super().filter(record) and self.concerns(record):
            record.__dict__["data"] = record.args  # the same once more, for programs that read logs
        return True


def _masked_args(args: Any) -> Any:
    if isinstance(args, Mapping):
        return {key: _masked_arg(value) for key, value in args.items()}
    return tuple(map(_masked_arg, args or ()))


def _masked_arg(value: Any) -> Any:
    return value if isinstance(value, (int, float)) else masked(str(value))


_MASK = Mask()


def get_logger(name: str) -> logging.Logger:
    """The logger of a module."""
    logger = logging.getLogger(name)
    logger.addFilter(_MASK)
    return logger
