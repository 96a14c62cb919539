"""Forks: whatever has locks or connections is told of them, by those of its methods that are named for the moment.

Python's own hooks are not run by every fork: uWSGI and other C code fork without them. So whoever opens a transaction or a
connection calls `notice_fork()` first, which compares the process id and tells everybody then.
"""

import os
import threading
from typing import Any
from weakref import WeakSet

# Only a fork in the middle of telling leaves the lock taken: then it is not waited for any longer.
_LOCK_SECONDS = 5.0

_survivors: WeakSet[Any] = WeakSet()
_forking = threading.local()  # whom this thread has told before its fork
_lock = threading.Lock()
_pid = os.getpid()


def survive_forks(survivor: object) -> None:
    """Tell this object of each fork, as long as it lives."""
    _survivors.add(survivor)


def notice_fork() -> None:
    """Tell everybody if this process was forked without Python's hooks."""
    if os.getpid() == _pid:
        return
    taken = _lock.acquire(timeout=_LOCK_SECONDS)
    try:
        if os.getpid() != _pid:
            _tell_child(hooked=False)
    finally:
        if taken:
            _lock.release()


def _before() -> None:
    _forking.told = list(_survivors)
    for survivor in _forking.told:
        _tell(survivor, "before_fork")


def _after_in_parent() -> None:
    for survivor in _forking.__dict__.pop("told", ()):
        _tell(survivor, "after_fork_in_parent")


def _after_in_child() -> None:
    global _lock  # noqa: PLW0603 -- another thread of the parent may have held it
    _lock = threading.Lock()
    _forking.__dict__.pop("told", None)
    _tell_child(hooked=True)


def _tell_child(*, hooked: bool) -> None:
    """The process id is noted last: another thread goes on when all is as it should be."""
    global _pid  # noqa: PLW0603 -- it is the process' own
    for survivor in list(_survivors):
        _tell(survivor, "after_hooked_fork" if hooked else "after_unhooked_fork")
        _tell(survivor, "after_fork_in_child")
    _pid = os.getpid()


def _tell(survivor: object, moment: str) -> None:
    if (method := getattr(survivor, moment, None)) is not None:
        method()


os.register_at_fork(before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child)
