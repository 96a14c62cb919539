"""Threads in the background."""

import signal
import threading
from collections.abc import Callable


class OwnThread(threading.Thread):
    """A daemon thread of the package."""

    def __init__(self, target: Callable[[], None], name: str) -> None:
        super().__init__(target=target, name=name, daemon=True)


def is_own_thread(ident: int | None) -> bool:
    """Return whether the thread with this id is one of the package."""
    return ident is not None and any(
        thread.ident == ident and isinstance(thread, OwnThread) for thread in threading.enumerate()
    )


def start_daemon(target: Callable[[], None], name: str) -> threading.Thread | None:
    """Start a daemon thread that takes no signals. Return None if none can start.

    A signal that ends a process must not find a thread that does not delay it: a worker may be in
    the middle of a mail. At the end of a process no thread can start.
    """
    thread = OwnThread(target, name)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        thread.start()  # it inherits the mask
    except RuntimeError:
        return None
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return thread
