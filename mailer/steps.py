"""Independent steps of maintenance: a step that fails is logged, and the others still run."""

import math
import time
from collections.abc import Callable
from logging import Logger
from typing import Any, TypeVar

from mailer.errors import MailerError
from mailer.logs import get_logger

# The interval between log lines of a step that keeps failing for the same reason.
_REPEATED_EVERY = 60.0

T = TypeVar("T")

log: Logger = get_logger(__name__)


class Steps:
    """Runs the steps of one task of maintenance, and logs each failure once a minute."""

    def __init__(self) -> None:
        # Step -> reason, and when it was logged.
        self._failing: dict[str, tuple[type[Exception], float]] = {}

    def take(self, name: str, step: Callable[..., T], *arguments: Any) -> T | None:
        """Call the step and return its result. Return None if it fails."""
        try:
            result = step(*arguments)
        except Exception as error:  # noqa: BLE001 -- no error may stop the other steps
            self._log(name, error)
            return None
        if self._failing.pop(name, None):
            log.warning("Maintenance step recovered: step=%s", name)
        return result

    def _log(self, name: str, error: Exception) -> None:
        reason, logged_at = self._failing.get(name, (None, -math.inf))
        now = time.monotonic()
        if reason is type(error) and now < logged_at + _REPEATED_EVERY:
            return
        self._failing[name] = type(error), now
        # Its message says how to fix it.
        traceback = None if isinstance(error, MailerError) else error
        log.warning("Maintenance step failed: step=%s error=%s", name, error, exc_info=traceback)
