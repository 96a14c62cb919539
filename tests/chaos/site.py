"""What is broken: an installation of its own, of real processes on real servers."""

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
        """Connections are made, and nobody answers."""
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def hold(self) -> None:
        """Return when it has taken a mail, whose 250 waits; nobody else is answered either."""
        self._held.unlink(missing_ok=True)
        self._hold.touch()
        wait_until(self._held.exists, timeout=60)

    def let_go(self) -> None:
        """Say the 250."""
        self._hold.unlink()

    def taken(self) -> list[str]:
        """The Message-ID of each mail it took."""
        return [message_id for _recipient, message_id, _time in self._notes()]

    def recipients(self) -> list[str]:
        """The same by recipient."""
        return [recipient for recipient, _message_id, _time in self._notes()]

    def times(self) -> dict[str, float]:
        """When it took each mail, by Message-ID."""
        return {message_id: float(time) for _recipient, message_id, time in self._notes()}

    def _notes(self) -> list[list[str]]:
        return [line.split() for line in self._file.read_text().splitlines()]

    def moments(self) -> list[float]:
        """When it took them, in the time of `time.time()`."""
        return [float(time) for _recipient, _message_id, time in self._notes()]

    def count(self) -> int:
        return self._file.read_bytes().count(b"\n")


class Sender:
    """A web process that queues; see `tests.chaos.sender`."""

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
        """Let the call at hand come to its end."""
        self.process.terminate()
        assert self.process.wait(timeout) == 0, self._file.with_suffix(".log").read_text()[-2000:]

    def wait(self, timeout: float = 120) -> None:
        """Until it has made all its calls."""
        assert self.process.wait(timeout) == 0, self._file.with_suffix(".log").read_text()[-2000:]

    def kill(self) -> None:
        """In the middle of whatever it does."""
        self.process.kill()
        self.process.wait()

    def count(self) -> int:
        """How many calls have returned or raised."""
        return self._file.read_bytes().count(b"\n")

    def calls(self) -> list[Call]:
        """What these were."""
        whole, _newline, _rest = self._file.read_text().rpartition("\n")
        return [Call.read(line) for line in whole.splitlines()]


class Site:
    """One installation. `config` may be changed before something is started with it."""

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
        """Ready to work when this returns, which it never is without a broker."""
        [worker] = self.fleet.start(
            1, pool=pool, concurrency=concurrency, env=env, until_ready=until_ready, within=within
        )
        return worker

    def start_sender(self, *, name: str = "", **options: object) -> Sender:
        """`count=` calls and no more, `pause=` seconds between them; the rest are options of `send_email()`, or see `sender`."""
        sender = Sender(name or f"sender{len(self.senders)}", self.config, self.folder, options)
        self.senders.append(sender)
        return sender

    def app(self) -> Flask:
        """The application, in this process, with today's configuration."""
        return create_app(self.config)

    def calls(self) -> list[Call]:
        return [call for sender in self.senders for call in sender.calls()]

    def settle(self, timeout: float = 60) -> None:
        """Wait until nothing is queued or in a worker's hands any more."""
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
                    f"{len(awaited)} still wait:",
                    *Mailer().statuses([*awaited][:10]).values(),
                    sep="\n",
                )
                raise

    def mails(self) -> list[MailStatus]:
        """What the database says of those that were accepted."""
        return [*self.statuses().values()]

    def statuses(self) -> dict[str, MailStatus]:
        """The same by id."""
        with self.app().app_context():
            return Mailer().statuses([call.mail_id for call in self.calls() if call.mail_id])

    def tally(self) -> Tally:
        """What three histories tell."""
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
    """Everything but workers and senders, which a scenario starts as it needs them."""
    with _database(folder, database) as url, site_on(url, folder) as site:
        yield site


@contextmanager
def site_on(database_url: str, folder: Path) -> Iterator[Site]:
    """The same with a database of the scenario's own."""
    with ExitStack() as stack:
        # Sockets want short paths.
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
        store.check_schema()  # makes the tables
        store.engine.dispose()
        yield f"sqlite:///{folder / 'mailer.sqlite3'}"
        return
    with running_postgres(find_initdb()) as server:
        yield migrated(server)


def find_initdb() -> Path:
    """Where the other programs of the server are, too."""
    return require("PostgreSQL", find_program("initdb", also_in=DEBIAN_FOLDERS)).resolve()


def migrated(server: PostgresServer) -> str:
    """The address of a new database with today's tables."""
    url = server.create("mailer")
    engine = create_engine(url)
    migrate(engine)
    engine.dispose()
    return url
