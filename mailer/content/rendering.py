"""Rendering: from the name of a template and a context to text and html."""

import re
import sys
from collections.abc import Collection, Iterable, Mapping
from contextlib import nullcontext
from logging import Logger
from pathlib import PurePath
from traceback import walk_tb
from typing import Any

import jinja2
from flask import Flask, has_app_context
from jinja2 import (
    Environment,
    StrictUndefined,
    Template,
    TemplateNotFound,
    TemplateSyntaxError,
    UndefinedError,
    meta,
    nodes,
)
from werkzeug.routing import BuildError

from mailer.content.bodies import Bodies, make_bodies
from mailer.errors import TemplateError
from mailer.logs import get_logger
from mailer.message import check_body
from mailer.settings.spelling import near

_OF_JINJA = jinja2.TemplateError
_OF_VALUES = (TypeError, ValueError, ArithmeticError, LookupError, AttributeError)
_MAX_USED = 10_000
_ENDINGS = (".txt", ".html")
#: Endings that are often given to templates instead.
_OTHER_ENDING = re.compile(r"\.(html?|xhtml|hmtl|htlm|te?xt|j2|jinja2?|tpl)", re.IGNORECASE)

log: Logger = get_logger(__name__)


class Renderer:
    """Renders the app's templates. A missing variable is an error instead of an empty string."""

    def __init__(self, app: Flask) -> None:
        self._app = app
        self._strict: Environment | None = None
        self._used: set[tuple[str, str]] = set()  # cache of `may_use`: (template, variable)
        self._halves: set[str] = set()  # templates with one version, which was looked into

    def render(self, template: str, context: Mapping[str, Any]) -> Bodies:
        """Render `<template>.txt` and `<template>.html`; one of the two is enough."""
        # Outside a context, `Mailer(app)` knows its app, and filters may ask for the current one.
        with nullcontext() if has_app_context() else self._app.app_context():
            return self._render(template, context)

    def _render(self, template: str, context: Mapping[str, Any]) -> Bodies:
        text_name, html_name = f"{template}.txt", f"{template}.html"
        text_template, html_template = self._find(text_name), self._find(html_name)
        if text_template is None and html_template is None:
            meant = _listed(self._near_misses(template, _ENDINGS))
            raise TemplateError(
                f"template {template!r}: neither {text_name!r} nor {html_name!r} is in a template"
                f" folder{f', but {meant} is' if meant else ''}: create one of them, and give the"
                " name without its ending."
            )
        if text_template is None or html_template is None:
            self._look_for_other_half(template, ".txt" if text_template is None else ".html")
        values = dict(context)
        self._app.update_template_context(values)
        html = _rendered(html_template, values) if html_template else None
        return make_bodies(_rendered(text_template, values) if text_template else None, html)

    def may_use(self, template: str, variable: str) -> bool:
        """Return whether the templates may use a variable, also in those that they refer to.

        Return True if that is unknown: with a computed template name, a function or a tag that gets
        the whole context, or an unreadable source.
        """
        pair = (template, variable)
        if pair in self._used:
            return True
        if not self._looks_used(template, variable):
            return False
        if len(self._used) >= _MAX_USED:  # thread-safe: a lost entry is looked up again
            self._used.clear()
        self._used.add(pair)
        return True

    def _looks_used(self, template: str, variable: str) -> bool:
        waiting = [f"{template}.txt", f"{template}.html"]
        seen: set[str] = set()
        while waiting:
            if (name := waiting.pop()) in seen:
                continue
            try:
                tree = _parsed(self._environment, name)
            except TemplateNotFound:
                continue
            except Exception:  # noqa: BLE001 -- rendering raises it, too
                return True
            seen.add(name)
            referenced = [*meta.find_referenced_templates(tree)]
            if (
                None in referenced
                or _has_name(tree, variable)
                or _passes_context(tree, self._environment)
            ):
                return True
            waiting += filter(None, referenced)
        return not seen  # without any template, rendering raises

    def _look_for_other_half(self, template: str, ending: str) -> None:
        """Warn once if the missing version of a template is there, under almost its name."""
        if template in self._halves:
            return
        self._halves.add(template)
        if meant := _listed(self._near_misses(template, (ending,))):
            log.warning(
                "A template has one version only: missing=%s. There is %s: rename it, if it is"
                " meant to be the other version.",
                template + ending,
                meant,
            )

    def _near_misses(self, template: str, endings: Collection[str]) -> list[str]:
        """Return the template files whose names are almost `template` with one of these endings."""
        try:
            names = set(self._environment.list_templates())
        except TypeError:  # a loader that can't list its templates
            return []
        return sorted(name for name in names if _is_near_miss(name, str(template), endings, names))

    def _find(self, name: str) -> Template | None:
        try:
            return self._environment.get_template(name)
        except TemplateNotFound:
            return None
        except TemplateSyntaxError as error:
            raise TemplateError(
                f"template {name!r}: {error.message}{_place(error)}: correct it."
            ) from error
        except UnicodeError as error:
            raise TemplateError(f"template {name!r} can't be read as UTF-8: {error}") from error

    @property
    def _environment(self) -> Environment:
        # On demand: at the first mail, the app's filters, globals and loaders are complete.
        if self._strict is None:
            self._strict = self._app.jinja_env.overlay(undefined=StrictUndefined)
        return self._strict


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
        return dot + ending not in _ENDINGS and bool(_OTHER_ENDING.fullmatch(dot + ending))
    is_here = PurePath(stem).parent == PurePath(template).parent
    others = [stem + one for one in _ENDINGS if one not in endings]
    return (
        dot + ending in endings
        and is_here
        and bool(near(PurePath(stem).name, [PurePath(template).name]))
        and not any(other in names for other in others)
    )


