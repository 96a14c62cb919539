"""The command `celery`, forked from a process that has imported it already.

The imports of a worker cost two seconds of the processor: more than most tests of one.
"""

import atexit
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.services.processes import processes


class ForkedCelery:
    """A running `celery`, with the methods of `subprocess.Popen` that tests need."""

    def __init__(
        self, arguments: Sequence[str], folder: Path, environment: Mapping[str, str], log: Path
    ) -> None:
        given = [*arguments], str(folder), dict(environment), str(log)
        self._process = processes.Process(target=_run, args=given)
        self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        """Return the exit code, or None while it runs."""
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit code, as soon as it has ended."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise TimeoutError(f"process {self.pid} still runs after {timeout} s")
        return self._process.exitcode

    def terminate(self) -> None:
        """Tell it to stop."""
        self._process.terminate()

    def kill(self) -> None:
        """Kill it, and no child of it."""
        self._process.kill()


def _run(arguments: list[str], folder: str, environment: dict[str, str], log: str) -> None:
    """Become a session of its own that runs the command, as if it were started anew."""
    os.setsid()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for target, number in ((os.open(os.devnull, os.O_RDONLY), 0), (os.open(log, os.O_WRONLY), 1)):
        os.dup2(target, number)
    os.dup2(1, 2)
    sys.argv = ["celery", *arguments]
    from celery.bin.celery import main  # noqa: PLC0415 -- imported before the fork

    try:
        sys.exit(main())
    finally:
        atexit._run_exitfuncs()  # which a child of multiprocessing leaves out
        sys.stdout.flush()
        sys.stderr.flush()
