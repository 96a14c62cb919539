"""Rendering: from the name of a template and a context to text and html."""

from collections.abc import Collection, Mapping
from contextlib import nullcontext
from logging import Logger
from typing import Any

from flask import Flask, has_app_context
from jinja2 import (
    Environment,
    StrictUndefined,
    Template,
    TemplateNotFound,
    TemplateSyntaxError,
    meta,
    nodes,
)

from mailer.content.bodies import Bodies, make_bodies
from mailer.content.failures import explained, near_misses, no_template, unreadable
from mailer.content.snapshot_rendering import SnapshotRenderer
from mailer.content.snapshots import Snapshot, take_snapshot
from mailer.errors import TemplateError
from mailer.logs import get_logger
from mailer.message import check_body

_MAX_USED = 10_000

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
            raise no_template(self._environment, template)
        if text_template is None or html_template is None:
            self._look_for_other_half(template, ".txt" if text_template is None else ".html")
        values = dict(context)
        self._app.update_template_context(values)
        html = _rendered(html_template, values) if html_template else None
        return make_bodies(_rendered(text_template, values) if text_template else None, html)

    def take_snapshot(
        self,
        subject: str,
        template: str,
        locales: Collection[str],
        shared: Mapping[str, Any] | None,
    ) -> Snapshot:
        """Return the templates of a bulk send as they are now."""
        return take_snapshot(self._app, subject, template, locales, shared)

    def of_snapshot(self, snapshot: Snapshot) -> SnapshotRenderer:
        """Return a renderer of a snapshot, such as a worker has."""
        return SnapshotRenderer(self._app, Snapshot.from_json(snapshot.to_json()))

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
        if meant := near_misses(self._environment, template, (ending,)):
            log.warning(
                "A template has one version only: missing=%s. There is %s: rename it, if it is"
                " meant to be the other version.",
                template + ending,
                meant,
            )

    def _find(self, name: str) -> Template | None:
        try:
            return self._environment.get_template(name)
        except TemplateNotFound:
            return None
        except (TemplateSyntaxError, UnicodeError) as error:
            raise unreadable(name, error) from error

    @property
    def _environment(self) -> Environment:
        # On demand: at the first mail, the app's filters, globals and loaders are complete.
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


_HINT = (
    "correct the name there, or pass the value: a keyword, or context={…}. For one that may"
    " be missing, write |default('') after its name."
)


def _rendered(template: Template, values: dict[str, Any]) -> str:
    where = f"template {template.name!r}"
    with explained(where, _HINT):
        rendered = template.render(values)
    return check_body(rendered, field=where, error=TemplateError)
