"""The engine for PostgreSQL, with a limit for each wait."""

import time
from typing import Any, TypeVar

import psycopg
from psycopg.abc import PQGen
from sqlalchemy import Engine, create_engine, event
from sqlalchemy.engine import URL
from sqlalchemy.pool import NullPool

from mailer.settings.database import server_options

T = TypeVar("T")

_CONNECT_SECONDS = 5
_STATEMENT_SECONDS = 15
# Shorter than that: a statement that waits for the rows of a frozen client gets them in time.
_IDLE_SECONDS = 10
# Longer than a statement may take: a running server answers by then. Shorter than the time-out of a
# web server for its application.
_SILENT_SECONDS = 20.0
#: Options of the client, for servers that vanish from the network.
_OF_THE_CLIENT = {
    "connect_timeout": _CONNECT_SECONDS,
    "client_encoding": "utf8",
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}
#: Options of the session at the server, also for clients that vanish.
_OF_THE_SERVER = {
    "options": f"-c statement_timeout={_STATEMENT_SECONDS}s"
    f" -c idle_in_transaction_session_timeout={_IDLE_SECONDS}s"
    " -c tcp_keepalives_idle=30 -c tcp_keepalives_interval=10 -c tcp_keepalives_count=3",
}
#: Behind PgBouncer, each transaction may be in another session, so no statement is prepared in one.
_BEHIND_PGBOUNCER = {"prepare_threshold": None}
#: Sets the same limits in a transaction, for sessions that are shared.
LIMITS = (
    f"SELECT set_config('statement_timeout', '{_STATEMENT_SECONDS}s', true),"
    f" set_config('idle_in_transaction_session_timeout', '{_IDLE_SECONDS}s', true)"
)

# Signs of a pooler before the server: a message of its own, and the sqlstates of a prepared
# statement that exists already, and of one that does not exist.
_SAYS_POOLER = "unsupported startup parameter"
_PREPARED_ELSEWHERE = ("42P05", "26000")


def make_engine(url: URL, *, pgbouncer: bool = False) -> Engine:
    url = url.set(drivername="postgresql+psycopg")
    arguments = {**_OF_THE_CLIENT, **(_BEHIND_PGBOUNCER if pgbouncer else _of_the_server(url))}
    engine = create_engine(url, connect_args=arguments, pool_timeout=_CONNECT_SECONDS)
    event.listen(
        engine,
        "do_connect",
        lambda _dialect, _record, arguments, options: _Connection.connect(*arguments, **options),
    )
    return engine


def _of_the_server(url: URL) -> dict[str, str]:
    """Return our options after those of the URL, such as a search_path: psycopg takes one text."""
    return {"options": f"{server_options(url)} {_OF_THE_SERVER['options']}".lstrip()}


def make_patient_engine(url: URL) -> Engine:
    """Return an engine without limits, for migrations. It also works behind PgBouncer."""
    return create_engine(url, poolclass=NullPool, connect_args=_BEHIND_PGBOUNCER)


def is_behind_pooler(error: BaseException) -> bool:
    """Return whether this error is typical of a pooler when MAILER_PGBOUNCER is not set."""
    driver_error = getattr(error, "orig", None) or error
    return getattr(driver_error, "sqlstate", None) in _PREPARED_ELSEWHERE or _SAYS_POOLER in str(
        driver_error
    )


class _Connection(psycopg.Connection[Any]):
    """A connection that is closed when the server is silent for too long.

    A frozen server's machine still answers TCP's keepalives, so they do not notice it.
    """

    def wait(self, gen: PQGen[T], *options: Any, **more_options: Any) -> T:
        try:
            return super().wait(_unless_silent(gen), *options, **more_options)
        except _Silence:
            self.close()
            raise psycopg.OperationalError(f"no answer within {_SILENT_SECONDS:.0f} s") from None


class _Silence(Exception):
    """The error of a server that has not answered in time."""


def _unless_silent(steps: PQGen[T]) -> PQGen[T]:
    """Pass the steps of a wait on to the driver, and raise `_Silence` after too long a silence.

    The driver resumes this generator ten times a second while the server is silent.
    """
    try:
        wanted = next(steps)
        heard_at = time.monotonic()
        while True:
            ready = yield wanted
            if ready:
                heard_at = time.monotonic()
            elif time.monotonic() - heard_at > _SILENT_SECONDS:
                raise _Silence
            wanted = steps.send(ready)
    except StopIteration as end:
        result: T = end.value
        return result
