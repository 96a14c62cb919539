"""A real PostgreSQL, private to the test run."""

import os
import pwd
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypedDict

import psycopg

from tests.services.waiting import wait_until

#: Debian keeps the server's programs off PATH; the newest version comes first.
DEBIAN_FOLDERS = sorted(
    Path("/usr/lib/postgresql").glob("*/bin"), key=lambda folder: -int(folder.parent.name)
)

#: A test database lives for minutes and may be lost in a crash, so that no commit waits for disks.
SETTINGS = [
    "-c",
    "fsync=off",
    "-c",
    "synchronous_commit=off",
    "-c",
    "full_page_writes=off",
    "-c",
    "listen_addresses=",
]


class Account(TypedDict, total=False):
    """The user and group of a child process, as subprocess names them."""

    user: int
    group: int
    extra_groups: list[int]


class PostgresServer:
    """A server that listens only on a Unix socket in its own folder."""

    def __init__(self, programs: Path, folder: Path, settings: Sequence[str] = SETTINGS) -> None:
        self._programs = programs
        self.folder = folder
        self._data = folder / "data"
        self._settings = settings
        self._account = unprivileged_account()
        self._process: subprocess.Popen[bytes] | None = None
        if self._account:
            os.chown(folder, self._account["user"], self._account["group"])

    # --- start and stop --------------------------------------------------------------------------

    def initialize(self) -> None:
        """Set up an empty cluster."""
        options = [
            "--username=mailer",
            "--auth=trust",
            "--encoding=UTF8",
            "--locale=C",
            "--no-sync",
            f"--pgdata={self._data}",
        ]
        self._run("initdb", *options)

    def follow(self, primary: "PostgresServer", name: str) -> None:
        """Set up a standby, which the primary knows by this name."""
        source = f"host={primary.folder} user=mailer application_name={name}"
        self._run(
            "pg_basebackup",
            "--write-recovery-conf",
            "--checkpoint=fast",
            f"--pgdata={self._data}",
            f"--dbname={source}",
        )

    def start(self) -> None:
        """Return when the server answers."""
        command = [
            str(self._programs / "postgres"),
            "-D",
            str(self._data),
            "-k",
            str(self.folder),
            *self._settings,
        ]
        with (self.folder / "postgres.log").open("ab") as log:
            self._process = subprocess.Popen(
                command,
                cwd=self.folder,
                stdout=log,
                stderr=log,
                start_new_session=True,
                **self._account,
            )
        wait_until(self.accepts_connections, timeout=30)

    def stop(self, signum: signal.Signals = signal.SIGINT) -> None:
        """Close all connections, roll back, and end; with SIGQUIT as in a crash.

        Stopping twice is allowed.
        """
        if self._process is not None:
            self.thaw()
            self._process.send_signal(signum)
            self._process.wait()
            self._process = None

    def freeze(self) -> None:
        """Let the server accept connections and never answer, as a hanging machine does."""
        self._signal_all(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let the server answer again."""
        self._signal_all(signal.SIGCONT)

    def promote(self) -> None:
        """Make the standby the primary, and return when it is."""
        self._run("pg_ctl", "promote", f"--pgdata={self._data}")

    def accepts_connections(self) -> bool:
        """Return whether the server has started up."""
        try:
            self.execute("SELECT 1")
        except psycopg.OperationalError:
            return False
        return True

    def _signal_all(self, signum: signal.Signals) -> None:
        """Signal the server first, so that it starts no more processes.

        Each of its processes is in a group of its own.
        """
        assert self._process is not None, "the server is not running"
        main = self._process.pid
        self._process.send_signal(signum)
        for child in Path(f"/proc/{main}/task/{main}/children").read_text().split():
            with suppress(ProcessLookupError):
                os.kill(int(child), signum)

    def _run(self, program: str, *options: str) -> None:
        command = [str(self._programs / program), *options]
        subprocess.run(
            command, check=True, cwd=self.folder, stdout=subprocess.DEVNULL, **self._account
        )

    # --- databases -------------------------------------------------------------------------------

    def url(self, database: str) -> str:
        """Return SQLAlchemy's URL of a database."""
        return f"postgresql+psycopg://mailer@/{database}?host={self.folder}"

    def create(self, database: str, template: str = "template1") -> str:
        """Copy a database that nobody is connected to, and return the copy's URL."""
        self.execute(f'CREATE DATABASE "{database}" TEMPLATE "{template}"')
        return self.url(database)

    def drop(self, database: str) -> None:
        """Drop a database even if somebody is connected to it."""
        self.execute(f'DROP DATABASE "{database}" WITH (FORCE)')

    def execute(self, statement: str) -> list[tuple[Any, ...]]:
        """Execute a statement as the administrator, and return its rows."""
        with self.connect("postgres") as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def connect(self, database: str) -> psycopg.Connection:
        """Connect to a database as the administrator, with a short lock time-out."""
        options = "-c lock_timeout=5s"
        return psycopg.connect(
            host=str(self.folder), user="mailer", dbname=database, autocommit=True, options=options
        )


@contextmanager
def running_postgres(initdb: Path, settings: Sequence[str] = SETTINGS) -> Iterator[PostgresServer]:
    """Set up a cluster in a temporary folder, run it, and remove it at the end."""
    with postgres_folder() as folder:
        server = PostgresServer(initdb.parent, folder, settings)
        server.initialize()
        try:
            server.start()
            yield server
        finally:
            server.stop(signal.SIGQUIT)  # at once: its files are deleted anyway


@contextmanager
def postgres_folder() -> Iterator[Path]:
    """Create a folder outside pytest's own, which is closed to every other account."""
    with TemporaryDirectory(prefix="mailer-postgres-") as folder:
        yield Path(folder)


def unprivileged_account() -> Account:
    """Return the account to run as, since PostgreSQL refuses to run as root.

    It is the account that the package created, or nobody.
    """
    if os.geteuid() != 0:
        return {}
    known = {entry.pw_name: entry for entry in pwd.getpwall()}
    entry = known.get("postgres") or known["nobody"]
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
