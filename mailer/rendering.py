"""Template name and context in, text and html out."""

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from traceback import walk_tb
from typing import Any

import jinja2
from flask import Flask
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

from mailer.errors import TemplateError
from mailer.message import check_body

_OF_JINJA = jinja2.TemplateError
_OF_VALUES = (TypeError, ValueError, ArithmeticError, LookupError, AttributeError)
_HAS_STYLE = re.compile(r"<style\b", re.IGNORECASE)
# The inliner walks down the document recursively: 20,000 open tags in each other overflow the stack, which ends the process.
_MOST_TAGS = 10_000
_MOST_USED = 10_000


@dataclass(frozen=True, slots=True)
class Bodies:
    """What a template pair became."""

    text: str = field(repr=False)
    html: str | None = field(repr=False)


class Renderer:
    """The app's own templates, with one difference: a variable that is missing is an error, not an empty string."""

    def __init__(self, app: Flask) -> None:
        self._app = app
        self._strict: Environment | None = None
        self._used: set[tuple[str, str]] = set()  # (template, variable) that were found

    def render(self, template: str, context: Mapping[str, Any]) -> Bodies:
        """Render `<template>.txt` and `<template>.html`; one of the two is enough."""
        text_name, html_name = f"{template}.txt", f"{template}.html"
        text_template, html_template = self._find(text_name), self._find(html_name)
        if text_template is None and html_template is None:
            raise TemplateError(
                f"template {template!r}: neither {text_name!r} nor {html_name!r} is in a template folder:"
                " create one of them, and give the name without its ending."
            )
        values = dict(context)
        self._app.update_template_context(values)
        html = inline_css(_rendered(html_template, values)) if html_template else None
        text = _rendered(text_template, values) if text_template else text_from_html(html or "")
        return Bodies(text, html)

    def may_use(self, template: str, variable: str) -> bool:
        """Return whether the pair has the variable, itself or in a template that it extends, includes or imports.

        Also if that can't be told: a name of a template that is made while it is rendered, a function or a tag that is given
        the whole context, or a source that can't be read.
        """
        pair = (template, variable)
        if pair in self._used:
            return True
        if not self._looks_used(template, variable):
            return False
        if len(self._used) >= _MOST_USED:  # any thread may do that at any moment
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
            except Exception:  # noqa: BLE001 -- rendering it says what is wrong
                return True
            seen.add(name)
            referenced = [*meta.find_referenced_templates(tree)]
            if None in referenced or _has_name(tree, variable) or _gives_context_away(tree, self._environment):
                return True
            waiting += filter(None, referenced)
        return not seen  # neither of the pair is there: rendering says so

    def _find(self, name: str) -> Template | None:
        try:
            return self._environment.get_template(name)
        except TemplateNotFound:
            return None
        except TemplateSyntaxError as error:
            raise TemplateError(f"template {name!r}: {error.message}{_place(error)}: correct it.") from error
        except UnicodeError as error:
            raise TemplateError(f"template {name!r} can't be read as UTF-8: {error}") from error

    @property
    def _environment(self) -> Environment:
        # Made at the first mail, when the app's filters, globals and loaders are complete.
        if self._strict is None:
            self._strict = self._app.jinja_env.overlay(undefined=StrictUndefined)
        return self._strict


def _parsed(environment: Environment, name: str) -> nodes.Template:
    if environment.loader is None:
        raise TemplateNotFound(name)
    source, filename, _is_fresh = environment.loader.get_source(environment, name)
    return environment.parse(source, name, filename)


def _has_name(tree: nodes.Template, variable: str) -> bool:
    return any(name.name == variable for name in tree.find_all(nodes.Name))


def _gives_context_away(tree: nodes.Template, environment: Environment) -> bool:
    """Return whether something is called that sees all variables: a function with @pass_context, but for Jinja's own."""
    if tree.find(nodes.ContextReference) or tree.find(nodes.DerivedContextReference):
        return True
    called = [environment.globals.get(call.node.name) for call in tree.find_all(nodes.Call) if isinstance(call.node, nodes.Name)]
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
        raise TemplateError(
            f"{where}: {error.message}{_place(error)}: correct the name there, or pass the value: a keyword, or context={{…}}."
        ) from error
    except TemplateNotFound as error:
        raise TemplateError(f"{where} uses {error.name!r}, which is in no template folder{_place(error)}.") from error
    except RecursionError as error:
        raise TemplateError(
            f"{where} has no end{_place(error)}: it includes or calls itself, or a value contains itself. What stopped it is the"
            f" limit of Python, {sys.getrecursionlimit()} calls in each other (sys.setrecursionlimit)."
        ) from error
    except Exception as error:
        if not _is_of_the_template(error):
            raise
        raise TemplateError(f"{where} could not be rendered: {type(error).__name__}: {error}{_place(error)}") from error
    return check_body(rendered, field=where, error=TemplateError)


def _is_of_the_template(error: Exception) -> bool:
    """Return whether the template or its values are wrong, and not something that the template only happened to call.

    A database that is away, a time limit or an exception class of the application means the same here as elsewhere.
    """
    package = type(error).__module__.partition(".")[0]
    if isinstance(error, _OF_JINJA):
        return True
    if isinstance(error, _OF_VALUES):
        return not isinstance(error, OSError) and (package in sys.stdlib_module_names or isinstance(error, BuildError))
    # url_for() outside a request, or `request` there, is a RuntimeError that Flask or Werkzeug itself raises.
    return type(error) is RuntimeError and _raised_by(error) in ("flask", "werkzeug")


def _raised_by(error: Exception) -> str:
    """Name the package whose code raised the error."""
    frames = [frame for frame, _line in walk_tb(error.__traceback__)]
    return str(frames[-1].f_globals.get("__name__", "")).partition(".")[0] if frames else ""


def _place(error: Exception) -> str:
    """The file and the line of the template: often not the one that was asked for, but one that it extends or includes."""
    if isinstance(error, TemplateSyntaxError):
        return f" ({error.name}, line {error.lineno})"
    # Jinja writes its templates into the traceback; all else in there is Python.
    frames = [(PurePath(frame.f_code.co_filename), line) for frame, line in walk_tb(error.__traceback__)]
    places = [f" ({path.name}, line {line})" for path, line in frames if path.suffix not in (".py", "", ".pyx")]
    return places[-1] if places else ""


def inline_css(html: str) -> str:
    """Rules of <style> become style attributes, which all mail clients know; media queries stay where they are."""
    if not _HAS_STYLE.search(html) or html.count("<") > _MOST_TAGS:
        return html
    import css_inline  # noqa: PLC0415 -- 3 MB, for mail with <style>

    # load_remote_stylesheets=False: a <link> in a template must read neither the network nor the files of this machine.
    inliner = css_inline.CSSInliner(load_remote_stylesheets=False, keep_style_tags=True, keep_at_rules=True)
    try:
        return inliner.inline(html)
    except css_inline.InlineError as error:
        raise TemplateError(f"the CSS of a mail could not be inlined: {error}: mend its <style> block.") from error


def text_from_html(html: str) -> str:
    """A readable plain text, with the targets of links."""
    from inscriptis import get_text  # noqa: PLC0415 -- with lxml 8 MB, for mail without a text of its own
    from inscriptis.css_profiles import CSS_PROFILES  # noqa: PLC0415
    from inscriptis.model.config import ParserConfig  # noqa: PLC0415

    layout = ParserConfig(css=CSS_PROFILES["strict"], display_links=True, display_anchors=False)
    return str(get_text(html, layout)).strip() + "\n"
