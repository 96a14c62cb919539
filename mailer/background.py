"""Functions of the application that workers run: `@mailer.background`.

Each is an ordinary task of the application's Celery app: a call that Redis loses is lost.
"""

import functools
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar
from weakref import WeakSet

from mailer.errors import ConfigurationError, InvalidArgument
from mailer.wiring import State

if TYPE_CHECKING:
    from celery import Celery, Task
    from celery.canvas import Signature
    from celery.result import AsyncResult

# Celery wants these with a call. As attributes of a task it deprecates them.
_PER_CALL_OPTIONS = frozenset({"queue", "exchange", "routing_key"})

P = ParamSpec("P")
R = TypeVar("R")


class BackgroundFunction(Generic[P, R]):
    """A function that a worker runs, in an app context, when it is called.

    The function itself is `run`, for tests.

    >>> @mailer.background
    ... def count_words(text):
    ...     return len(text.split())
    >>> count_words.run("to be or not to be")
    6
    """

    def __init__(
        self,
        function: Callable[P, R],
        find_state: Callable[[], State],
        name: str | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        options = options or {}
        if isinstance(function, staticmethod):
            function = function.__func__
        _check_function(function, gets_task=bool(options.get("bind")))
        functools.update_wrapper(self, function)
        self.run = function
        self.name: str = name or _name_of(function)
        #: Options of the Celery task, but for those that Celery wants with each call.
        self.options: dict[str, Any] = {
            key: value for key, value in options.items() if key not in _PER_CALL_OPTIONS
        }
        self._call_options = {
            key: value for key, value in options.items() if key in _PER_CALL_OPTIONS
        }
        self._find_state = find_state
        self._signature = inspect.signature(function)
        _add(self)

    def __repr__(self) -> str:
        return f"<background function {self.name}>"

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> "AsyncResult[R]":
        """Queue a call for the workers.

        With `TESTING` the function runs at once, and raises its own errors, unless
        `MAIL_SUPPRESS_SEND` is False.

        Raises:
            InvalidArgument: An argument can't be sent to a worker.
            TypeError: The arguments do not fit the function.
            BrokerUnavailable: The broker does not answer. The call is not queued.
            ConfigurationError: The app has no Mailer, or was given another Celery app since.
        """
        return self.apply_async(args, kwargs)

    def delay(self, *args: P.args, **kwargs: P.kwargs) -> "AsyncResult[R]":
        """Queue a call for the workers, as a call of the function does, with the same errors.

        >>> @mailer.background
        ... def greet(name):
        ...     print("Hello", name)
        >>> result = greet.delay("Ada")  # at once: the app is TESTING
        Hello Ada
        """
        return self.apply_async(args, kwargs)

    def apply_async(
        self, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None, **options: Any
    ) -> "AsyncResult[R]":
        """Queue a call with options of Celery, such as `countdown=60` or `queue="slow"`.

        The errors are those of a call without options.

        >>> @mailer.background
        ... def greet(name):
        ...     print("Hello", name)
        >>> result = greet.apply_async(["Ada"], countdown=60)  # at once: the app is TESTING
        Hello Ada
        """
        from mailer.celery.arguments import Call  # noqa: PLC0415 -- loads Celery
        from mailer.celery.calls import call_here, publish  # noqa: PLC0415 -- loads Celery

        state = self._checked_state()
        bound = self._signature.bind(*([None] if self._gets_task else []), *args, **(kwargs or {}))
        options = {**self._call_options, **options}
        call = Call(tuple(args), dict(kwargs or {}), bound.arguments, options)
        dispatch = call_here if _is_test(state) else publish
        return dispatch(self._task(state), state.outbound, call)

    def s(self, *args: Any, **kwargs: Any) -> "Signature[R]":
        """Return Celery's signature of a call, for `link=`, a chain, a group or a chord.

        Celery puts the result of the task before it in front of the arguments. The call runs in the
        app in which the signature was made.

        >>> @mailer.background
        ... def fetch(number):
        ...     return f"picture {number}"
        >>> @mailer.background
        ... def show(picture, size):
        ...     print(picture, size)
        >>> result = fetch.apply_async([42], link=show.s("small"))  # at once: the app is TESTING
        picture 42 small

        Raises:
            ConfigurationError: The app has no Mailer, or was given another Celery app since.
        """
        return self.signature(args, kwargs)

    def si(self, *args: P.args, **kwargs: P.kwargs) -> "Signature[R]":
        """Return an immutable signature, with these arguments and no result of another task.

        >>> @mailer.background
        ... def greet(name):
        ...     print("Hello", name)
        >>> result = greet.apply_async(["Ada"], link=greet.si("Bob"))  # at once, as above
        Hello Ada
        Hello Bob
        """
        return self.signature(args, kwargs, immutable=True)

    def signature(
        self,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> "Signature[R]":
        """Return a signature with options of Celery, such as `countdown=60` or `immutable=True`.

        >>> @mailer.background
        ... def greet(name):
        ...     print("Hello", name)
        >>> later = greet.signature(["Bob"], immutable=True, countdown=60)
        >>> result = greet.apply_async(["Ada"], link=later)  # at once, as above
        Hello Ada
        Hello Bob
        """
        from mailer.celery.calls import make_signature  # noqa: PLC0415 -- loads Celery

        state = self._checked_state()
        options = {**self._call_options, **options}
        return make_signature(self._task(state), state.outbound, args, kwargs, options)

    def _checked_state(self) -> State:
        """Return the objects of the app of a call. Raise ConfigurationError if it has no worker."""
        state = self._find_state()
        if objection := state.celery_check.objection():
            raise ConfigurationError(f"{self.name}: the call can't be queued. {objection}")
        return state

    def _task(self, state: State) -> "Task[Any, Any]":
        """Return the task of this function in the Celery app of a Flask app."""
        if _is_test(state) or state.celery.conf.task_always_eager:
            _register_again(state.celery, self)
        return state.celery.tasks[self.name]

    @property
    def _gets_task(self) -> bool:
        return bool(self.options.get("bind"))


def _is_test(state: State) -> bool:
    """Return whether calls run at once in the calling thread."""
    return state.outbound.app.testing and state.settings.mail_suppress_send


# --- registration -------------------------------------------------------------------------------

_functions: dict[str, BackgroundFunction[..., Any]] = {}
_celery_apps: "WeakSet[Celery[Any]]" = WeakSet()
# The attribute of a Celery app with the functions that are its tasks, by name.
_REGISTERED = "mailer_functions"


def install_functions(celery: "Celery[Any]") -> None:
    """Give a Celery app the background functions of this process, and those of later modules."""
    if celery in _celery_apps:
        return
    _celery_apps.add(celery)
    celery.on_after_finalize.connect(_register_all)
    if _is_finalized(celery):
        _register_all(celery)


def _add(function: BackgroundFunction[..., Any]) -> None:
    """Register a function. One of the same name is replaced, as a definition is in Python."""
    _functions[function.name] = function
    for celery in list(_celery_apps):
        if _is_finalized(celery):
            _register(celery, function)


def _register_all(sender: "Celery[Any]", **_signal: Any) -> None:
    for function in list(_functions.values()):
        _register(sender, function)


def _register(celery: "Celery[Any]", function: BackgroundFunction[..., Any]) -> None:
    from mailer.celery.calls import add_task  # noqa: PLC0415 -- loads Celery

    add_task(celery, function.name, function.run, function.options)
    vars(celery).setdefault(_REGISTERED, {})[function.name] = function


def _register_again(celery: "Celery[Any]", function: BackgroundFunction[..., Any]) -> None:
    """Register a function that runs here, if another definition has taken its name since.

    A worker knows a name only, and runs the definition that it imported last.
    """
    celery.finalize()
    if vars(celery)[_REGISTERED].get(function.name) is not function:
        _register(celery, function)


def _is_finalized(celery: "Celery[Any]") -> bool:
    """Return whether the Celery app has its tasks already, without making it complete."""
    return bool(vars(celery)["finalized"])


# --- names --------------------------------------------------------------------------------------


def _check_function(function: object, *, gets_task: bool) -> None:
    if not callable(function):
        raise InvalidArgument(
            f"background: {function!r} is not a function. Write @mailer.background, or"
            " @mailer.background(queue=…) with options."
        )
    if hasattr(function, "apply_async"):
        raise InvalidArgument(
            f"background: {function!r} is a Celery task already. Use one of the two decorators."
        )
    if inspect.iscoroutinefunction(function):
        raise InvalidArgument(
            f"background: {function!r} is async, and workers run no event loop. Decorate a plain"
            " function that calls asyncio.run()."
        )
    if not gets_task and _is_method(function):
        raise InvalidArgument(
            f"background: {function!r} is a method, and a worker has no object to call it with."
            " Define a function outside the class, or a @staticmethod, and pass it the values that"
            " it needs."
        )


def _is_method(function: Callable[..., Any]) -> bool:
    """Return whether a function of a class wants the object or the class first."""
    owner = getattr(function, "__qualname__", "").rpartition(".")[0]
    if not owner or owner.endswith("<locals>"):
        return False
    first = next(iter(inspect.signature(function).parameters), None)
    return first in ("self", "cls")


def _name_of(function: Callable[..., Any]) -> str:
    """Return the name under which the application and its workers know a function."""
    name = getattr(function, "__qualname__", "<unnamed>").replace("<locals>.", "")
    if "<" in name:
        raise InvalidArgument(
            f"background: {function!r} has no name that a worker could find. Define it with def, or"
            " give a name: mailer.background(name=…)."
        )
    module = function.__module__
    return f"{_name_of_main() if module == '__main__' else module}.{name}"


def _name_of_main() -> str:
    """Return the name under which a worker imports the program that runs: `app` for app.py."""
    main = sys.modules["__main__"]
    if (spec := getattr(main, "__spec__", None)) is not None:
        return str(spec.name).removesuffix(".__main__")
    file = getattr(main, "__file__", None)
    return Path(file).stem if file else "__main__"
