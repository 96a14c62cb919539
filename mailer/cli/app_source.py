"""The place of a Flask app, as `flask --app` names it: a module, and an app or factory in it."""

import ast
import importlib
import inspect
import re
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from flask import Flask
from flask.cli import prepare_import

from mailer.errors import ConfigurationError

#: The files and names that `flask` looks for, in its order.
_FILES = ("wsgi.py", "app.py")
_APPS = ("app", "application")
_FACTORIES = ("create_app", "make_app")


@dataclass(frozen=True, slots=True)
class AppSource:
    """An importable Flask app, or an importable factory with the arguments to call it with."""

    module: str
    name: str
    arguments: str | None  #: such as `"production"`, in quotes; None for an app
    place: str  #: the file of the module, for messages

    @property
    def expression(self) -> str:
        """Return the Python expression for the app in its module: `app` or `create_app()`."""
        return self.name if self.arguments is None else f"{self.name}({self.arguments})"

    @property
    def for_flask(self) -> str:
        """Return the value of `flask --app` and FLASK_APP."""
        called = self.expression if self.arguments else self.name
        return f"{self.module}:{called}"

    @property
    def for_gunicorn(self) -> str:
        """Return the argument of `gunicorn`."""
        return f"{self.module}:{self.expression}"


def find_source(given: str | None, worker: str) -> AppSource:
    """Find the app that `given` names as in `flask --app`, or else that in wsgi.py or app.py.

    Args:
        given: The value of `--app` or FLASK_APP.
        worker: The name of the module that is going to import the app.

    Raises:
        ConfigurationError: There is no such app, or no other module can import it.
    """
    path, name = _split(given or _default_file())
    module = _import(path, worker)
    found = module.__name__
    if not all(part.isidentifier() for part in found.split(".")):
        raise ConfigurationError(
            f"{found!r} is no name that `import` takes. Rename the file, for example to"
            f" {re.sub(r'[^a-zA-Z0-9_.]', '_', found)}.py."
        )
    name, arguments = _parse(name) if name else (_find_in(module), None)
    value = getattr(module, name, None)
    if inspect.isfunction(value):
        arguments = arguments or ""
    elif not isinstance(value, Flask):
        raise ConfigurationError(
            f"{name!r} in the module {found} is neither a Flask app nor a function that makes one."
            " Name the right one, as in: flask --app shop:create_app mail init"
        )
    return AppSource(found, name, arguments, str(getattr(module, "__file__", None) or found))


def _split(given: str) -> tuple[str, str]:
    """Split `shop:create_app` into module and name. The colon of a Windows path is no separator."""
    path, *names = re.split(r":(?![\\/])", given, maxsplit=1)
    return path, names[0] if names else ""


def _default_file() -> str:
    for file in _FILES:
        if Path(file).is_file():
            return file
    raise ConfigurationError(
        "No Flask app was found: there is neither wsgi.py nor app.py in this folder. Name the app,"
        " as in: flask --app shop:create_app mail init"
    )


def _import(path: str, worker: str) -> ModuleType:
    """Import the module as `flask` does, and make sure that a module in this folder can do so."""
    searched = {Path(place).resolve() for place in sys.path}
    name = prepare_import(path)
    folder = Path(sys.path[0]).resolve()
    if folder != Path.cwd() and folder not in searched:
        raise ConfigurationError(
            f"A {worker}.py in this folder could not import {name}, which is in {folder}. Call"
            f" `flask --app {name} mail init` in that folder, or install the project with `pip"
            " install -e .` and name the app without the path."
        )
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigurationError(
            f"{name} can't be imported: {error}. {_import_hint(error, name, worker)}"
        ) from error
    except Exception as error:
        raise ConfigurationError(
            f"{name} can't be imported: {type(error).__name__}: {error}. Correct that first: a"
            " worker imports the app as well."
        ) from error


def _import_hint(error: ImportError, name: str, worker: str) -> str:
    files = [Path(frame.filename).name for frame in traceback.extract_tb(error.__traceback__)]
    if error.name == worker or f"{worker}.py" in files:
        return (
            f"The application must not import {worker}.py, since {worker}.py imports the"
            ' application. It finds its Celery app in current_app.extensions["celery"], and'
            " defines tasks with @celery.shared_task."
        )
    if "partially initialized module" in str(error):
        return (
            "Two modules import each other. Make the objects that both need, such as Mailer() or"
            " SQLAlchemy(), in a third module, or import one of the two inside a function, such as"
            " create_app()."
        )
    if isinstance(error, ModuleNotFoundError) and error.name == name.partition(".")[0]:
        return "Call this command in the folder of the application, or correct the name in --app."
    return "Correct that first: a worker imports the app as well."


def _parse(given: str) -> tuple[str, str | None]:
    """Split `create_app("production")` into the name and the arguments. None: no call."""
    given = given.strip()
    try:
        expression = ast.parse(given, mode="eval").body
    except SyntaxError:
        expression = None
    if isinstance(expression, ast.Name):
        return expression.id, None
    if isinstance(expression, ast.Call) and isinstance(expression.func, ast.Name):
        name = expression.func.id
        return name, given.removeprefix(name).strip()[1:-1]
    raise ConfigurationError(
        f"{given!r} is neither a name nor a call: give one such as create_app or"
        ' create_app("production").'
    )


def _find_in(module: ModuleType) -> str:
    # By type(), since isinstance() takes flask.current_app for an app.
    apps = [name for name, value in vars(module).items() if issubclass(type(value), Flask)]
    factories = [name for name in _FACTORIES if inspect.isfunction(getattr(module, name, None))]
    first = [name for name in _APPS if name in apps]
    if first:
        return first[0]
    if len(apps) == 1:
        return apps[0]
    if factories and not apps:
        return factories[0]
    reason = f"has several Flask apps: {', '.join(apps)}" if apps else "has no Flask app"
    raise ConfigurationError(
        f"The module {module.__name__} {reason}. Name the one to use, as in: flask --app"
        f" {module.__name__}:create_app mail init"
    )
