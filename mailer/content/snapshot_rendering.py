"""Rendering of snapshots: a mail for each recipient of a bulk send."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, cast

from flask import Flask, has_app_context
from jinja2 import Template, meta

from mailer.content.bodies import Bodies, make_bodies
from mailer.content.budget import LimitExceeded, Limits, spending
from mailer.content.failures import ENDINGS, explained, place
from mailer.content.sandbox import SUBJECT
from mailer.content.snapshots import (
    Snapshot,
    environment_of,
    plain_locale,
    variants_of,
)
from mailer.errors import TemplateError
from mailer.message import check_body

_HINT = (
    "correct the name there, or pass the value: in shared={…}, or for each recipient. For one that"
    " may be missing, write |default('') after its name."
)

# To make a text from html takes about 50 microseconds for each tag.
_MAX_TAGS = 20_000
# Tags times characters of CSS: each rule is compared with each tag.
_MAX_CSS = 150_000_000


@dataclass(frozen=True, slots=True)
class RenderedMail:
    """The mail of one recipient."""

    subject: str
    bodies: Bodies = field(repr=False)


class SnapshotRenderer:
    """Renders a snapshot. Its templates are compiled once: keep the renderer.

    The templates may come from anybody who can write to the database. They can't run code, and no
    mail costs more than `limits`.
    """

    def __init__(self, app: Flask, snapshot: Snapshot, limits: Limits | None = None) -> None:
        self._app = app
        self._snapshot = snapshot
        self._limits = limits or Limits()
        self._environment = environment_of(app, snapshot)
        self._variants = variants_of(snapshot)
        self._compiled: dict[str, Template] = {}

    def render(self, context: Mapping[str, Any], locale: str | None = None) -> RenderedMail:
        """Render the mail of one recipient, whose values win over the shared ones.

        Text and html come from the same locale, the most exact one that has templates: for `de_AT`
        that is `de_AT`, `de`, or none.
        """
        values = {**self._snapshot.shared, **context}
        pair = self._choose(locale)
        in_app = nullcontext() if has_app_context() else self._app.app_context()
        with in_app, self._translating(locale), spending(self._limits):
            subject = self._subject(values)
            text, html = (
                self._render(pair[ending], values) if ending in pair else None for ending in ENDINGS
            )
        if html is not None:
            _check_html(html, f"template {pair['.html']!r}", makes_text=text is None)
        return RenderedMail(subject, make_bodies(text, html))

    def _translating(self, locale: str | None) -> AbstractContextManager[None]:
        """Let Flask-Babel translate into the recipient's locale, if the app has it."""
        if not locale or "babel" not in self._app.extensions:
            return nullcontext()
        try:
            from babel import Locale, UnknownLocaleError  # noqa: PLC0415 -- the app may have it
            from flask_babel import force_locale  # noqa: PLC0415
        except ImportError:
            return nullcontext()
        for one in _more_general(locale):
            with suppress(UnknownLocaleError, ValueError):
                return cast("AbstractContextManager[None]", force_locale(str(Locale.parse(one))))
        return nullcontext()  # unknown to Babel: the app's own locale

    def _choose(self, locale: str | None) -> dict[str, str]:
        for one in [*_more_general(locale or ""), ""]:
            if one in self._variants:
                return self._variants[one]
        raise TemplateError(
            f"template {self._snapshot.template!r}: its snapshot has neither text nor html: queue"
            " the bulk send again."
        )

    def _subject(self, values: dict[str, Any]) -> str:
        subject = self._render(SUBJECT, values).strip()
        if len(subject.splitlines()) > 1:
            named = [
                f"the value of {name!r} has"
                for name in sorted(self._names_in_subject & values.keys())
                if len(str(values[name]).splitlines()) > 1
            ]
            raise TemplateError(
                f"subject: {named[0] if named else 'it has'} a line break: write it in one line."
            )
        return subject

    @cached_property
    def _names_in_subject(self) -> set[str]:
        return meta.find_undeclared_variables(self._environment.parse(self._snapshot.subject))

    def _render(self, name: str, values: dict[str, Any]) -> str:
        where = SUBJECT if name == SUBJECT else f"template {name!r}"
        template = self._template(name)
        with explained(where, _HINT):
            try:
                rendered = template.render(values)
            except LimitExceeded as error:
                raise TemplateError(
                    f"{where} needs {error}{place(error)}: {error.cure}."
                ) from error
        return check_body(rendered, field=where, error=TemplateError)

    def _template(self, name: str) -> Template:
        # Thread-safe: a template that two threads compile is the same.
        if name not in self._compiled:
            source = self._snapshot.subject if name == SUBJECT else self._snapshot.sources[name]
            code = self._environment.compile(source, name, name)
            globals_ = self._environment.make_globals(None)
            self._compiled[name] = self._environment.template_class.from_code(
                self._environment, code, globals_
            )
        return self._compiled[name]


def _check_html(html: str, where: str, *, makes_text: bool) -> None:
    """Refuse html for which the text, or the inlining of its CSS, takes seconds."""
    tags = html.count("<")
    if makes_text and tags > _MAX_TAGS:
        raise TemplateError(
            f"{where} makes {tags:,} tags: a text is made of up to {_MAX_TAGS:,}. Write a .txt"
            " template as well."
        )
    if tags * _length_of_css(html) > _MAX_CSS:
        raise TemplateError(
            f"{where}: its CSS has too many rules for {tags:,} tags: shorten its <style> block."
        )


def _length_of_css(html: str) -> int:
    html, length, end = html.lower(), 0, 0
    while (start := html.find("<style", end)) >= 0:
        end = html.find("</style", start)
        if end < 0:
            return length + len(html) - start
        length += end - start
    return length


def _more_general(locale: str) -> Iterator[str]:
    """Yield a locale and those that it falls back to: de_at, de."""
    locale = plain_locale(locale)
    while locale:
        yield locale
        locale = locale.rpartition("_")[0]
