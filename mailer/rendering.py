"""Template name and context in, text and html out."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import css_inline
from flask import Flask
from inscriptis import get_text
from inscriptis.css_profiles import CSS_PROFILES
from inscriptis.model.config import ParserConfig
from jinja2 import Environment, StrictUndefined, Template, TemplateNotFound, TemplateSyntaxError, UndefinedError

from mailer.errors import TemplateError

# load_remote_stylesheets=False: a <link> in a template must read neither the network nor the files of this machine.
_INLINER = css_inline.CSSInliner(load_remote_stylesheets=False, keep_style_tags=True, keep_at_rules=True)
_TEXT_LAYOUT = ParserConfig(css=CSS_PROFILES["strict"], display_links=True, display_anchors=False)
_HAS_STYLE = re.compile(r"<style\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Bodies:
    """What a template pair became."""

    text: str
    html: str | None


class Renderer:
    """The app's own templates, with one difference: a variable that is missing is an error, not an empty string."""

    def __init__(self, app: Flask) -> None:
        self._app = app
        self._strict: Environment | None = None

    def render(self, template: str, context: Mapping[str, Any]) -> Bodies:
        """Render `<template>.txt` and `<template>.html`; one of the two is enough."""
        text_template, html_template = self._find(f"{template}.txt"), self._find(f"{template}.html")
        if text_template is None and html_template is None:
            raise TemplateError(
                f"template {template!r}: neither '{template}.txt' nor '{template}.html' is in a template folder:"
                " create one of them, and give the name without its ending."
            )
        values = dict(context)
        self._app.update_template_context(values)
        html = inline_css(_rendered(html_template, values)) if html_template else None
        text = _rendered(text_template, values) if text_template else text_from_html(html or "")
        return Bodies(text, html)

    def _find(self, name: str) -> Template | None:
        try:
            return self._environment.get_template(name)
        except TemplateNotFound as error:
            if error.name == name:
                return None
            raise TemplateError(f"template {name!r} uses {error.name!r}, which is in no template folder.") from error
        except TemplateSyntaxError as error:
            raise TemplateError(f"template {error.name or name!r}, line {error.lineno}: {error.message}.") from error

    @property
    def _environment(self) -> Environment:
        # Made at the first mail, when the app's filters, globals and loaders are complete.
        if self._strict is None:
            self._strict = self._app.jinja_env.overlay(undefined=StrictUndefined)
        return self._strict


def _rendered(template: Template, values: dict[str, Any]) -> str:
    try:
        return template.render(values)
    except UndefinedError as error:
        raise TemplateError(f"template {template.name!r}: {error.message}: pass it as a keyword, or in context={{…}}.") from error
    except TemplateNotFound as error:
        raise TemplateError(f"template {template.name!r} uses {error.name!r}, which is in no template folder.") from error
    except Exception as error:
        raise TemplateError(f"template {template.name!r} could not be rendered: {type(error).__name__}: {error}") from error


def inline_css(html: str) -> str:
    """Rules of <style> become style attributes, which all mail clients know; media queries stay where they are."""
    if not _HAS_STYLE.search(html):
        return html
    try:
        return _INLINER.inline(html)
    except css_inline.InlineError as error:
        raise TemplateError(f"the CSS of a mail could not be inlined: {error}: mend its <style> block.") from error


def text_from_html(html: str) -> str:
    """A readable plain text, with the targets of links."""
    return str(get_text(html, _TEXT_LAYOUT)).strip() + "\n"
