"""The installation under test: real processes on real servers."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import pytest
from flask import Flask
from sqlalchemy import create_engine

from devstack import broker
from mailer import Mailer, MailStatus
from mailer.schema import migrate
from mailer.store import Store
from tests.application import create_app
from tests.chaos.history import Call, Tally, moves_on, tally
from tests.services.broker import RedisServer
from tests.services.ports import free_port
from tests.services.postgres import DEBIAN_FOLDERS, PostgresServer, running_postgres
from tests.services.requirement import find_program, require
from tests.services.waiting import wait_until
from tests.services.worker import PROJECT, Fleet, Worker

Database = Literal["sqlite", "postgresql"]


class Sink:
    """The relay, a process of its own; see `tests.chaos.sink`."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self._file = folder / "taken"
        self._file.touch()
        self._hold, self._held = folder / "taken.hold", folder / "taken.held"
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "tests.chaos.sink", str(self.port), str(self._file)]
        self.process = subprocess.Popen(command, cwd=PROJECT, stdin=subprocess.DEVNULL)

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()

    def freeze(self) -> None:
        """Stop the process: connections are still accepted, but nothing is answered."""
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def hold(self) -> None:
        """Return when a mail is recorded whose 250 is held back. No client is answered."""
        self._held.unlink(missing_ok=True)
        self._hold.touch()
        wait_until(self._held.exists, timeout=60)

    def let_go(self) -> None:
        """Send the 250 that was held back."""
        self._hold.unlink()

    def taken(self) -> list[str]:
        """Return the Message-ID of each mail that the relay accepted."""
        return [message_id for _recipient, message_id, _time in self._notes()]

    def recipients(self) -> list[str]:
        """Return the recipient of each mail that the relay accepted."""
        return [recipient for recipient, _message_id, _time in self._notes()]

    def times(self) -> dict[str, float]:
        """Return when the relay accepted each mail, by Message-ID."""
        return {message_id: float(time) for _recipient, message_id, time in self._notes()}

    def _notes(self) -> list[list[str]]:
        return [line.split() for line in self._file.read_text().splitlines()]

    def moments(self) -> list[float]:
        """Return when the relay accepted each mail, as `time.time()`."""
        return [float(time) for _recipient, _message_id, time in self._notes()]

    def count(self) -> int:
        return self._file.read_bytes().count(b"\n")


class Sender:
    """A web process that queues mail; see `tests.chaos.sender`."""

    def __init__(
        self, name: str, env: Mapping[str, str], folder: Path, options: Mapping[str, object]
    ) -> None:
        self._file = folder / f"{name}.calls"
        command = [
            sys.executable,
            "-m",
            "tests.chaos.sender",
            name,
            *(f"{key}={value}" for key, value in options.items()),
        ]
        with self._file.open("wb") as calls, self._file.with_suffix(".log").open("wb") as log:
            self.process = subprocess.Popen(
                command,
                cwd=PROJECT,
                env={**os.environ, **env},
                stdin=subprocess.DEVNULL,
                stdout=calls,
                stderr=log,
            )

    def stop(self, timeout: float = 60) -> None:
        """End the process after its present call."""
        self.process.terminate()
        assert self.process.wait(timeout) == 0, self._file.with_suffix(".log").read_text()[-2000:]

    def wait(self, timeout: float = 120) -> None:
        """Wait until the process has made all its calls."""
        assert self.process.wait(timeout) == 0, self._file.with_suffix(".log").read_text()[-2000:]

    def kill(self) -> None:
        """Kill the process, even in the middle of a call."""
        self.process.kill()
        self.process.wait()

    def count(self) -> int:
        """Count the calls that have returned or raised."""
        return self._file.read_bytes().count(b"\n")

    def calls(self) -> list[Call]:
        """Return the calls that have returned or raised."""
        whole, _newline, _rest = self._file.read_text().rpartition("\n")
        return [Call.read(line) for line in whole.splitlines()]


