"""A real Redis or Valkey that a test may stop, start, pause and flush."""

import signal
import subprocess
from pathlib import Path

import redis

from tests.services.waiting import wait_until


class RedisServer:
    """One server process on a Unix socket in the given folder.

    It stores nothing on disk: stopping it loses its data.
    """

    def __init__(self, program: Path, folder: Path) -> None:
        socket = folder / "redis.sock"
        self.url = f"unix://{socket}"
        self._command = [
            str(program),
            "--port",
            "0",
            "--unixsocket",
            str(socket),
            "--dir",
            str(folder),
            "--save",
            "",
        ]
        self._command += ["--logfile", "redis.log"]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Return when the server answers."""
        self._process = subprocess.Popen(self._command, start_new_session=True)
        wait_until(self._answers)

    def stop(self) -> None:
        """Return when the process has ended. Stopping twice is allowed."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def pause(self) -> None:
        """Let the server accept connections and never answer, as a hanging machine does."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let the server answer again."""
        self._signal(signal.SIGCONT)

    def flush(self) -> None:
        """Delete all keys."""
        with redis.Redis.from_url(self.url) as client:
            client.flushall()

    def _signal(self, signum: signal.Signals) -> None:
        assert self._process is not None, "the server is not running"
        self._process.send_signal(signum)

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, f"the server ended at once, see {self._command}"
        try:
            with redis.Redis.from_url(self.url) as client:
                return bool(client.ping())
        except redis.RedisError:
            return False
