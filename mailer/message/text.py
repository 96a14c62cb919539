"""Texts of mails: one line for a header or a command of SMTP, many for a body."""

import re
from collections.abc import Mapping

from mailer.errors import InvalidHeader, InvalidMail

_NOT_IN_A_LINE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_LONGEST_SHOWN = 200
LONGEST_REPLY = 1000
HEADER_NAME = re.compile(r"[A-Za-z0-9-]{1,64}")
_OURS = frozenset(
    (
        "from sender to cc bcc reply-to subject date message-id mime-version return-path received"
        " dkim-signature"
    ).split()
)


def check_text(
    value: str, *, field: str, error: type[InvalidMail] = InvalidHeader, quoted: bool = True
) -> str:
    """Return a text for one line of a header, or for a command of SMTP.

    Content is not `quoted` in errors: it may be secret.
    """
    _check_is_text(value, field, error)
    if found := _NOT_IN_A_LINE.search(value):
        words = shown(value) if quoted else "it"
        raise error(
            f"{field}: {words} contains {found[0]!r}: remove line breaks and other control"
            " characters."
        )
    return value


def shown(value: object) -> str:
    """Return a text shortened for an error."""
    return (
        repr(value)
        if not isinstance(value, str) or len(value) <= _LONGEST_SHOWN
        else f"{value[:_LONGEST_SHOWN]!r}…"
    )


def printable(text: str) -> str:
    """Return a text of others, such as the reply of a relay, as one line that no terminal obeys."""
    text = text.strip()
    if len(text) > LONGEST_REPLY or not text.isprintable() or "  " in text:
        text = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    return text[:LONGEST_REPLY]


def check_body(value: str, *, field: str, error: type[InvalidMail] = InvalidMail) -> str:
    """Return a text of many lines."""
    _check_is_text(value, field, error)
    at = value.find("\x00")
    try:
        value.encode()  # halves of characters fail; far faster than a regular expression
    except UnicodeEncodeError as half:
        at = half.start
    if at >= 0:
        raise error(f"{field}: the character {value[at]!r} at {at} can't be in a mail: remove it.")
    return value


def _check_is_text(value: object, field: str, error: type[InvalidMail]) -> None:
    if not isinstance(value, str):
        raise error(f"{field}: give a str, not {type(value).__name__}.")


def check_headers(headers: Mapping[str, str] | None) -> tuple[tuple[str, str], ...]:
    """Return the pairs of a dict of headers. Refuse headers that Mailer writes itself."""
    if not isinstance(headers or {}, Mapping):
        raise InvalidHeader(
            f"headers: {headers!r}: give a dict, such as {{'List-Id': 'news.example.com'}}."
        )
    return tuple(_check_header(name, value) for name, value in (headers or {}).items())


def _check_header(name: str, value: str) -> tuple[str, str]:
    if not isinstance(name, str) or not HEADER_NAME.fullmatch(name):
        raise InvalidHeader(
            f"headers: {shown(name)} is no header name: use letters, digits and hyphens, 64 at"
            " most."
        )
    if name.lower() in _OURS or name.lower().startswith(("content-", "resent-")):
        raise InvalidHeader(
            f"headers: {name!r} is written by Mailer: use the argument of that name, if there is"
            " one."
        )
    return name, check_text(value, field=f"headers[{name!r}]", quoted=False)
