"""Delivery in the calling thread, for MAIL_SUPPRESS_SEND."""

import math
import threading
from typing import Protocol


class _Delivers(Protocol):
    def deliver(self, at_most: float) -> None: ...


class InlineBell:
    """The bell of an app that delivers to nobody: a ring delivers at once, in the calling thread."""

    dispatcher: _Delivers

    def __init__(self) -> None:
        self._thread = threading.local()

    def ring(self, *, urge: bool = False) -> bool:
        """Deliver what is due. A ring out of that delivery itself adds nothing."""
        if getattr(self._thread, "delivers", False):
            return True
        self._thread.delivers = True
        try:
            self.dispatcher.deliver(at_most=math.inf)
        finally:
            self._thread.delivers = False
        return True

    def answer(self) -> None:
        """Do nothing: nobody was called."""
