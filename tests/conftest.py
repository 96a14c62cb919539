"""The fixtures: real services, new for each test, and the application connected to them."""

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
from tests.services.packages import Packages, build_packages, install
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
    """Return the number of processes, more than cores: tests often wait."""
    return max(2, len(os.sched_getaffinity(0)) * 3 // 2)


@pytest.hookimpl(wrapper=True, tryfirst=True)  # before the time-out of pytest-timeout begins
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Run a test marked `alone` while no other process runs a test."""
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
    """Run the test once on each database, or on one with `@sqlite_only`."""
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
    """Return the Redis that the local stack runs."""
    with suppress(broker.CannotStart):
        return broker.find_program()
    return do_without("Redis or Valkey")


@pytest.fixture(scope="session")
def shared_redis(redis_program: Path) -> Iterator[RedisServer]:
    yield from _running_redis(redis_program)


@pytest.fixture
def redis_server(redis_program: Path) -> Iterator[RedisServer]:
    """Start a Redis for this test alone, which may stop, pause and flush it."""
    yield from _running_redis(redis_program)


@pytest.fixture
def redis_url(shared_redis: RedisServer) -> str:
    shared_redis.flush()
    return shared_redis.url


def _running_redis(program: Path) -> Iterator[RedisServer]:
    # A short path: that of a socket may have about 100 characters.
    with TemporaryDirectory(prefix="mailer-redis-") as folder:
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
    """Return the configuration of application and workers, which a test may change first."""
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
    """Return `make_app(**config)`, which makes the application of a web process."""
    with ExitStack() as stack:

        def make_app(**changes: object) -> Flask:
            app = create_app({**config, **changes})
            stack.callback(close, app)
            return app

        yield make_app


@pytest.fixture
def start_workers(config: Mapping[str, str], tmp_path: Path) -> Iterator[StartWorkers]:
    """Return `start_workers(count, pool=, concurrency=, env=)`. The workers end with the test."""
    fleet = Fleet(config, tmp_path, forked=True)
    yield fleet.start
    fleet.end()


@pytest.fixture
def start_worker(start_workers: StartWorkers) -> StartWorker:
    """Return `start_worker(pool=, concurrency=, env=)`, which starts one worker."""
    return lambda **options: start_workers(1, **options)[0]


# The packages


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Packages:
    """Return the wheel and the sdist of this checkout."""
    return build_packages(_of_all_processes(tmp_path_factory) / "packages")


@pytest.fixture(scope="session")
def installed_python(packages: Packages, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the Python of an environment with the wheel and its dependencies, and nothing else."""
    return install(packages.wheel, _of_all_processes(tmp_path_factory) / "installed")


@pytest.fixture(scope="session")
def installed_with_inbox(packages: Packages, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the Python of an environment with the sdist and the extra `inbox`."""
    folder = _of_all_processes(tmp_path_factory) / "installed-with-inbox"
    return install(packages.sdist, folder, "inbox")


@pytest.fixture(scope="session")
def installed_beside_others(packages: Packages, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the Python of an environment with Flask-SQLAlchemy and Flask-Migrate as well."""
    folder = _of_all_processes(tmp_path_factory) / "installed-beside-others"
    return install(packages.wheel, folder, beside=("flask-sqlalchemy", "flask-migrate"))


def _of_all_processes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder that the processes of this test run share."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