def _listed(names: Iterable[str]) -> str:
    return " and ".join(map(repr, names))


def _parsed(environment: Environment, name: str) -> nodes.Template:
    if environment.loader is None:
        raise TemplateNotFound(name)
    source, filename, _is_fresh = environment.loader.get_source(environment, name)
    return environment.parse(source, name, filename)


def _has_name(tree: nodes.Template, variable: str) -> bool:
    return any(name.name == variable for name in tree.find_all(nodes.Name))


def _passes_context(tree: nodes.Template, environment: Environment) -> bool:
    """Return whether a call gets all variables: a function with @pass_context, but Jinja's own."""
    if tree.find(nodes.ContextReference) or tree.find(nodes.DerivedContextReference):
        return True
    called = [
        environment.globals.get(call.node.name)
        for call in tree.find_all(nodes.Call)
        if isinstance(call.node, nodes.Name)
    ]
    called += [environment.filters.get(one.name) for one in tree.find_all(nodes.Filter)]
    called += [environment.tests.get(one.name) for one in tree.find_all(nodes.Test)]
    return any(_takes_context(function) for function in called)


def _takes_context(function: object) -> bool:
    passed = getattr(getattr(function, "jinja_pass_arg", None), "name", "")
    return passed == "context" and not str(getattr(function, "__module__", "")).startswith("jinja2")


def _rendered(template: Template, values: dict[str, Any]) -> str:
    where = f"template {template.name!r}"
    try:
        rendered = template.render(values)
    except UndefinedError as error:
        hint = (
            "correct the name there, or pass the value: a keyword, or context={…}. For one that may"
            " be missing, write |default('') after its name."
        )
        raise TemplateError(f"{where}: {error.message}{_place(error)}: {hint}") from error
    except TemplateNotFound as error:
        raise TemplateError(
            f"{where} uses {error.name!r}, which is in no template folder{_place(error)}."
        ) from error
    except RecursionError as error:
        raise TemplateError(
            f"{where} has no end{_place(error)}: it includes or calls itself, or a value contains"
            f" itself. It reached Python's limit of {sys.getrecursionlimit()} nested calls"
            " (sys.setrecursionlimit)."
        ) from error
    except Exception as error:
        if not _is_of_the_template(error):
            raise
        raise TemplateError(
            f"{where} could not be rendered: {type(error).__name__}: {error}{_place(error)}"
        ) from error
    return check_body(rendered, field=where, error=TemplateError)


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


def _place(error: Exception) -> str:
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
