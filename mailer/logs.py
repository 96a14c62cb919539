"""Log lines in which nobody's address can be read: what a relay says has addresses in it, and so have errors.

An app with `MAILER_LOG_ADDRESSES` says so where its code begins to work, by `addresses_shown`; everywhere else they are masked.
No app is looked up: the app whose context is active may be another one, or have no Mailer. And nothing here raises: a line is
often written after a commit, and an error would tell the caller that there is no mail.
The database has all of it, for `flask mail status`.
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
    """a***@example.com: enough to find out more in the database, not enough to write to anybody."""
    return _ADDRESS.sub(_mask, text) if "@" in text or "%40" in text else text


def _mask(found: re.Match[str]) -> str:
    initial = found["local"].lstrip('"')[:1]
    return f"{initial}***@{found['domain']}"


_shown: ContextVar[bool] = ContextVar("mailer_addresses_shown", default=False)


@contextmanager
def addresses_shown(shown: bool) -> Iterator[None]:
    """Show whole addresses, or mask them, in what this thread logs in the block."""
    before = _shown.get()
    _shown.set(shown)
    try:
        yield
    finally:
        _shown.set(before)


def discreet(text: str) -> str:
    """Mask what is printed, and not logged."""
    return text if _shown.get() else masked(text)


class Mask(logging.Filter):
    """Changes what passes: the text of a line, and the traceback below it."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Let every line pass, masked; one that can't be written as it was meant is written as far as it can be."""
        try:
            is_concerned = self.concerns(record)
            self._check(record)
            if is_concerned:
                self.mask(record)
        except Exception as error:  # noqa: BLE001 -- whatever it is, it must not reach whoever logs
            record.msg, record.args = f"A line of {record.name} can't be shown ({type(error).__name__})", ()
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
        """Some handlers raise if a line can't be put together: then its parts are put beside each other."""
        try:
            record.getMessage()
        except Exception:  # noqa: BLE001 -- of an object that is logged, any
            parts = record.args.values() if isinstance(record.args, Mapping) else (record.args or ())
            record.msg, record.args = " ".join(map(_text, (record.msg, *parts))), ()


def _text(value: object) -> str:
    try:
        return str(value)
    except Exception:  # noqa: BLE001 -- see above
        return f"<{type(value).__name__}>"


class TaskMask(Mask):
    """For Celery's own line about a task that failed, if it is one of these."""

    def __init__(self, *tasks: str) -> None:
        super().__init__()
        self._tasks = tasks

    def concerns(self, record: logging.LogRecord) -> bool:
        return isinstance(record.args, Mapping) and record.args.get("name") in self._tasks

    def mask(self, record: logging.LogRecord) -> None:
        super().mask(record)
        record.__dict__["data"] = record.args  # the same once more, for programs that read logs


def _masked_args(args: Any) -> Any:
    if isinstance(args, Mapping):
        return {key: _masked_arg(value) for key, value in args.items()}
    return tuple(map(_masked_arg, args or ()))


def _masked_arg(value: Any) -> Any:
    return value if isinstance(value, (int, float)) else masked(_text(value))


_MASK = Mask()


def get_logger(name: str) -> logging.Logger:
    """The logger of a module."""
    logger = logging.getLogger(name)
    logger.addFilter(_MASK)
    return logger
