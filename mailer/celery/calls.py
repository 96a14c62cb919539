"""Calls of background functions: their tasks, and the way of a call to a worker."""

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import redis
from celery import Celery, Task
from celery.exceptions import Retry
from celery.result import AsyncResult
from flask import Flask, current_app, has_app_context
from kombu.exceptions import OperationalError

from mailer.celery.app import ONE_TRY, broker_of, installed, transport_options
from mailer.celery.arguments import Call, pack
from mailer.errors import BrokerUnavailable, ConfigurationError
from mailer.outbound import Outbound

# The header of a call that names its Flask app: several may share a Celery app.
_APP = "mailer_app"
_REDIS = ("redis://", "rediss://", "redis+socket://", "unix://")
_UNREACHABLE = (OperationalError, redis.RedisError, OSError)


def add_task(
    celery: Celery[Any], name: str, function: Callable[..., Any], options: Mapping[str, Any]
) -> None:
    """Make a function a task of a Celery app. A task of the same name is replaced."""
    gets_task = options.get("bind", False)

    @functools.wraps(function)
    def run(task: Task[Any, Any], *args: Any, **kwargs: Any) -> Any:
        with _context(task):
            return function(task, *args, **kwargs) if gets_task else function(*args, **kwargs)

    run.__name__ = name.rpartition(".")[2]  # Celery needs one, and a partial function has none
    celery.tasks.pop(name, None)
    own = {"name": name, "bind": True, "shared": False, "lazy": False}
    celery.task(run, **{**options, **own})


@contextmanager
def _context(task: Task[Any, Any]) -> Iterator[None]:
    """Enter the context of the Flask app of a call, unless the task class has done that."""
    app = _app_of(task)
    if has_app_context() and current_app == app:
        yield
    else:
        with app.app_context():
            yield


def _app_of(task: Task[Any, Any]) -> Flask:
    outbounds = installed(task.app)
    if len(outbounds) == 1:
        return outbounds[0].app
    name = (task.request.headers or {}).get(_APP)
    for outbound in outbounds:
        if _id_of(outbound) == name:
            return outbound.app
    raise ConfigurationError(
        f"{task.name}: {len(outbounds)} Flask apps share this Celery app, and this call is of none"
        " of them. Call the function in an app context, in a process with the same apps."
    )


def _id_of(outbound: Outbound) -> str:
    return f"{outbound.app.name} {outbound.settings.installation}"


# --- a call -------------------------------------------------------------------------------------


def call_here(task: Task[Any, Any], outbound: Outbound, call: Call) -> AsyncResult[Any]:
    """Run a task at once, and its retries, with arguments as on a worker. Let its errors pass."""
    message = pack(task, call)
    run: Callable[..., AsyncResult[Any]] = functools.partial(task.apply, *message.read())
    retries = 0
    with outbound.app.app_context():
        while True:
            try:
                return run(throw=True, retries=retries, headers=_headers(outbound, call))
            except Retry as again:
                if (repeated := getattr(again, "sig", None)) is None:
                    raise
                run, retries = repeated.apply, retries + 1


def publish(task: Task[Any, Any], outbound: Outbound, call: Call) -> AsyncResult[Any]:
    """Send a call to the workers. Raise BrokerUnavailable within a few seconds if that fails.

    In Celery's eager mode it runs here, and its errors are those of the function.
    """
    pack(task, call)  # Celery's own error would name neither the argument nor the remedy
    send: Any = task.apply_async  # its types lack `connection`
    options = {
        "retry_policy": dict(ONE_TRY),
        **call.options,
        "headers": _headers(outbound, call),
    }
    if task.app.conf.task_always_eager:
        return send(call.args, call.kwargs, **options)  # type: ignore[no-any-return]
    try:
        with _bounded_connection(task.app) as connection:
            return send(call.args, call.kwargs, connection=connection, **options)  # type: ignore[no-any-return]
    except _UNREACHABLE as error:
        raise BrokerUnavailable(
            f"{task.name}: the call is not queued, since the broker does not answer:"
            f" {type(error).__name__}: {error}. Start Redis, or correct its URL, and call again."
        ) from error


def _headers(outbound: Outbound, call: Call) -> dict[str, Any]:
    return {**(call.options.get("headers") or {}), _APP: _id_of(outbound)}


@contextmanager
def _bounded_connection(celery: Celery[Any]) -> Iterator[Any]:
    """Yield a connection with time-outs if the application has set none for Redis, or else None.

    None stands for a connection of the pool. A frozen Redis would block the caller for ever.
    """
    url = broker_of(celery) or ""
    if not url.startswith(_REDIS) or "socket_timeout" in celery.conf.broker_transport_options:
        yield None
        return
    limits = transport_options(connect=1, answer=2)
    with celery.connection_for_write(transport_options=limits) as connection:
        yield connection
