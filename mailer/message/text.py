"""Texts of mails: one line for a header or a command of SMTP, many for a body.

A lazy string, such as Flask-Babel's `lazy_gettext()` returns, is a text that is made when it is
needed, in the language of the request. The checks here return it as a str, made at the call.
"""

import re
from typing import Any

from mailer.errors import InvalidHeader, InvalidMail

_NOT_IN_A_LINE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_LONGEST_SHOWN = 200
# Each unit is used from twice its length on, and rounded down: "90 seconds", "4 minutes".
_UNITS = ((86400, "days"), (3600, "hours"), (60, "minutes"))
LONGEST_REPLY = 1000
_OF_TEXTS = ("__len__", "__add__", "__radd__", "__mod__")


def check_text(
    value: str, *, field: str, error: type[InvalidMail] = InvalidHeader, quoted: bool = True
) -> str:
    """Return a text for one line of a header, or for a command of SMTP.

    Content is not `quoted` in errors: it may be secret.
    """
    value = _text(value, field, error)
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
    value = _text(value, field, error)
    at = value.find("\x00")
    try:
        value.encode()  # halves of characters fail; far faster than a regular expression
    except UnicodeEncodeError as half:
        at = half.start
    if at >= 0:
        raise error(f"{field}: the character {value[at]!r} at {at} can't be in a mail: remove it.")
    return value


def evaluate(value: Any) -> Any:
    """Return the text of a lazy string, made now. Return anything else as it is.

    A lazy string is a proxy of a str, or an object whose class has len(), + on both sides and %,
    but no -. Bytes, lists and paths lack one of the former; numbers and arrays have the latter.
    """
    kind = type(value)
    if issubclass(kind, str):
        return value
    is_like_text = all(hasattr(kind, name) for name in _OF_TEXTS) and not hasattr(kind, "__sub__")
    return str(value) if is_like_text or isinstance(value, str) else value


def _text(value: Any, field: str, error: type[InvalidMail]) -> str:
    text = evaluate(value)
    if not isinstance(text, str):
        raise error(f"{field}: give a str, not {type(value).__name__}.")
    return text


def span(seconds: float) -> str:
    """Return a length of time in words, such as "10 minutes"."""
    size, unit = next(
        ((size, unit) for size, unit in _UNITS if seconds >= 2 * size), (1, "seconds")
    )
    count = max(1, int(seconds // size))
    return f"{count} {unit if count != 1 else unit[:-1]}"
