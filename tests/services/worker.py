"""Real Celery workers: the command a deployment runs, as processes of their own."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from tests.services.waiting import wait_until

PROJECT = Path(__file__).parents[2]

#: Celery logs it when it begins to consume.
READY = " ready."


class Worker:
    """One `celery -A tests.worker_app worker`, in a session of its own with whatever children its pool has."""

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
    ) -> None:
        self.log = folder / f"{name}.log"
        self._killed = False
        self._told = False
        command = [
            *within,
            sys.executable,
            "-m",
            "celery",
            "-A",
            "tests.worker_app",
            "worker",
            "--loglevel",
            loglevel,
        ]
        command += [
            "--hostname",
            f"{name}@localhost",
            "--pool",
            pool,
            "--concurrency",
            str(concurrency),
        ]
        # They ask other workers for a second; the README's test does not.
        command += [
            "--without-mingle",
            "--without-gossip",
        ]
        command += options
        with self.log.open("wb") as log:
            environment = {**os.environ, **env}
            self.process = subprocess.Popen(
                command,
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
        """Let it finish what it is doing, as a deploy does: SIGTERM to the main process only.

        It must end without an error.
        """
        self.tell_to_stop()
        code = self.process.wait(timeout)
        assert code == 0 or self._killed, f"{self.log.stem} ended with code {code}"

    def tell_to_stop(self) -> None:
        """Send the signal, once: a second SIGTERM means "at once" to Celery."""
        if not self._told:
            self._told = True
            self.process.terminate()

    def signal(self, *signals: signal.Signals, to_group: bool = False) -> None:
        """Send these to its main process, or to its children as well; how it ends is for the caller to judge."""
        self._told = self._killed = True
        for signum in signals:
            (os.killpg if to_group else os.kill)(self.process.pid, signum)

    def freeze(self) -> None:
        """With all its children, as when its machine is suspended."""
        os.killpg(self.process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on as if nothing had happened."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGCONT)

    def kill(self) -> None:
        """Kill it with all its children, as a power cut does."""
        self._killed = self._killed or self.is_running
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


class Fleet:
    """The workers of one test."""

    def __init__(self, config: Mapping[str, str], folder: Path) -> None:
        self._config = config
        self._folder = folder
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
        """Start this many more workers, as what the command `within` starts; return when all of them are ready, or at once."""
        environment = {**self._config, **(env or {})}
        names = [f"worker{len(self._workers) + number}" for number in range(1, count + 1)]
        make = partial(Worker, within=within, loglevel=loglevel, options=options)
        started = [make(name, pool, concurrency, environment, self._folder) for name in names]
        self._workers += started
        for worker in started if until_ready else ():
            worker.wait_until_ready()
        return started

    def end(self, *, show_logs: bool = True) -> None:
        """Leave none behind.

        They are killed: a stop takes Celery two seconds, and tests of their own see to that.
        """
        for worker in self._workers:
            worker.kill()
            if show_logs:
                # Pytest shows it when the test has failed.
                print(f"--- {worker.log.name}\n{worker.log.read_text()}")


StartWorkers = Callable[..., list[Worker]]
StartWorker = Callable[..., Worker]
