"""The loggers of the test process, kept as pytest set them up."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from celery import signals

from mailer.logging import QueuedMailHandler


@contextmanager
def logging_left_alone() -> Iterator[None]:
    """Keep a worker in this process from replacing the handlers and the level of the root logger.

    With its level, the warnings that later tests look for would be dropped.
    """

    def leave_alone(**_signal: Any) -> None:
        pass

    signals.setup_logging.connect(leave_alone)
    try:
        yield
    finally:
        signals.setup_logging.disconnect(leave_alone)


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
