"""A real Redis with a replica, and the Sentinel that makes the replica the master."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import redis

from tests.services.ports import free_port
from tests.services.waiting import wait_until

MASTER = "mymaster"


class SentinelSet:
    """Two servers of Redis and one Sentinel, which is enough to vote in a test."""

    def __init__(self, program: Path, folder: Path) -> None:
        self._program = program
        self._folder = folder
        self._ports = [free_port(), free_port()]
        self._sentinel_port = free_port()
        self.url = f"sentinel://127.0.0.1:{self._sentinel_port}/0"
        self._processes: dict[int, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        """Return when the replica follows the master, and the Sentinel knows both."""
        master, replica = self._ports
        self._start(master)
        self._start(replica, "--replicaof", "127.0.0.1", str(master))
        configuration = self._folder / "sentinel.conf"
        configuration.write_text(
            f"port {self._sentinel_port}\n"
            "bind 127.0.0.1\n"
            f"sentinel monitor {MASTER} 127.0.0.1 {master} 1\n"
            f"sentinel down-after-milliseconds {MASTER} 500\n"
            f"sentinel failover-timeout {MASTER} 2000\n"
        )
        command = [str(self._program), str(configuration), "--sentinel"]
        self._run(self._sentinel_port, command)
        wait_until(lambda: self._sees_replica(replica), timeout=30)

    def stop_master(self) -> None:
        """Kill the master, and return when the replica is the new one."""
        master = self._processes.pop(self._ports[0])
        master.kill()
        master.wait()
        wait_until(lambda: self.master_port() == self._ports[1], timeout=30)

    def end(self) -> None:
        for process in self._processes.values():
            process.kill()
            process.wait()

    def master_port(self) -> int:
        with self._client(self._sentinel_port) as sentinel:
            return int(sentinel.sentinel_get_master_addr_by_name(MASTER)[1])

    def _sees_replica(self, replica: int) -> bool:
        try:
            with self._client(self._sentinel_port) as sentinel, self._client(replica) as server:
                seen = sentinel.sentinel_slaves(MASTER)
                return bool(seen) and server.info("replication")["master_link_status"] == "up"
        except redis.ConnectionError:
            return False

    def _start(self, port: int, *options: str) -> None:
        folder = self._folder / str(port)
        folder.mkdir()
        command = [str(self._program), "--port", str(port), "--bind", "127.0.0.1"]
        self._run(port, [*command, "--dir", str(folder), "--save", "", *options])

    def _run(self, port: int, command: list[str]) -> None:
        with (self._folder / f"{port}.log").open("wb") as log:
            self._processes[port] = subprocess.Popen(command, stdout=log, start_new_session=True)

    @staticmethod
    def _client(port: int) -> redis.Redis:
        return redis.Redis(port=port, socket_timeout=2)


@contextmanager
def running_sentinel(program: Path) -> Iterator[SentinelSet]:
    with TemporaryDirectory(prefix="mailer-sentinel-") as folder:
        servers = SentinelSet(program, Path(folder))
        try:
            servers.start()
            yield servers
        finally:
            servers.end()