class Site:
    """One installation. Change `config` before starting a process that should use it."""

    def __init__(self, folder: Path, database_url: str, redis: RedisServer, sink: Sink) -> None:
        self.folder = folder
        self.redis = redis
        self.sink = sink
        self.config = {
            "MAILER_DATABASE_URL": database_url,
            "MAILER_REDIS_URL": redis.url,
            "MAILER_BLACK_BOX": str(folder / "black-box"),
            "MAIL_SERVER": "127.0.0.1",
            "MAIL_PORT": str(sink.port),
            "MAIL_DEFAULT_SENDER": "Mailer <mailer@example.com>",
            "MAILER_CLAIM_LEASE": "5",
        }
        self.fleet = Fleet(self.config, folder)
        self.senders: list[Sender] = []

    def start_worker(
        self,
        pool: str = "threads",
        concurrency: int = 4,
        *,
        until_ready: bool = True,
        env: Mapping[str, str] | None = None,
        within: Sequence[str] = (),
    ) -> Worker:
        """Return when the worker is ready, which needs a broker."""
        [worker] = self.fleet.start(
            1, pool=pool, concurrency=concurrency, env=env, until_ready=until_ready, within=within
        )
        return worker

    def start_sender(self, *, name: str = "", **options: object) -> Sender:
        """Make `count` calls or go on, `pause` seconds apart. Options: see `sender`."""
        sender = Sender(name or f"sender{len(self.senders)}", self.config, self.folder, options)
        self.senders.append(sender)
        return sender

    def app(self) -> Flask:
        """Return the application in this process, with the present configuration."""
        return create_app(self.config)

    def calls(self) -> list[Call]:
        return [call for sender in self.senders for call in sender.calls()]

    def settle(self, timeout: float = 60) -> None:
        """Wait until no mail is queued or in a worker's hands."""
        awaited = {call.mail_id for call in self.calls() if call.mail_id}

        def is_quiet() -> bool:
            mails = Mailer().statuses(awaited)
            awaited.difference_update(
                mail_id
                for mail_id in {*awaited}
                if mail_id not in mails or _is_final(mails[mail_id])
            )
            return not any(moves_on(mails[mail_id]) for mail_id in awaited)

        with self.app().app_context():
            try:
                wait_until(is_quiet, timeout)
            except pytest.fail.Exception:
                print(
                    f"{len(awaited)} are still waiting:",
                    *Mailer().statuses([*awaited][:10]).values(),
                    sep="\n",
                )
                raise

    def mails(self) -> list[MailStatus]:
        """Return the status of each accepted mail from the database."""
        return [*self.statuses().values()]

    def statuses(self) -> dict[str, MailStatus]:
        """Return the status of each accepted mail from the database, by id."""
        with self.app().app_context():
            return Mailer().statuses([call.mail_id for call in self.calls() if call.mail_id])

    def tally(self) -> Tally:
        """Compare the senders' calls, the relay's record and the database."""
        return tally(self.calls(), self.statuses(), self.sink.taken())

    def end(self) -> None:
        for sender in self.senders:
            sender.process.kill()
            sender.process.wait()
        self.fleet.end(show_logs=True)


def _is_final(mail: MailStatus) -> bool:
    return all(copy.status.is_final for copy in mail)


@contextmanager
def running_site(folder: Path, database: Database = "sqlite") -> Iterator[Site]:
    """Start a database, Redis and a relay. Scenarios start workers and senders."""
    with _database(folder, database) as url, site_on(url, folder) as site:
        yield site


@contextmanager
def site_on(database_url: str, folder: Path) -> Iterator[Site]:
    """Start Redis and a relay beside a database that the scenario made."""
    with ExitStack() as stack:
        # The path of a Unix socket has to be short.
        short = Path(stack.enter_context(TemporaryDirectory(prefix="mailer-redis-")))
        redis = RedisServer(broker.find_program(), short)
        stack.callback(redis.stop)
        redis.start()
        sink = Sink(folder)
        stack.callback(sink.stop)
        site = Site(folder, database_url, redis, sink)
        stack.callback(site.end)
        yield site


@contextmanager
def _database(folder: Path, kind: Database) -> Iterator[str]:
    if kind == "sqlite":
        store = Store(f"sqlite:///{folder / 'mailer.sqlite3'}")
        store.check_schema()  # creates the tables
        store.engine.dispose()
        yield f"sqlite:///{folder / 'mailer.sqlite3'}"
        return
    with running_postgres(find_initdb()) as server:
        yield migrated(server)


def find_initdb() -> Path:
    """Find the program initdb, whose folder has the server's other programs."""
    return require("PostgreSQL", find_program("initdb", also_in=DEBIAN_FOLDERS)).resolve()


def migrated(server: PostgresServer) -> str:
    """Create a database with all tables and return its URL."""
    url = server.create("mailer")
    engine = create_engine(url)
    migrate(engine)
    engine.dispose()
    return url
