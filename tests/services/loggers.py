"""Handlers of `logging` that the examples of the docs add."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from mailer.logging import QueuedMailHandler


@contextmanager
def error_mails_ended() -> Iterator[None]:
    """Close, at the end, each handler for error mails, so that no later test gets its mail."""
    try:
        yield
    finally:
        loggers = [logging.getLogger(name) for name in logging.root.manager.loggerDict]
        for logger in (logging.root, *loggers):
            for handler in [*logger.handlers]:
                if isinstance(handler, QueuedMailHandler):
                    logger.removeHandler(handler)
                    handler.close()
