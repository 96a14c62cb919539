"""A real PostgreSQL, private to the test run."""

import os
import pwd
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypedDict

import psycopg

from tests.services.waiting import wait_until

#: Debian keeps the server's programs off PATH; the newest version comes first.
DEBIAN_FOLDERS = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda folder: -int(folder.parent.name))

#: A test database lives for minutes: losing it in a crash of the machine is fine, waiting for the disk is not.
SETTINGS = ["-c", "fsync=off", "-c", "synchronous_commit=off", "-c", "full_page_writes=off", "-c", "listen_addresses="]


class Account(TypedDict, total=False):
    """Who a child process runs as, in subprocess's words."""

    user: int
    group: int
    extra_groups: list[int]


class PostgresServer:
    """A running server; it listens on a Unix socket in its own folder only, so no port can be taken."""

    def __init__(self, socket_folder: Path) -> None:
        self._socket_folder = socket_folder

    def url(self, database: str) -> str:
        """SQLAlchemy's address of a database."""
        return f"postgresql+psycopg://mailer@/{database}?host={self._socket_folder}"

    def create(self, database: str, template: str = "template1") -> str:
        """Create a database as a copy of another one, which nobody may be connected to, and return its address."""
        self._execute(f'CREATE DATABASE "{database}" TEMPLATE "{template}"')
        return self.url(database)

    def drop(self, database: str) -> None:
        """Drop a database, whoever is still connected to it."""
        self._execute(f'DROP DATABASE "{database}" WITH (FORCE)')

    def accepts_connections(self) -> bool:
        """Tell whether it has started up."""
        try:
            self._execute("SELECT 1")
        except psycopg.OperationalError:
            return False
        return True

    def _execute(self, statement: str) -> None:
        with psycopg.connect(host=str(self._socket_folder), user="mailer", dbname="postgres", autocommit=True) as connection:
            connection.execute(statement.encode())


@contextmanager
def running_postgres(initdb: Path, settings: Sequence[str] = SETTINGS) -> Iterator[PostgresServer]:
    """Set up a cluster in a temporary folder, run it, and remove it at the end."""
    account = unprivileged_account()
    # Not below pytest's own folder: that is closed to every other account.
    with TemporaryDirectory(prefix="mailer-postgres-") as name:
        folder, data = Path(name), Path(name, "data")
        if account:
            os.chown(folder, account["user"], account["group"])
        settle = ["--username=mailer", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync", f"--pgdata={data}"]
        subprocess.run([initdb, *settle], check=True, cwd=folder, stdout=subprocess.DEVNULL, **account)
        command = [str(initdb.with_name("postgres")), "-D", str(data), "-k", str(folder), *settings]
        with (folder / "postgres.log").open("wb") as log:
            process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, start_new_session=True, **account)
        try:
            server = PostgresServer(folder)
            wait_until(server.accepts_connections, timeout=30)
            yield server
        finally:
            process.send_signal(signal.SIGQUIT)  # at once, without tidying up what is deleted anyway
            process.wait()


def unprivileged_account() -> Account:
    """PostgreSQL refuses to run as root: then it runs as the account its package made, or as nobody."""
    if os.geteuid() != 0:
        return {}
    known = {entry.pw_name: entry for entry in pwd.getpwall()}
    entry = known.get("postgres") or known["nobody"]
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
