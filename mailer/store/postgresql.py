"""How PostgreSQL is opened: nobody waits for it without an end."""

import time
from typing import Any, TypeVar

import psycopg
from psycopg.abc import PQGen
from sqlalchemy import Engine, create_engine, event
from sqlalchemy.engine import URL

T = TypeVar("T")

_CONNECT_SECONDS = 5
_STATEMENT_SECONDS = 15
# Shorter than that: who waits for the rows of a client that is frozen gets them, instead of giving up.
_IDLE_SECONDS = 10
# Longer than a statement may take: a server that lives says so itself. Shorter than a web server waits for its application.
_SILENT_SECONDS = 20.0
#: What the client asks of the system, for servers that vanish from the network, and of the server, for clients that do.
_OPTIONS = {
    "connect_timeout": _CONNECT_SECONDS,
    "client_encoding": "utf8",
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
    "options": f"-c statement_timeout={_STATEMENT_SECONDS}s -c idle_in_transaction_session_timeout={_IDLE_SECONDS}s"
    " -c tcp_keepalives_idle=30 -c tcp_keepalives_interval=10 -c tcp_keepalives_count=3",
}


def make_engine(url: URL) -> Engine:
    url = url.set(drivername="postgresql+psycopg")
    engine = create_engine(url, connect_args=_OPTIONS, pool_timeout=_CONNECT_SECONDS)
    event.listen(engine, "do_connect", lambda _dialect, _record, arguments, options: _Connection.connect(*arguments, **options))
    return engine


class _Connection(psycopg.Connection[Any]):
    """Hangs up on a server that is frozen: its machine still takes part in TCP, so that no time-out of the system helps."""

    def wait(self, gen: PQGen[T], *options: Any, **more_options: Any) -> T:
        try:
            return super().wait(_unless_silent(gen), *options, **more_options)
        except _Silence:
            self.close()
            raise psycopg.OperationalError(f"no answer within {_SILENT_SECONDS:.0f} s") from None


class _Silence(Exception):
    """Nothing came, and nothing could be sent."""


def _unless_silent(steps: PQGen[T]) -> PQGen[T]:
    """The same steps, as long as the server takes part. The driver comes by ten times a second while it does not."""
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
