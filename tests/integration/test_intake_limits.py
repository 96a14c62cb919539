"""A mail beyond a limit is refused at the call; each limit is a setting that the error names."""

import gc
import tracemalloc
from collections.abc import Iterator
from itertools import count
from typing import Any

import flask_mail
import pytest
from flask import Flask

from mailer import Attachment, Mailer, OverLimit, Receipt, TemplateError, send_email
from tests.services.databases import sqlite_only
from tests.shop import OpenShop, rows

mailer = Mailer()

MB = 1_000_000


def send(**changes: Any) -> Receipt:
    """Queue a mail that is valid, except for the changes."""
    mail = {
        "to": "ada@example.com",
        "subject": "Hello",
        "template": "only_text",
        "context": {"name": "Ada"},
    }
    return send_email(**{**mail, **changes})


def enqueue(**changes: Any) -> Receipt:
    """Queue a Flask-Mail message that is valid, except for the changes."""
    message = flask_mail.Message("Hello", ["ada@example.com"], "text")
    for name, value in changes.items():
        setattr(message, name, value)
    return mailer.enqueue(message)


def readers(number: int) -> list[str]:
    return [f"reader{one}@example.com" for one in range(number)]


def file(size: int, filename: str = "a.pdf") -> Attachment:
    return Attachment(filename, b"%" * size)


RECIPIENTS = "addresses, the most that MAILER_MAX_RECIPIENTS allows in one mail."
HEADER = "MAILER_MAX_HEADER allows 4000."
SIZE = "MAILER_MAX_SIZE allows 25000000."

TOO_MUCH: list[tuple[Any, dict[str, Any], str]] = [
    (send, {"to": readers(10_000)}, f"to: more than 1000 {RECIPIENTS}"),
    (send, {"cc": readers(1001)}, f"cc: more than 1000 {RECIPIENTS}"),
    (send, {"bcc": set(readers(1001))}, f"bcc: more than 1000 {RECIPIENTS}"),
    (send, {"reply_to": readers(1001)}, f"reply_to: more than 1000 {RECIPIENTS}"),
    (
        send,
        {"to": (f"reader{number}@example.com" for number in count())},
        f"to: more than 1000 {RECIPIENTS}",
    ),
    (
        send,
        {"bcc": readers(1000)},
        "to, cc, bcc: 1001 recipients, MAILER_MAX_RECIPIENTS allows 1000 in one mail.",
    ),
    (send, {"subject": "x" * MB}, f"subject: 1000000 characters, {HEADER}"),
    (send, {"sender": ("x" * MB, "ada@example.com")}, f"sender: 1000000 characters, {HEADER}"),
    (send, {"to": [("x" * MB, "ada@example.com")]}, f"to: 1000000 characters, {HEADER}"),
    (send, {"cc": [("x" * MB, "ada@example.com")]}, f"cc: 1000000 characters, {HEADER}"),
    (send, {"reply_to": ("x" * MB, "ada@example.com")}, f"reply_to: 1000000 characters, {HEADER}"),
    (
        send,
        {"headers": {"X-Campaign": "x" * MB}},
        f"headers['X-Campaign']: 1000000 characters, {HEADER}",
    ),
    (
        send,
        {"attachments": [file(1, "x" * MB)]},
        f"attachment: filename: 1000000 characters, {HEADER}",
    ),
    (
        send,
        {"attachments": [Attachment("a.pdf", b"", headers=(("X-A", "x" * MB),))]},
        f"attachment 'a.pdf': X-A: 1000000 characters, {HEADER}",
    ),
    (
        send,
        {"attachments": [file(100 * MB)]},
        f"attachment 'a.pdf': with it the mail has 100000000 bytes, {SIZE}",
    ),
    (
        send,
        {"attachments": [file(20 * MB), file(6 * MB, "b")]},
        f"attachment 'b': with it the mail has 26000000 bytes, {SIZE}",
    ),
    (send, {"attachments": [file(25 * MB)]}, f"The mail has 25000014 bytes, {SIZE}"),
    (send, {"context": {"name": "ä" * 13 * MB}}, f"The mail has 26000011 bytes, {SIZE}"),
    (enqueue, {"recipients": readers(10_000)}, f"recipients: more than 1000 {RECIPIENTS}"),
    (enqueue, {"subject": "x" * MB}, f"subject: 1000000 characters, {HEADER}"),
    (enqueue, {"html": "x" * 26 * MB}, "The mail has 2600000"),
    (enqueue, {"alts": {"calendar": "x" * 26 * MB}}, f"The mail has 26000009 bytes, {SIZE}"),
    (
        enqueue,
        {"attachments": [flask_mail.Attachment("a.csv", "text/csv", "x" * 26 * MB)]},
        f"attachment 'a.csv': with it the mail has 26000000 bytes, {SIZE}",
    ),
]


