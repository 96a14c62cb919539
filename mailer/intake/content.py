"""The content of a mail of `send_email()`: a template with its variables, or text and html."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mailer.content import Bodies, Renderer, make_bodies
from mailer.errors import InvalidMail
from mailer.intake.keywords import check_keywords
from mailer.message import check_body, evaluate


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """The content of a mail, in the caller's words."""

    template: str | None = None
    text: str | None = None
    html: str | None = None
    context: Mapping[str, Any] | None = None
    #: More variables of the template, or misspelt options.
    keywords: Mapping[str, Any] = field(default_factory=dict)

    def render(self, renderer: Renderer) -> Bodies:
        """Return the versions of the mail. Raise `InvalidMail` unless the call has one content."""
        if not isinstance(self.context or {}, Mapping):
            raise InvalidMail(
                f"context: give a dict of template variables, not {type(self.context).__name__}."
            )
        if self.template is None:
            return self._literal(renderer)
        self._check_template(self.template)
        check_keywords(renderer, self.template, self.keywords)
        return renderer.render(self.template, self.variables)

    @property
    def variables(self) -> dict[str, Any]:
        """Return the variables of the template."""
        return {**(self.context or {}), **self.keywords}

    def _check_template(self, template: str) -> None:
        if not isinstance(template, str):
            raise InvalidMail(
                f"template: give the name of a template, not {type(template).__name__}. The order"
                " of the arguments is send_email(to, subject, template). A mail without a template"
                " takes text=… and html=…."
            )
        for name, given in (("text", self.text), ("html", self.html)):
            if given is not None:
                raise InvalidMail(
                    f"{name}: the mail has template {template!r} already. Give a template, or text"
                    f" and html, not both. If the template has a variable {name!r}, pass it in"
                    f" context={{{name!r}: …}}."
                )

    def _literal(self, renderer: Renderer) -> Bodies:
        check_keywords(renderer, None, self.keywords)
        text, html = evaluate(self.text), evaluate(self.html)
        if html == "":  # as a field of a form that was left empty
            html = None
        if text is None and html is None:
            raise InvalidMail(
                "The mail has no content: give the name of a template, or text=… and html=…, or"
                " one of these two."
            )
        if unused := [*self.keywords, *(self.context or {})]:
            raise InvalidMail(
                f"{unused[0]}: a mail with text or html has no template, which could use this"
                " variable. Write its value into the text, or give a template instead of text and"
                " html."
            )
        return make_bodies(
            None if text is None else check_body(text, field="text"),
            None if html is None else check_body(html, field="html"),
        )
