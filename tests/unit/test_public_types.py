"""The files of `tests/typing`, which mypy and pyright check, have every public call."""

import ast
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import flask_mail
import pytest

import mailer
import mailer.logging
import mailer.testing
from mailer import Mail, Mailer, signals
from mailer.background import BackgroundFunction
from mailer.message import Attempt
from mailer.schema import foreign
from mailer.web import inbox

FILES = sorted((Path(__file__).parents[1] / "typing").glob("*.py"))
TREES = [ast.parse(file.read_text(encoding="utf-8")) for file in FILES]

#: The public names that an application imports.
NAMES = {
    *mailer.__all__,
    *signals.__all__,
    *mailer.logging.__all__,
    *mailer.testing.__all__,
    *(foreign.include_object.__name__, foreign.include_name.__name__),
    *(inbox.make_inbox_blueprint.__name__, inbox.create_inbox_app.__name__),
}
#: The variables of the files that are objects of public classes with attributes.
OBJECTS = {
    "address": mailer.Address,
    "attachment": mailer.Attachment,
    "attempt": Attempt,
    "progress": mailer.BulkProgress,
    "reader": mailer.BulkRecipient,
    "rehearsal": mailer.Rehearsal,
    "sample": mailer.BulkSample,
    "wrong": mailer.BulkError,
    "delivery": mailer.DeliveryStatus,
    "event": signals.Event,
    "receipt": mailer.Receipt,
    "status": mailer.MailStatus,
}
#: Attributes whose own types are not public.
NOT_ASSERTED = {"attempt.verdict", "attempt.phase", "delivery.history"}
#: The variables that are objects with methods.
DOORS = {
    "queue": Mailer,
    "mail": Mail,
    "later": Mail,
    "resize": BackgroundFunction,
    "bulk": mailer.Bulk,
}


def nodes(kind: type[Any]) -> Iterator[Any]:
    return (node for tree in TREES for node in ast.walk(tree) if isinstance(node, kind))


USED = {node.id for node in nodes(ast.Name)} | {node.attr for node in nodes(ast.Attribute)}
#: The expressions whose types are asserted.
ASSERTED = {
    ast.unparse(call.args[0]): call.args[0]
    for call in nodes(ast.Call)
    if ast.unparse(call.func) == "assert_type"
}


def methods() -> list[tuple[type, str]]:
    """Return the public methods of the objects that an application calls."""
    return [
        (kind, name)
        for kind in (Mailer, Mail, BackgroundFunction, mailer.Bulk)
        for name, _ in inspect.getmembers(kind, inspect.isfunction)
        if not name.startswith("_") and name != flask_mail.Mail.init_mail.__name__
    ]


def calls(kind: type, method: str) -> list[ast.Call]:
    """Return the calls of a method in the files."""
    names = {f"{name}.{method}" for name, door in DOORS.items() if door is kind}
    return [call for call in nodes(ast.Call) if ast.unparse(call.func) in names]


@pytest.mark.parametrize("name", sorted(NAMES))
def test_a_public_name(name: str) -> None:
    """Each public name is used, not only imported."""
    assert name in USED


@pytest.mark.parametrize(
    ("kind", "method"), methods(), ids=lambda one: getattr(one, "__name__", one)
)
def test_a_public_method(kind: type, method: str) -> None:
    """Each public method is called, and the type of its result is asserted."""
    signature = inspect.signature(getattr(kind, method))
    assigned = {
        ast.unparse(node.value)
        for node in nodes(ast.Assign)
        if ast.unparse(node.targets[0]) in ASSERTED
    } | {ast.unparse(node.value) for node in nodes(ast.AnnAssign)}
    entered = {ast.unparse(item.context_expr) for node in nodes(ast.With) for item in node.items}
    found = {ast.unparse(call) for call in calls(kind, method)}

    assert found
    if signature.return_annotation not in {None, "None"}:
        assert found & (ASSERTED.keys() | assigned | entered)


@pytest.mark.parametrize(
    ("kind", "method"), methods(), ids=lambda one: getattr(one, "__name__", one)
)
def test_a_public_option(kind: type, method: str) -> None:
    """Each option of a method is given in one call."""
    given = {keyword.arg for call in calls(kind, method) for keyword in call.keywords}
    options = {
        name
        for name, one in inspect.signature(getattr(kind, method)).parameters.items()
        if one.kind is one.KEYWORD_ONLY
    }

    assert options <= given


@pytest.mark.parametrize("name", OBJECTS)
def test_a_public_attribute(name: str) -> None:
    """The type of each attribute of a result is asserted."""
    kind = OBJECTS[name]
    public = {
        *inspect.get_annotations(kind),
        *(one for one, value in vars(kind).items() if isinstance(value, property)),
    }

    assert {f"{name}.{one}" for one in public} - NOT_ASSERTED <= ASSERTED.keys()
