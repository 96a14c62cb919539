"""Calls of background functions: their tasks, and how a call is sent to a worker."""

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import redis
from celery import Celery, Task, signals
from celery._state import get_current_task
from celery.canvas import Signature
from celery.exceptions import Retry
from celery.result import AsyncResult
from celery.utils.functional import maybe_list
from flask import Flask, current_app, has_app_context
from kombu.exceptions import OperationalError

from mailer.celery.app import ONE_TRY, app_id_of, broker_of, installed, transport_options
from mailer.celery.arguments import Call, pack
from mailer.errors import BrokerUnavailable, ConfigurationError
from mailer.outbound import Outbound

# The header of a call that names its Flask app: several may share a Celery app.
_APP = "mailer_app"
# The Flask app of a call that runs in the calling thread.
_calling_app: ContextVar[Flask | None] = ContextVar("mailer_calling_app", default=None)
# The options of a call that bring a connection of the caller's.
_CONNECTIONS = ("connection", "producer", "publisher")
_REDIS = ("redis://", "rediss://", "redis+socket://", "unix://")
_UNREACHABLE = (OperationalError, redis.RedisError, OSError)
# In a test, a function that sets no limit is retried so often: for ever would be no help.
_MOST_RETRIES = 100
# The names of the tasks that are background functions.
_names: set[str] = set()


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
    _names.add(name)


# --- the app of a call --------------------------------------------------------------------------


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
    """Return the app in which the call was made: in a worker, the newest one with the same id."""
    outbounds = installed(task.app)
    if len(outbounds) == 1:
        return outbounds[0].app
    if task.request.is_eager or task.request.called_directly:
        # The task class may have entered the context of another app.
        caller = _calling_app.get() or (current_app if has_app_context() else None)
        for outbound in outbounds:
            if outbound.app == caller:
                return outbound.app
    app_id = (task.request.headers or {}).get(_APP)
    for outbound in reversed(outbounds):
        if app_id_of(outbound) == app_id:
            return outbound.app
    raise ConfigurationError(
        f"{task.name}: {len(outbounds)} Flask apps share this Celery app, and this call is of none"
        " of them. Call the function in an app context, in a process with the same apps."
    )


@signals.before_task_publish.connect
def _name_app(sender: str, headers: dict[str, Any], **_signal: Any) -> None:
    """Name the app of a call that Celery sends without us, as those of a link or a chain.

    That is the app of the task that runs here, which has ended when its links are sent, or the
    current app.
    """
    if sender not in _names or _APP in headers:
        return
    running: Task[Any, Any] | None = get_current_task()
    app_id = running and (running.request.headers or {}).get(_APP)
    if app_id is None and has_app_context() and (state := current_app.extensions.get("mailer")):
        app_id = app_id_of(state.outbound)
    if app_id is not None:
        headers[_APP] = app_id


@contextmanager
def _called_from(app: Flask) -> Iterator[None]:
    token = _calling_app.set(app)
    try:
        yield
    finally:
        _calling_app.reset(token)


# --- a call -------------------------------------------------------------------------------------


def call_here(task: Task[Any, Any], outbound: Outbound, call: Call) -> AsyncResult[Any]:
    """Run a task at once, with arguments as on a worker. Let its errors pass."""
    args, kwargs = pack(task, call).decode()
    options = {**call.options, "headers": _headers(outbound, call.options)}
    with outbound.app.app_context(), _called_from(outbound.app):
        return _run(Signature(task, args, kwargs, options, app=task.app))


def _run(signature: Signature[Any], *given: Any) -> AsyncResult[Any]:
    """Run a task and its retries, then the tasks in its `link`, which Celery would queue."""
    links = maybe_list(signature.options.get("link")) or []
    # An error that Celery lets pass runs no task in `link_error`.
    options: dict[str, Any] = {"throw": not signature.options.get("link_error")}
    if links:
        options["link"] = []
    todo: Any = signature
    for retries in itertools.count():
        try:
            result: AsyncResult[Any] = todo.apply(given, **options)
            break
        except Retry as again:
            if (repeated := getattr(again, "sig", None)) is None:
                raise
            if retries >= _MOST_RETRIES and signature.type.max_retries is None:
                raise ConfigurationError(
                    f"{signature.task}: retried {retries} times in this test, and max_retries=None"
                    " allows any number. Let the function succeed in the test, or give it a limit:"
                    " max_retries=…"
                ) from again
            todo, given = repeated, ()
    if result.failed():
        raise result.result
    if result.successful():
        for link in links:
            _run(signature.app.signature(link), result.result)
    return result


def publish(task: Task[Any, Any], outbound: Outbound, call: Call) -> AsyncResult[Any]:
    """Send a call to the workers. Raise BrokerUnavailable within a few seconds if that fails.

    In Celery's eager mode it runs here, and its errors are those of the function.
    """
    pack(task, call)  # Celery's own error would name neither the argument nor the remedy
    send: Any = task.apply_async  # its types lack `connection`
    options = {
        "retry_policy": dict(ONE_TRY),
        **call.options,
        "headers": _headers(outbound, call.options),
    }
    if task.app.conf.task_always_eager:
        with _called_from(outbound.app):
            return send(call.args, call.kwargs, **options)  # type: ignore[no-any-return]
    try:
        with _connection(task.app, call) as connection:
            options["connection"] = connection
            return send(call.args, call.kwargs, **options)  # type: ignore[no-any-return]
    except _UNREACHABLE as error:
        raise BrokerUnavailable(
            f"{task.name}: the call is not queued, since the broker does not answer:"
            f" {type(error).__name__}: {error}. Start Redis, or correct its URL, and call again."
        ) from error


def make_signature(
    task: Task[Any, Any],
    outbound: Outbound,
    args: Sequence[Any] | None,
    kwargs: Mapping[str, Any] | None,
    options: dict[str, Any],
) -> Signature[Any]:
    """Return Celery's signature of a call that runs in this app, wherever it is sent."""
    headers = _headers(outbound, options)
    return task.signature(tuple(args or ()), dict(kwargs or {}), **{**options, "headers": headers})


def _headers(outbound: Outbound, options: Mapping[str, Any]) -> dict[str, Any]:
    return {**(options.get("headers") or {}), _APP: app_id_of(outbound)}


@contextmanager
def _connection(celery: Celery[Any], call: Call) -> Iterator[Any]:
    """Yield the caller's connection, or one with time-outs if the application has set none.

    None stands for that of the caller's producer, or for one of the pool. A frozen Redis would
    block the caller for ever.
    """
    url = broker_of(celery) or ""
    is_bounded = "socket_timeout" in celery.conf.broker_transport_options
    is_given = any(call.options.get(name) for name in _CONNECTIONS)
    if is_given or is_bounded or not url.startswith(_REDIS):
        yield call.options.get("connection")
        return
    limits = transport_options(connect=1, answer=2)
    with celery.connection_for_write(transport_options=limits) as connection:
        yield connection
