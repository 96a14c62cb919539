"""A real Redis or Valkey that a test may stop, start, pause and flush."""

import signal
import subprocess
from pathlib import Path

import redis

from tests.services.waiting import wait_until


class RedisServer:
    """One server process on a Unix socket in the given folder.

    It keeps nothing on disk: stopping it loses what it held.
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
        """Return when it answers."""
        self._process = subprocess.Popen(self._command, start_new_session=True)
        wait_until(self._answers)

    def stop(self) -> None:
        """Return when it is gone. Stopping twice is no mistake."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def pause(self) -> None:
        """Let it accept connections and never answer, as a machine does that hangs."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it answer again."""
        self._signal(signal.SIGCONT)

    def flush(self) -> None:
        """Forget everything."""
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
