"""Fork hooks for objects with locks or connections: methods named after the moment of the fork.

Not every fork runs Python's own hooks: uWSGI and other C code fork without them. Code that opens a
transaction or a connection therefore calls `notice_fork()` first, which compares the process id.
"""

import os
import threading
from typing import Any
from weakref import WeakSet

# Only a fork while hooks run leaves the lock taken: after this time, go on without it.
_LOCK_SECONDS = 5.0

_survivors: WeakSet[Any] = WeakSet()
_forking = threading.local()  # the objects whose `before_fork` this thread has called
_lock = threading.Lock()
_pid = os.getpid()


def survive_forks(survivor: object) -> None:
    """Call the fork hooks of this object as long as it exists."""
    _survivors.add(survivor)


def notice_fork() -> None:
    """Call the hooks if this process was forked without Python's own."""
    if os.getpid() == _pid:
        return
    taken = _lock.acquire(timeout=_LOCK_SECONDS)
    try:
        if os.getpid() != _pid:
            _call_in_child(hooked=False)
    finally:
        if taken:
            _lock.release()


def _before() -> None:
    _forking.prepared = list(_survivors)
    for survivor in _forking.prepared:
        _call(survivor, "before_fork")


def _after_in_parent() -> None:
    for survivor in _forking.__dict__.pop("prepared", ()):
        _call(survivor, "after_fork_in_parent")


def _after_in_child() -> None:
    global _lock  # noqa: PLW0603 -- another thread of the parent may have held it
    _lock = threading.Lock()
    _forking.__dict__.pop("prepared", None)
    _call_in_child(hooked=True)


def _call_in_child(*, hooked: bool) -> None:
    """Call the hooks of the child, then store its process id: other threads wait for that."""
    global _pid  # noqa: PLW0603 -- each process has one
    for survivor in list(_survivors):
        _call(survivor, "after_hooked_fork" if hooked else "after_unhooked_fork")
        _call(survivor, "after_fork_in_child")
    _pid = os.getpid()


def _call(survivor: object, moment: str) -> None:
    if (method := getattr(survivor, moment, None)) is not None:
        method()


os.register_at_fork(
    before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child
)
