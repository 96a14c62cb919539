"""Steps of a chore that do not depend on each other: one that fails is logged, and the others are taken."""

import math
import time
from collections.abc import Callable
from typing import Any, TypeVar

from mailer.errors import MailerError
from mailer.logs import get_logger

# A step that goes on failing for the same reason is logged this seldom.
_REPEATED_EVERY = 60.0

T = TypeVar("T")

log = get_logger(__name__)


class Steps:
    """A guard for the steps of one chore, which remembers what it has logged already."""

    def __init__(self) -> None:
        self._failing: dict[str, tuple[type[Exception], float]] = {}  # why, and when that was logged

    def take(self, name: str, step: Callable[..., T], *arguments: Any) -> T | None:
        """Call the step and return what it returns, or None if it fails."""
        try:
            result = step(*arguments)
        except Exception as error:  # noqa: BLE001 -- whatever it is, the other steps have nothing to do with it
            self._log(name, error)
            return None
        if self._failing.pop(name, None):
            log.warning("Chore step works again: step=%s", name)
        return result

    def _log(self, name: str, error: Exception) -> None:
        reason, logged_at = self._failing.get(name, (None, -math.inf))
        now = time.monotonic()
        if reason is type(error) and now < logged_at + _REPEATED_EVERY:
            return
        self._failing[name] = type(error), now
        traceback = None if isinstance(error, MailerError) else error  # ours say what to do
        log.warning("Chore step failed, the other steps go on: step=%s error=%s", name, error, exc_info=traceback)
