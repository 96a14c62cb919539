"""A real PgBouncer in transaction mode, with more clients than connections to the server."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psycopg
from sqlalchemy import make_url

from tests.services.postgres import postgres_folder, unprivileged_account
from tests.services.waiting import wait_until

_POOLED = 3  # connections to the server


@contextmanager
def running_pgbouncer(program: Path, database_url: str) -> Iterator[str]:
    """Run PgBouncer in front of this database, and yield the URL that leads through it."""
    direct = make_url(database_url)
    with postgres_folder() as folder:
        configuration = folder / "pgbouncer.ini"
        configuration.write_text(f"""
[databases]
* = host={direct.query["host"]} user={direct.username}
[pgbouncer]
listen_addr =
listen_port = 6432
unix_socket_dir = {folder}
auth_type = any
pool_mode = transaction
default_pool_size = {_POOLED}
max_client_conn = 200
logfile = {folder}/pgbouncer.log
""")
        account = unprivileged_account()
        if account:
            _give(folder, account["user"], account["group"])
        command = [str(program), str(configuration)]
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **account
        )
        try:
            wait_until(lambda: _answers(folder, str(direct.database)), timeout=30)
            pooled = direct.update_query_dict({"host": str(folder), "port": "6432"})
            yield pooled.render_as_string(hide_password=False)
        finally:
            process.kill()
            process.wait()


def _answers(folder: Path, database: str) -> bool:
    with (
        suppress(psycopg.OperationalError),
        psycopg.connect(host=str(folder), port=6432, user="mailer", dbname=database),
    ):
        return True
    return False


def _give(folder: Path, user: int, group: int) -> None:
    for path in (folder, *folder.iterdir()):
        os.chown(path, user, group)
