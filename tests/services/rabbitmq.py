"""A real RabbitMQ, private to one test, which may stop it and start it again."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from kombu import Connection

from tests.services.ports import free_port
from tests.services.waiting import wait_until

#: Debian's script in /usr/sbin wants the account of the package; this one runs as anybody.
FOLDERS = [Path("/usr/lib/rabbitmq/bin")]


class RabbitServer:
    """One node on 127.0.0.1. Its messages survive a restart."""

    def __init__(self, program: Path, folder: Path) -> None:
        self._program = program
        self._folder = folder
        port, self._names_port = free_port(), free_port()
        self.url = f"amqp://guest:guest@127.0.0.1:{port}//"
        self._env = {
            **os.environ,
            "HOME": str(folder),
            "ERL_EPMD_PORT": str(self._names_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": f"mailer{port}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(port),
            "RABBITMQ_DIST_PORT": str(free_port()),
            "RABBITMQ_MNESIA_BASE": str(folder / "data"),
            "RABBITMQ_LOG_BASE": str(folder / "log"),
            "RABBITMQ_CONFIG_FILE": str(folder / "none"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"),
            "RABBITMQ_CONF_ENV_FILE": str(folder / "none.conf"),
        }
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Return when the server answers."""
        with (self._folder / "rabbitmq.log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._program], env=self._env, stdout=log, stderr=log, start_new_session=True
            )
        wait_until(self._answers, timeout=180)

    def stop(self) -> None:
        """Return when the process has ended. Stopping twice is allowed."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(60)
            self._process = None

    def end(self) -> None:
        """Stop for good, with the name server that Erlang has started."""
        self.stop()
        command = ["epmd", "-port", str(self._names_port), "-kill"]
        subprocess.run(command, check=False, env=self._env, stdout=subprocess.DEVNULL)

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self._folder / "rabbitmq.log").read_text()
        connection = Connection(self.url, connect_timeout=2)
        try:
            connection.connect()
        except connection.connection_errors:  # OSError is one of them
            return False
        connection.close()
        return True


@contextmanager
def running_rabbitmq(program: Path) -> Iterator[RabbitServer]:
    with TemporaryDirectory(prefix="mailer-rabbit-", ignore_cleanup_errors=True) as folder:
        server = RabbitServer(program, Path(folder))
        try:
            server.start()
            yield server
        finally:
            server.end()
