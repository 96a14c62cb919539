"""Threads in the background."""

import signal
import threading
from collections.abc import Callable


def start_daemon(target: Callable[[], None], name: str) -> threading.Thread | None:
    """Start a daemon thread that takes no signals. Return None if none can start.

    A signal that ends a process must not find a thread that does not delay it: a worker may be in
    the middle of a mail. At the end of a process no thread can start.
    """
    thread = threading.Thread(target=target, name=name, daemon=True)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        thread.start()  # it inherits the mask
    except RuntimeError:
        return None
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return thread
