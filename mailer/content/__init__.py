"""The content of mails: from templates and contexts to text and html."""

from mailer.content.bodies import Bodies, inline_css, make_bodies, text_from_html
from mailer.content.rendering import Renderer

__all__ = ["Bodies", "Renderer", "inline_css", "make_bodies", "text_from_html"]
