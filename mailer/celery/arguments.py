"""The arguments of a background function, as a message carries them to a worker."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import flask_mail
import sqlalchemy
from celery import Task
from flask import Flask, Request
from flask.ctx import _AppCtxGlobals
from flask.sessions import SessionMixin
from kombu import serialization
from kombu.exceptions import SerializerNotInstalled
from werkzeug.local import LocalProxy

from mailer.errors import InvalidArgument

# Deeper in lists and dicts, the error names the list or dict.
_DEEPEST = 5


@dataclass(frozen=True, slots=True)
class Call:
    """A call of a background function."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    named: Mapping[str, Any]  #: the arguments by name, for errors
    options: dict[str, Any]  #: Celery's


@dataclass(frozen=True, slots=True)
class Packed:
    """The arguments of a call in the form of a message."""

    content_type: str
    encoding: str
    data: bytes | str

    def decode(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments as a worker gets them."""
        args, kwargs = serialization.loads(
            self.data, self.content_type, self.encoding, accept=[self.content_type]
        )
        return tuple(args), kwargs


def pack(task: Task[Any, Any], call: Call) -> Packed:
    """Write the arguments of a call. Raise InvalidArgument for one that a message can't carry."""
    serializer = call.options.get("serializer") or task.serializer
    given = call.args, call.kwargs
    try:
        return Packed(*serialization.dumps(given, serializer))
    except SerializerNotInstalled as error:
        raise InvalidArgument(
            f"{task.name}: there is no serializer {serializer!r}. Name one that Celery knows, such"
            " as 'json', or register it with kombu."
        ) from error
    except Exception as error:
        where, value = next(_unusable(call.named, serializer), ("its arguments", given))
        raise InvalidArgument(
            f"{task.name}: {where} can't be sent to a worker: it is of the type"
            f" {type(_unwrapped(value)).__name__}. {_remedy(where, value)}"
        ) from error


def _is_usable(value: object, serializer: str) -> bool:
    try:
        serialization.dumps(value, serializer)
    except Exception:  # noqa: BLE001 -- an object of the application may raise anything
        return False
    return True


def _unusable(
    values: Mapping[str, Any], serializer: str, depth: int = _DEEPEST
) -> Iterator[tuple[str, object]]:
    """Yield the place and the value of each object that can't be written."""
    for where, value in values.items():
        if _is_usable(value, serializer):
            continue
        parts: dict[str, Any] = {}
        if depth and type(value) is dict:
            parts = {f"{where}[{key!r}]": part for key, part in value.items()}
        elif depth and type(value) in (list, tuple):
            parts = {f"{where}[{number}]": part for number, part in enumerate(value)}
        found = list(_unusable(parts, serializer, depth - 1))
        yield from found or [(where, value)]


def _unwrapped(value: object) -> object:
    """Return the object behind a proxy such as `current_app`."""
    if type(value) is LocalProxy:
        try:
            return value._get_current_object()  # noqa: SLF001 -- it is Werkzeug's documented method
        except RuntimeError:
            return value
    return value


def _remedy(where: str, given: object) -> str:
    value = _unwrapped(given)
    if isinstance(value, Flask):
        return "Leave it out: the function runs in an app context, where current_app is this app."
    if isinstance(value, (LocalProxy, Request, SessionMixin, _AppCtxGlobals)):
        return "The request is over when the function runs: pass the values that it needs."
    if isinstance(value, flask_mail.Message):
        return "Call mailer.enqueue(message) instead: it queues the mail, and needs no task."
    from sqlalchemy.orm import InstanceState  # noqa: PLC0415 -- slow, and needed for models only

    state = sqlalchemy.inspect(value, raiseerr=False)
    if isinstance(state, InstanceState):
        name, [key, *_] = state.class_.__name__, state.mapper.primary_key
        return (
            f"Pass {where}.{state.mapper.get_property_by_column(key).key}, and load the object in"
            f" the function: db.session.get({name}, …)."
        )
    return "Pass texts, numbers, dates, and lists and dicts of them."
