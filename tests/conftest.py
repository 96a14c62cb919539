"""The fixtures: real services, each test with a fresh share of them, and the application wired to that share."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import hypothesis
import pytest
from flask import Flask

from devstack import broker
from tests.application import create_app
from tests.services.broker import RedisServer
from tests.services.databases import Databases, PostgresDatabases, SqliteDatabases, fast_folder
from tests.services.machine import share_of_machine
from tests.services.postgres import DEBIAN_FOLDERS, running_postgres
from tests.services.requirement import do_without, find_program, require
from tests.services.sink import Sink
from tests.services.worker import Fleet, StartWorker, StartWorkers
from tests.shop import close

# No test fails because the machine is busy.
hypothesis.settings.register_profile("tests", deadline=None)
hypothesis.settings.load_profile("tests")

# Processes


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Return the number of processes: more than cores, since a test often waits for programs."""
    return max(2, len(os.sched_getaffinity(0)) * 3 // 2)


@pytest.hookimpl(wrapper=True, tryfirst=True)  # before pytest-timeout begins to count
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Let a test marked `alone` have the machine for itself, in whichever process of the run."""
    with share_of_machine(alone=item.get_closest_marker("alone") is not None):
        return (yield)


# Databases


@pytest.fixture(scope="session")
def sqlite_databases() -> Iterator[Databases]:
    with TemporaryDirectory(prefix="mailer-sqlite-", dir=fast_folder()) as folder:
        yield SqliteDatabases(Path(folder))


@pytest.fixture(scope="session")
def postgres_databases() -> Iterator[Databases]:
    initdb = require("PostgreSQL", find_program("initdb", also_in=DEBIAN_FOLDERS))
    with running_postgres(initdb) as server:
        yield PostgresDatabases(server)


@pytest.fixture(params=["sqlite", "postgresql"])
def databases(request: pytest.FixtureRequest) -> Databases:
    """Runs the test once on each database; `@sqlite_only` keeps it to one."""
    found: Databases = request.getfixturevalue(
        {"sqlite": "sqlite_databases", "postgresql": "postgres_databases"}[request.param]
    )
    return found


@pytest.fixture
def database_url(databases: Databases) -> Iterator[str]:
    with databases.migrated() as url:
        yield url


@pytest.fixture
def empty_database_url(databases: Databases) -> Iterator[str]:
    with databases.empty() as url:
        yield url


@pytest.fixture
def postgres_url(postgres_databases: Databases) -> Iterator[str]:
    with postgres_databases.migrated() as url:
        yield url


# Redis


@pytest.fixture(scope="session")
def redis_program() -> Path:
    """The one the local stack takes."""
    with suppress(broker.CannotStart):
        return broker.find_program()
    return do_without("Redis or Valkey")


@pytest.fixture(scope="session")
def shared_redis(redis_program: Path) -> Iterator[RedisServer]:
    yield from _running_redis(redis_program)


@pytest.fixture
def redis_server(redis_program: Path) -> Iterator[RedisServer]:
    """A server of the test's own, to be stopped, started, paused and flushed."""
    yield from _running_redis(redis_program)


@pytest.fixture
def redis_url(shared_redis: RedisServer) -> str:
    shared_redis.flush()
    return shared_redis.url


def _running_redis(program: Path) -> Iterator[RedisServer]:
    with TemporaryDirectory(
        prefix="mailer-redis-"
    ) as folder:  # a short path: that of a socket may have about 100 characters
        server = RedisServer(program, Path(folder))
        try:
            server.start()
            yield server
        finally:
            server.stop()


# Mail


@pytest.fixture
def sink() -> Iterator[Sink]:
    with Sink() as server:
        yield server


# The application and its workers


@pytest.fixture
def config(database_url: str, redis_url: str, sink: Sink, tmp_path: Path) -> dict[str, str]:
    """What the application and its workers are both configured with; a test may change it before it starts them."""
    return {
        "MAILER_DATABASE_URL": database_url,
        "MAILER_REDIS_URL": redis_url,
        "MAILER_BLACK_BOX": str(tmp_path / "black-box"),
        "MAIL_SERVER": sink.host,
        "MAIL_PORT": str(sink.port),
        "MAIL_DEFAULT_SENDER": "Mailer <mailer@example.com>",
    }


@pytest.fixture
def make_app(config: Mapping[str, str]) -> Iterator[Callable[..., Flask]]:
    """`make_app(**config)`: the application, as a web process has it; its connections are closed after the test."""
    with ExitStack() as stack:

        def make_app(**changes: object) -> Flask:
            app = create_app({**config, **changes})
            stack.callback(close, app)
            return app

        yield make_app


@pytest.fixture
def start_workers(config: Mapping[str, str], tmp_path: Path) -> Iterator[StartWorkers]:
    """`start_workers(count, pool=, concurrency=, env=)`: worker processes of the same application, killed after the test."""
    fleet = Fleet(config, tmp_path)
    yield fleet.start
    fleet.end()


@pytest.fixture
def start_worker(start_workers: StartWorkers) -> StartWorker:
    """`start_worker(pool=, concurrency=, env=)`: one of them."""
    return lambda **options: start_workers(1, **options)[0]
