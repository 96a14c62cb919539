"""The errors of templates: what is wrong, where, and how to correct it."""

import re
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import PurePath
from traceback import walk_tb

import jinja2
from jinja2 import Environment, TemplateNotFound, TemplateSyntaxError, UndefinedError
from werkzeug.routing import BuildError

from mailer.errors import TemplateError
from mailer.settings.spelling import near

ENDINGS = (".txt", ".html")
_OF_JINJA = jinja2.TemplateError
_OF_VALUES = (TypeError, ValueError, ArithmeticError, LookupError, AttributeError)
#: Endings that are often given to templates instead.
_OTHER_ENDING = re.compile(r"\.(html?|xhtml|hmtl|htlm|te?xt|j2|jinja2?|tpl)", re.IGNORECASE)


def no_template(environment: Environment, template: str) -> TemplateError:
    """Return the error for a template that has neither a text nor an html version."""
    text_name, html_name = f"{template}.txt", f"{template}.html"
    meant = near_misses(environment, template, ENDINGS)
    return TemplateError(
        f"template {template!r}: neither {text_name!r} nor {html_name!r} is in a template"
        f" folder{f', but {meant} is' if meant else ''}: create one of them, and give the"
        " name without its ending."
    )


def unreadable(name: str, error: TemplateSyntaxError | UnicodeError) -> TemplateError:
    """Return the error for a template that is no text, or not one of Jinja's."""
    if isinstance(error, TemplateSyntaxError):
        return TemplateError(f"template {name!r}: {error.message}{place(error)}: correct it.")
    return TemplateError(f"template {name!r} can't be read as UTF-8: {error}")


@contextmanager
def explained(where: str, hint: str) -> Iterator[None]:
    """Turn the errors of a rendering into TemplateError. `hint` says how values are passed."""
    try:
        yield
    except UndefinedError as error:
        raise TemplateError(f"{where}: {error.message}{place(error)}: {hint}") from error
    except TemplateNotFound as error:
        raise TemplateError(
            f"{where} uses {error.name!r}, which is in no template folder{place(error)}."
        ) from error
    except RecursionError as error:
        raise TemplateError(
            f"{where} has no end{place(error)}: it includes or calls itself, or a value contains"
            f" itself. It reached Python's limit of {sys.getrecursionlimit()} nested calls"
            " (sys.setrecursionlimit)."
        ) from error
    except Exception as error:
        if not _is_of_the_template(error):
            raise
        raise TemplateError(
            f"{where} could not be rendered: {type(error).__name__}: {error}{place(error)}"
        ) from error


def near_misses(environment: Environment, template: str, endings: Collection[str]) -> str:
    """Return the template files whose names are almost `template` with one of these endings."""
    try:
        names = set(environment.list_templates())
    except TypeError:  # a loader that can't list its templates
        return ""
    meant = sorted(name for name in names if _is_near_miss(name, str(template), endings, names))
    return " and ".join(map(repr, meant))


def _is_near_miss(
    name: str, template: str, endings: Collection[str], names: Collection[str]
) -> bool:
    """Return whether a file is probably meant: its ending or a letter of its name is wrong.

    A misspelt name with both versions is that of another template.
    """
    stem, dot, ending = name.rpartition(".")
    if name == template:  # given with its ending
        return True
    if name.startswith(f"{template}."):
        return dot + ending not in ENDINGS and bool(_OTHER_ENDING.fullmatch(dot + ending))
    is_here = PurePath(stem).parent == PurePath(template).parent
    others = [stem + one for one in ENDINGS if one not in endings]
    return (
        dot + ending in endings
        and is_here
        and bool(near(PurePath(stem).name, [PurePath(template).name]))
        and not any(other in names for other in others)
    )


def _is_of_the_template(error: Exception) -> bool:
    """Return whether the template or its values cause an error, and not the code that they call.

    An unavailable database, a time limit or an exception class of the application passes unchanged.
    """
    package = type(error).__module__.partition(".")[0]
    if isinstance(error, _OF_JINJA):
        return True
    if isinstance(error, _OF_VALUES):
        return not isinstance(error, OSError) and (
            package in sys.stdlib_module_names or isinstance(error, BuildError)
        )
    # Flask and Werkzeug raise RuntimeError for url_for() or `request` outside a request.
    return type(error) is RuntimeError and _raised_by(error) in ("flask", "werkzeug")


def _raised_by(error: Exception) -> str:
    """Return the package whose code raised the error."""
    frames = [frame for frame, _line in walk_tb(error.__traceback__)]
    return str(frames[-1].f_globals.get("__name__", "")).partition(".")[0] if frames else ""


def place(error: Exception) -> str:
    """Return the file and line of the template that failed, perhaps an included one."""
    if isinstance(error, TemplateSyntaxError):
        return f" ({error.name}, line {error.lineno})"
    # Jinja puts templates into the traceback; all other frames are Python.
    frames = [
        (PurePath(frame.f_code.co_filename), line) for frame, line in walk_tb(error.__traceback__)
    ]
    places = [
        f" ({path.name}, line {line})"
        for path, line in frames
        if path.suffix not in (".py", "", ".pyx")
    ]
    return places[-1] if places else ""