@sqlite_only
def test_too_much_for_one_mail(shop: Flask) -> None:
    """The error names the field, its size, the setting and the limit, and nothing is stored."""
    for call, changes, words in TOO_MUCH:
        with pytest.raises(OverLimit) as error:
            call(**changes)

        assert str(error.value)[: len(words)] == words
        assert len(str(error.value)) < 300
    assert rows(shop) == {}


def test_as_much_as_is_allowed(shop: Flask) -> None:
    """A mail that just reaches the limits is accepted."""
    send(to=readers(1000))
    send(subject="x" * 4000, attachments=[file(24 * MB)])

    assert rows(shop) == {
        "mailer_message": 2,
        "mailer_delivery": 1001,
        "mailer_attachment": 1,
        "mailer_blob": 1,
    }


@sqlite_only
def test_the_limits_can_be_set(open_shop: OpenShop) -> None:
    """The limits can be raised and lowered."""
    with open_shop(
        MAILER_MAX_RECIPIENTS="2000", MAILER_MAX_HEADER="5000", MAILER_MAX_SIZE="26000000"
    ).app_context():
        send(to=readers(2000), subject="x" * 5000, attachments=[file(25 * MB)])
    with open_shop(
        MAILER_MAX_RECIPIENTS="1", MAILER_MAX_HEADER="6", MAILER_MAX_SIZE="50"
    ).app_context():
        send(subject="Hello")
        for changes in (
            {"to": readers(2)},
            {"subject": "Hello, Ada"},
            {"context": {"name": "Ada" * 20}},
        ):
            with pytest.raises(OverLimit):
                send(**changes)


@sqlite_only
def test_what_is_too_large_is_not_read(shop: Flask) -> None:
    """A file that is too large is not copied, and no more files are asked for."""
    large = flask_mail.Attachment("a.csv", "text/csv", "x" * 100 * MB)
    asked: list[int] = []

    def files() -> Iterator[flask_mail.Attachment]:
        for number in count():
            asked.append(number)
            yield large

    tracemalloc.start()
    with pytest.raises(OverLimit):
        send(attachments=files())
    _now, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert asked == [0]
    assert peak < MB


@sqlite_only
def test_an_error_is_short(shop: Flask) -> None:
    """An error is short, however long the value that it shows."""
    wrong: dict[str, Any] = {
        "subject": "\n" * MB,
        "to": "x" * MB,
        "headers": {"x\n" * MB: ""},
        "tags": ["\n" * MB],
    }
    for field, value in wrong.items():
        with pytest.raises(
            ValueError, match="^subject: it contains" if field == "subject" else f"^{field}: .*…"
        ) as error:
            send(**{field: value})

        assert len(str(error.value)) < 1500
    assert rows(shop) == {}


ENDLESS = {
    "itself.txt": "{% include 'itself.txt' %}",
    "there.txt": "{% include 'back.txt' %}",
    "back.txt": "{% include 'there.txt' %}",
    "parent.txt": "{% extends 'parent.txt' %}",
    "macro.txt": "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
    "tree.txt": (
        "{% for one in tree recursive %}"
        "{{ loop(one.children) }}{{ loop(one.children) }}"
        "{% endfor %}"
    ),
    "shown.txt": "{{ shown }}",
}


class Shown:
    """A value whose repr has no end."""

    def __repr__(self) -> str:
        return repr(self)


@sqlite_only
@pytest.mark.parametrize("template", sorted({name.removesuffix(".txt") for name in ENDLESS}))
def test_no_end(shop: Flask, template: str) -> None:
    """Endless templates and values are refused, and the error names the recursion limit."""
    shop.jinja_loader.mapping.update(ENDLESS)  # type: ignore[union-attr]
    tree: dict[str, Any] = {}
    tree["children"] = [tree, tree]
    gc.collect()  # else finalizers of earlier tests' objects would find no room on the full stack

    with pytest.raises(
        TemplateError,
        match=r"^template '\w+\.txt' has no end.*: it includes or calls itself, or a value con",
    ) as error:
        send(template=template, context={"tree": [tree], "shown": Shown()})

    assert "sys.setrecursionlimit" in str(error.value)
    assert rows(shop) == {}


@sqlite_only
def test_a_value_that_contains_itself(shop: Flask) -> None:
    """A value that contains itself is accepted if Python can show it."""
    context: dict[str, Any] = {}
    context["name"] = context

    send(context=context)
