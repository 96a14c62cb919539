"""Mailer on SQLite and on PostgreSQL."""

import sys
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from bench import mail
from bench.contenders import Calls, Place, Queue, python, run_producer, running_redis
from bench.program import Failed, Missing, Program
from bench.programs.ours import RECIPIENTS
from bench.sink import Sink, running_sink
from tests.services.postgres import DEBIAN_FOLDERS, running_postgres
from tests.services.requirement import find_program


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """The options of `celery -A worker worker`."""

    pool: str = "prefork"
    concurrency: int = 2

    def __str__(self) -> str:
        return f"celery -A worker worker --pool {self.pool} --concurrency {self.concurrency}"

    def command(self) -> list[str]:
        return [sys.executable, "-m", *str(self).split(), "--loglevel", "WARNING"]


class Ours(Queue):
    database: ClassVar[str]

    def __init__(self, options: WorkerOptions) -> None:
        self._options = options

    @abstractmethod
    def running_database(self, folder: Path) -> AbstractContextManager[str]:
        """Start an empty database and yield its URL."""

    @contextmanager
    def services(self, folder: Path, sink: Sink) -> Iterator[Place]:
        with running_redis(folder) as redis, self.running_database(folder) as database_url:
            env = {
                "MAILER_DATABASE_URL": database_url,
                "MAILER_REDIS_URL": redis.url,
                "MAIL_DEFAULT_SENDER": mail.SENDER,
                "INSTANCE_PATH": str(folder),
                "SECRET_KEY": "of nobody",
                **sink.env,
            }
            migrate = [sys.executable, "-m", "flask", "--app", "app", "mail", "migrate"]
            with Program(migrate, folder / "migrate.log", env=env) as program:
                program.wait(60)
            yield Place(folder, sink, env, redis)

    def producer(self) -> Sequence[str]:
        return program("enqueue")

    def worker(self) -> Sequence[str]:
        return self._options.command()

    def call(self, method: str, folder: Path, mails: int) -> Calls:
        """Queue with `enqueue` or with `send_email`, which renders templates."""
        self.require()
        with running_sink(folder) as sink, self.services(folder, sink) as place:
            return run_producer(program(method), place, mails)

    def insert(self, folder: Path, mails: int) -> Calls:
        """Write the rows of the mails with the driver alone."""
        self.require()
        with running_sink(folder) as sink, self.services(folder, sink) as place:
            return run_producer(python("bench.programs.raw"), place, mails)

    def call_beside_a_busy_worker(self, method: str, folder: Path, mails: int) -> Calls:
        """Queue while a worker delivers as fast as it can."""
        self.require()
        with running_sink(folder) as sink, self.services(folder, sink) as place:
            # Each mail has many recipients, so that the worker has enough to do.
            much = max(20, mails // 20)
            run_producer(program("enqueue_many"), place, much)
            with Program(self.worker(), folder / "worker.log", env=place.env) as worker:
                sink.wait_for(1, check=worker.check, then_more=True)
                calls = run_producer(program(method), place, mails)
                if sink.count >= much * RECIPIENTS:
                    raise Failed("the worker had delivered everything before the last call")
            return calls


def program(method: str) -> Sequence[str]:
    """Return the command of an application that queues with this method."""
    return python("bench.programs.ours", method)


class OursOnSqlite(Ours):
    key = "ours-sqlite"
    database = "SQLite"
    title = "Mailer on SQLite, synchronous=FULL"

    def running_database(self, folder: Path) -> AbstractContextManager[str]:
        return nullcontext(f"sqlite:///{folder}/mailer.sqlite3")


class OursOnPostgres(Ours):
    key = "ours-postgres"
    database = "PostgreSQL"
    title = "Mailer on PostgreSQL"

    def require(self) -> None:
        super().require()
        if find_program("initdb", also_in=DEBIAN_FOLDERS) is None:
            raise Missing("PostgreSQL is not installed (Debian package postgresql)")

    @contextmanager
    def running_database(self, folder: Path) -> Iterator[str]:
        initdb = find_program("initdb", also_in=DEBIAN_FOLDERS)
        assert initdb, "require() has looked"
        with running_postgres(Path(initdb), DURABLE) as server:
            yield server.create("mailer")


#: The settings of the package, on a Unix socket only.
DURABLE = ["-c", "listen_addresses="]
