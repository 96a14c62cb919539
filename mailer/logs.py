"""Log lines with masked email addresses. Replies of relays and errors contain addresses.

With `MAILER_LOG_ADDRESSES`, an app shows addresses by `addresses_shown`, at each of its entry
points. The app is never looked up: the active app context may be that of another app, or of one
without Mailer. Nothing here raises: a line is often written after a commit, and an error would
tell the caller that the mail is not queued. The database has the whole addresses, for
`flask mail status`.
"""

import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

_ADDRESS = re.compile(
    r"""(?P<local>"[^"\n]{1,64}"|[^\s<>()\[\]{},;:?&"'@/\\][^\s<>()\[\],;:?&"@/\\]{0,127})(?:@|%40)"""
    r"""(?P<domain>\[[^\]\s]{2,50}\]|[\w-]+(?:\.[\w-]+)*)"""
)
_formatter = logging.Formatter()


def masked(text: str) -> str:
    """Mask each address, as in a***@example.com: enough to find the mail in the database."""
    return _ADDRESS.sub(_mask, text) if "@" in text or "%40" in text else text


def _mask(found: re.Match[str]) -> str:
    initial = found["local"].lstrip('"')[:1]
    return f"{initial}***@{found['domain']}"


_shown: ContextVar[bool] = ContextVar("mailer_addresses_shown", default=False)


@contextmanager
def addresses_shown(shown: bool) -> Iterator[None]:
    """Show or mask addresses in the log lines of this thread within the block."""
    before = _shown.get()
    _shown.set(shown)
    try:
        yield
    finally:
        _shown.set(before)


def mask_unless_shown(text: str) -> str:
    """Mask the addresses in a printed text like those in a log line."""
    return text if _shown.get() else masked(text)


class Mask(logging.Filter):
    """Masks the addresses in the text and the traceback of each line."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Pass every line, masked. Log a line with unusable arguments as well as possible."""
        try:
            is_concerned = self.concerns(record)
            self._check(record)
            if is_concerned:
                self.mask(record)
        except Exception as error:  # noqa: BLE001 -- no error may reach the caller of the logger
            record.msg, record.args = (
                f"Log line unreadable: logger={record.name} error={type(error).__name__}",
                (),
            )
            record.exc_info = record.exc_text = None
        return True

    def concerns(self, record: logging.LogRecord) -> bool:
        return not _shown.get()

    def mask(self, record: logging.LogRecord) -> None:
        record.msg = masked(str(record.msg))
        record.args = _masked_args(record.args)
        if record.exc_info:
            record.exc_text = masked(_formatter.formatException(record.exc_info))
        self._check(record)

    @staticmethod
    def _check(record: logging.LogRecord) -> None:
        """Join the parts of a line whose arguments do not match: some handlers would raise."""
        try:
            record.getMessage()
        except Exception:  # noqa: BLE001 -- a logged object may raise anything
            parts = (
                record.args.values() if isinstance(record.args, Mapping) else (record.args or ())
            )
            record.msg, record.args = " ".join(map(_text, (record.msg, *parts))), ()


def _text(value: object) -> str:
    try:
        return str(value)
    except Exception:  # noqa: BLE001 -- see above
        return f"<{type(value).__name__}>"


class TaskMask(Mask):
    """Masks Celery's own line about a failed task, if the task is one of `tasks`."""

    def __init__(self, *tasks: str) -> None:
        super().__init__()
        self._tasks = tasks

    def concerns(self, record: logging.LogRecord) -> bool:
        return isinstance(record.args, Mapping) and record.args.get("name") in self._tasks

    def mask(self, record: logging.LogRecord) -> None:
        super().mask(record)
        record.__dict__["data"] = record.args  # a copy for structured logging


def _masked_args(args: Any) -> Any:
    if isinstance(args, Mapping):
        return {key: _masked_arg(value) for key, value in args.items()}
    return tuple(map(_masked_arg, args or ()))


def _masked_arg(value: Any) -> Any:
    return value if isinstance(value, (int, float)) else masked(_text(value))


_MASK = Mask()
# The names of the loggers of the package.
_own: set[str] = set()


def get_logger(name: str) -> logging.Logger:
    """Return the logger of a module, which masks addresses."""
    _own.add(name)
    logger = logging.getLogger(name)
    logger.addFilter(_MASK)
    return logger


def is_own_logger(name: str) -> bool:
    """Return whether a logger is that of a module of the package."""
    return name in _own
