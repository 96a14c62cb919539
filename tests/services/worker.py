"""Real Celery workers: processes started with the command of a deployment."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from tests.services.forked import ForkedCelery
from tests.services.waiting import wait_until

PROJECT = Path(__file__).parents[2]

#: Logged by Celery when a worker begins to consume.
READY = " ready."


class Worker:
    """One `celery -A tests.worker_app worker`, with its children in a session of its own."""

    def __init__(
        self,
        name: str,
        pool: str,
        concurrency: int,
        env: Mapping[str, str],
        folder: Path,
        *,
        within: Sequence[str] = (),
        loglevel: str = "INFO",
        options: Sequence[str] = (),
        forked: bool = False,
    ) -> None:
        self.log = folder / f"{name}.log"
        self._killed = False
        self._told = False
        arguments = ["-A", "tests.worker_app", "worker", "--loglevel", loglevel]
        arguments += ["--hostname", f"{name}@localhost"]
        arguments += ["--pool", pool, "--concurrency", str(concurrency)]
        # Both wait a second for other workers. The README's test runs with them.
        arguments += ["--without-mingle", "--without-gossip"]
        arguments += options
        environment = {**os.environ, **env}
        self.log.touch()
        self.process: subprocess.Popen[bytes] | ForkedCelery
        if forked:
            self.process = ForkedCelery(arguments, PROJECT, environment, self.log)
            return
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*within, sys.executable, "-m", "celery", *arguments],
                cwd=PROJECT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    @property
    def is_running(self) -> bool:
        return self.process.poll() is None

    def wait_until_ready(self) -> None:
        wait_until(lambda: READY in self.log.read_text() or not self.is_running, timeout=30)
        assert self.is_running, f"{self.log.stem} ended at once with code {self.process.returncode}"

    def stop(self, timeout: float = 60) -> None:
        """Let the worker finish its task, as a deployment does: SIGTERM to the main process only.

        It must end without an error.
        """
        self.tell_to_stop()
        code = self.process.wait(timeout)
        assert code == 0 or self._killed, f"{self.log.stem} ended with code {code}"

    def tell_to_stop(self) -> None:
        """Send the signal once: a second SIGTERM makes Celery stop at once."""
        if not self._told:
            self._told = True
            self.process.terminate()

    def signal(self, *signals: signal.Signals, to_group: bool = False) -> None:
        """Send these to the main process, or to its group. The caller checks how it ends."""
        self._told = self._killed = True
        for signum in signals:
            (os.killpg if to_group else os.kill)(self.process.pid, signum)

    def freeze(self) -> None:
        """Freeze the worker and its children, as if the machine were suspended."""
        os.killpg(self.process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let the worker continue."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGCONT)

    def kill(self) -> None:
        """Kill the worker and its children, as a power cut does."""
        self._killed = self._killed or self.is_running
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.kill()  # one that is forked has no group at first
        self.process.wait()


class Fleet:
    """The workers of one test.

    With `forked`, workers are forked where that makes no difference, instead of started anew.
    """

    def __init__(self, config: Mapping[str, str], folder: Path, *, forked: bool = False) -> None:
        self._config = config
        self._folder = folder
        self._forked = forked
        self._workers: list[Worker] = []

    def start(
        self,
        count: int = 1,
        *,
        pool: str = "threads",
        concurrency: int = 4,
        env: Mapping[str, str] | None = None,
        until_ready: bool = True,
        loglevel: str = "INFO",
        within: Sequence[str] = (),
        options: Sequence[str] = (),
    ) -> list[Worker]:
        """Start this many more workers; return when all are ready, or at once.

        `within` is a command that starts each of them.
        """
        environment = {**self._config, **(env or {})}
        names = [f"worker{len(self._workers) + number}" for number in range(1, count + 1)]
        make = partial(Worker, within=within, loglevel=loglevel, options=options)
        # gevent has to come before all imports, and Python reads its variables at the start.
        if self._forked and not within and pool != "gevent" and not _are_for_python(env or {}):
            make = partial(make, forked=True)
        started = [make(name, pool, concurrency, environment, self._folder) for name in names]
        self._workers += started
        for worker in started if until_ready else ():
            worker.wait_until_ready()
        return started

    def end(self, *, show_logs: bool = True) -> None:
        """Kill all workers. Stopping takes Celery two seconds and has tests of its own."""
        for worker in self._workers:
            worker.kill()
            if show_logs:
                # Shown by pytest if the test failed.
                print(f"--- {worker.log.name}\n{worker.log.read_text()}")


def _are_for_python(environment: Mapping[str, str]) -> bool:
    return any(name.startswith("PYTHON") for name in environment)


StartWorkers = Callable[..., list[Worker]]
StartWorker = Callable[..., Worker]
