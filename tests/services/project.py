"""The project of a user: files in a folder, run by the Python of an environment."""

import os
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.services.ports import free_port
from tests.services.waiting import wait_until
from tests.services.worker import READY


class Project:
    """A folder with an application, and the variables that its processes get.

    The variables of the test run are left out, but for those of the system.
    """

    def __init__(self, folder: Path, python: Path, variables: Mapping[str, str]) -> None:
        self.folder = folder
        self._python = str(python)
        self._variables = {
            name: value for name, value in os.environ.items() if name in {"PATH", "HOME", "TMPDIR"}
        } | {**variables, "PYTHONUNBUFFERED": "1"}

    def write(self, files: Mapping[str, str]) -> None:
        """Write files, given by their paths in the folder."""
        for name, text in files.items():
            file = self.folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")

    def run(self, *arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
        """Run Python with these arguments, such as `-m`, `flask`, `routes`, and return its end."""
        return subprocess.run(
            [self._python, *arguments],
            cwd=self.folder,
            env={**self._variables, **variables},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    def output(self, *arguments: str, **variables: str) -> str:
        """Run Python with these arguments and return its output. It must end with 0."""
        done = self.run(*arguments, **variables)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    @contextmanager
    def server(self, app: str = "app") -> Iterator[str]:
        """Run `flask run` until the context ends. Yield its URL when it answers."""
        port = free_port()
        command = ["-m", "flask", "--app", app, "run", "--port", str(port)]
        with self._running("server", command, until=f"Running on http://127.0.0.1:{port}"):
            yield f"http://127.0.0.1:{port}"

    @contextmanager
    def worker(self, module: str = "worker", *options: str, **variables: str) -> Iterator[None]:
        """Run `celery -A worker worker` from the moment when it is ready until the context ends."""
        command = ["-m", "celery", "-A", module, "worker", "--loglevel", "INFO", *options]
        with self._running(module, command, until=READY, **variables):
            yield

    @contextmanager
    def _running(
        self, name: str, command: list[str], until: str, **variables: str
    ) -> Iterator[None]:
        log = self.folder / f"{name}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [self._python, *command],
                cwd=self.folder,
                env={**self._variables, **variables},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        try:
            wait_until(lambda: until in log.read_text() or process.poll() is not None, timeout=60)
            assert process.poll() is None, log.read_text()
            yield
        finally:
            # Stopping takes Celery two seconds, and has tests of its own.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            print(f"--- {log.name}\n{log.read_text()}")  # shown by pytest if the test failed


#: Options of a worker that start it sooner: it forks no processes and waits for no other workers.
QUICK = ("--pool", "threads", "--without-mingle", "--without-gossip")
