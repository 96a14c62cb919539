"""Work that several processes do at the same moment."""

import multiprocessing
import os
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from typing import Any, TypeVar

T = TypeVar("T")

_MAILER = ["mailer", "tests.application", "tests.mails", "tests.shop"]
_CELERY = [
    "celery.bin.celery",
    "celery.apps.worker",
    "celery.concurrency.prefork",
    "celery.concurrency.thread",
    "kombu.transport.redis",
]

#: With "fork", a child inherits the test's open files; with "spawn", it imports everything anew.
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload([*_MAILER, *_CELERY])


def forked(work: Callable[[], object], fork: Callable[[], int] = os.fork) -> int:
    """Fork a child that does this work, which ends well if it raises nothing. Return its id."""
    pid = fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return pid


def at_once(count: int, work: Callable[..., T], *arguments: object) -> list[T]:
    """Call `work(*arguments)` in this many new processes, and return all results."""
    return all_at_once(work, [arguments] * count)


def all_at_once(work: Callable[..., T], calls: Sequence[tuple[object, ...]]) -> list[T]:
    """Make each of these calls of `work` in a new process, and return all results.

    `work` has to be a function of a module.
    """
    together = processes.Barrier(len(calls))
    ends = [processes.Pipe(duplex=False) for _ in calls]
    started = [
        processes.Process(target=_do, args=(writing, together, work, arguments))
        for (_reading, writing), arguments in zip(ends, calls, strict=True)
    ]
    for process in started:
        process.start()
    try:
        for _reading, writing in ends:
            writing.close()  # so that a child that dies ends the file
        return [reading.recv() for reading, _writing in ends]
    finally:
        for process in started:
            process.kill()
            process.join()
        for reading, _writing in ends:
            reading.close()


def _do(
    result: "Connection[Any, Any]",
    together: Barrier,
    work: Callable[..., object],
    arguments: tuple[object, ...],
) -> None:
    together.wait()
    result.send(work(*arguments))
