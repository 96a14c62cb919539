"""The bodies of a mail: its text and its html."""

import re
from dataclasses import dataclass, field

from mailer.errors import TemplateError

_HAS_STYLE = re.compile(r"<style\b", re.IGNORECASE)
# The inliner is recursive: 20,000 nested tags overflow the stack and kill the process.
_MAX_TAGS = 10_000


@dataclass(frozen=True, slots=True)
class Bodies:
    """The rendered versions of a mail."""

    text: str = field(repr=False)
    html: str | None = field(repr=False)


def make_bodies(text: str | None, html: str | None) -> Bodies:
    """Inline the CSS of a mail, and make its text from the html if it has none."""
    html = None if html is None else inline_css(html)
    return Bodies(text_from_html(html or "") if text is None else text, html)


def inline_css(html: str) -> str:
    """Turn the rules of <style> into style attributes for mail clients. Media queries stay."""
    if not _HAS_STYLE.search(html) or html.count("<") > _MAX_TAGS:
        return html
    import css_inline  # noqa: PLC0415 -- 3 MB, for mail with <style>

    # load_remote_stylesheets=False: a <link> must read neither the network nor local files.
    inliner = css_inline.CSSInliner(
        load_remote_stylesheets=False, keep_style_tags=True, keep_at_rules=True
    )
    try:
        return inliner.inline(html)
    except css_inline.InlineError as error:
        raise TemplateError(
            f"the CSS of a mail could not be inlined: {error}: correct its <style> block."
        ) from error


def text_from_html(html: str) -> str:
    """Return a readable plain text, with the targets of links."""
    from inscriptis import get_text  # noqa: PLC0415 -- with lxml 8 MB, for mail without a text of its own
    from inscriptis.css_profiles import CSS_PROFILES  # noqa: PLC0415
    from inscriptis.model.config import ParserConfig  # noqa: PLC0415

    layout = ParserConfig(css=CSS_PROFILES["strict"], display_links=True, display_anchors=False)
    return str(get_text(html, layout)).strip() + "\n"
