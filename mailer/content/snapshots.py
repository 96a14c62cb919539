"""Snapshots of templates: all that a bulk send needs to render its mails later, on a worker."""

import hashlib
import json
import math
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

from flask import Flask, has_app_context
from jinja2 import (
    Environment,
    FunctionLoader,
    TemplateNotFound,
    meta,
    nodes,
)

from mailer.content.failures import ENDINGS, no_template, unreadable
from mailer.content.sandbox import (
    FORBIDDEN_GLOBALS,
    SUBJECT,
    SandboxedTemplates,
    called,
    parsed,
)
from mailer.errors import TemplateError

#: The most characters of a snapshot.
MAX_SNAPSHOT = 5_000_000
_LOCALE = r"[a-z]{2,3}(?:[-_][a-z0-9]{2,8}){0,3}"
_SCALARS = (str, bool, type(None))
# Python refuses to write and read integers of more than 4300 digits.
_LONGEST_INT = 14_000  # in bits
# Workers read a context deep in their stack, where Python allows fewer levels than at the call.
_DEEPEST = 100
_REFERENCES = (nodes.Extends, nodes.Include, nodes.Import, nodes.FromImport)
_FIELDS = {"subject", "template", "sources", "shared", "locales"}


@dataclass(frozen=True)
class Snapshot:
    """The templates of a bulk send as they were at the call, with its shared context.

    Filters, tests and global functions of the application are code: a snapshot refers to them by
    name, and the worker calls what has that name there. `locales` are those with templates of
    their own.
    """

    subject: str
    template: str
    sources: dict[str, str] = field(repr=False)
    shared: dict[str, Any] = field(repr=False)
    locales: tuple[str, ...] = ()

    def to_json(self) -> str:
        """Return the snapshot as JSON: the same text for the same content."""
        return json.dumps(
            asdict(self), allow_nan=False, ensure_ascii=False, separators=(",", ":"), sort_keys=True
        )

    @classmethod
    def from_json(cls, text: str) -> "Snapshot":
        """Return the snapshot that `to_json` wrote."""
        try:
            return _read_snapshot(text)
        except (ValueError, RecursionError) as error:
            raise TemplateError(
                f"a snapshot of templates can't be read: {error}: queue the bulk send again."
            ) from error

    @cached_property
    def digest(self) -> str:
        """The SHA-256 of the JSON, in hexadecimal digits."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()


def take_snapshot(
    app: Flask,
    subject: str,
    template: str,
    locales: Collection[str] = (),
    shared: Mapping[str, Any] | None = None,
) -> Snapshot:
    """Return the templates of a bulk send, with all that they include, extend and import.

    Args:
        app: The application. Its context processors run now, and what the templates use of their
            values is kept.
        subject: The subject. It is a template as well.
        template: The name of the templates without `.txt` or `.html`.
        locales: The locales to look for, such as `de_AT` for `<template>.de_AT.html`. Those that
            the app's loader lists are found without.
        shared: What all recipients have in common. It has to be JSON.

    Raises:
        TemplateError: A template is missing, has an error, or needs what a snapshot can't hold.
    """
    with nullcontext() if has_app_context() else app.app_context():
        environment = app.jinja_env
        variants = _find_variants(environment, template, locales)
        sources: dict[str, str] = {}
        for name in _pair(template):
            _collect(environment, name, sources)
        if not sources:
            raise no_template(environment, template)
        for name in variants:
            _collect(environment, name, sources)
        _collect_references(environment, parsed(environment, SUBJECT, subject), SUBJECT, sources)
        found = {_variant_locale(template, name) for name in variants if name in sources}
        snapshot = Snapshot(
            subject=subject,
            template=template,
            sources=sources,
            shared={},
            locales=tuple(sorted(filter(None, found))),
        )
        _refuse_doubles(snapshot)
        sandbox = environment_of(app, snapshot)
        for part, source in _parts(snapshot):
            sandbox.compile(source, part, part)
        snapshot.shared.update(_shared_context(app, sandbox, snapshot, dict(shared or {})))
        if len(snapshot.to_json()) > MAX_SNAPSHOT:
            raise TemplateError(
                f"template {template!r}: with all that it includes and the shared context it has"
                f" more than {MAX_SNAPSHOT:,} characters: make it smaller."
            )
        return snapshot


def used_names(app: Flask, snapshot: Snapshot) -> set[str]:
    """Return the variables that a snapshot's templates and subject use."""
    sandbox = environment_of(app, snapshot)
    return {
        name
        for part, source in _parts(snapshot)
        for name in meta.find_undeclared_variables(parsed(sandbox, part, source))
    }


def check_json(value: Any, name: str, *, levels: int = _DEEPEST) -> None:
    """Refuse a value of a context that JSON would change. `name` is its place in the error."""
    kind = type(value)
    if _is_scalar(kind, value):
        return
    if kind not in (dict, list, tuple):
        shown = f"{value!r}" if kind is float else "too long" if kind is int else kind.__name__
        raise TemplateError(
            f"{name} is not JSON, but {shown}: pass a str, number, bool, None, list or dict. Format"
            " it before, or with a filter of your app."
        )
    if not levels:
        raise TemplateError(
            f"{name[:100]}… is nested too deeply: {_DEEPEST} levels are allowed. Pass a"
            " flatter value."
        )
    for key, one in value.items() if kind is dict else enumerate(value):
        if kind is dict and type(key) is not str:
            raise TemplateError(
                f"{name}: the key {key!r} is not a str, as it has to be in JSON: make it one."
            )
        if not _is_scalar(type(one), one):  # to name each scalar would take longer than to check it
            check_json(one, f"{name}[{key!r}]", levels=levels - 1)


def _is_scalar(kind: type, value: Any) -> bool:
    return (
        kind in _SCALARS
        or (kind is int and value.bit_length() <= _LONGEST_INT)
        or (kind is float and math.isfinite(value))
    )


def environment_of(app: Flask, snapshot: Snapshot) -> SandboxedTemplates:
    """Return the environment in which a snapshot is rendered."""

    def load(name: str) -> tuple[str, str, None] | None:
        source = snapshot.sources.get(name)
        # With a file name: Jinja puts it into the traceback of errors.
        return None if source is None else (source, name, None)

    return SandboxedTemplates(app, FunctionLoader(load))


def variants_of(snapshot: Snapshot) -> dict[str, dict[str, str]]:
    """Return the names of the templates: of each locale ("" is any), of each ending."""
    variants: dict[str, dict[str, str]] = {}
    for name in sorted(snapshot.sources):
        for ending in ENDINGS:
            if name == snapshot.template + ending:
                variants.setdefault("", {})[ending] = name
        locale = _variant_locale(snapshot.template, name)
        if locale in snapshot.locales:
            variants.setdefault(plain_locale(locale), {})[name[name.rindex(".") :]] = name
    return variants


def plain_locale(locale: str) -> str:
    """Return one spelling of a locale: de_at for de-AT."""
    return locale.replace("-", "_").lower()


# --- collecting -----------------------------------------------------------------------------------


def _pair(template: str) -> list[str]:
    return [template + ending for ending in ENDINGS]


def _find_variants(environment: Environment, template: str, locales: Collection[str]) -> list[str]:
    """Return the names that localised templates may have."""
    try:
        listed = [name for name in environment.list_templates() if _variant_locale(template, name)]
    except TypeError:  # a loader that can't list its templates
        listed = []
    given = [
        f"{template}.{spelling}{ending}"
        for locale in locales
        for spelling in dict.fromkeys((locale, locale.replace("-", "_"), locale.replace("_", "-")))
        for ending in ENDINGS
    ]
    return list(dict.fromkeys([*listed, *given]))


def _variant_locale(template: str, name: str) -> str:
    """Return the locale of `<template>.<locale>.txt` or `.html`, or "" for any other name."""
    pattern = rf"{re.escape(template)}\.({_LOCALE})\.(?:txt|html)"
    match = re.fullmatch(pattern, name, re.IGNORECASE)
    return match[1] if match and name.startswith(template) else ""


def _refuse_doubles(snapshot: Snapshot) -> None:
    seen: dict[tuple[str, str], str] = {}
    for name in sorted(snapshot.sources):
        if locale := _variant_locale(snapshot.template, name):
            other = seen.setdefault((plain_locale(locale), name[name.rindex(".") :]), name)
            if other != name:
                raise TemplateError(
                    f"template {snapshot.template!r}: {other!r} and {name!r} are for the same"
                    " locale: remove one of them."
                )


def _collect(environment: Environment, name: str, sources: dict[str, str]) -> bool:
    """Add a template and those it refers to. Return whether there is one of that name."""
    if name in sources:
        return True
    try:
        if environment.loader is None:
            return False
        source, _filename, _is_fresh = environment.loader.get_source(environment, name)
    except TemplateNotFound:
        return False
    except UnicodeError as error:
        raise unreadable(name, error) from error
    sources[name] = source
    _collect_references(environment, parsed(environment, name, source), name, sources)
    return True


def _collect_references(
    environment: Environment, tree: nodes.Template, name: str, sources: dict[str, str]
) -> None:
    for node in tree.find_all(_REFERENCES):
        names = _constant_names(node.template)  # type: ignore[attr-defined]
        where = f"{called(name)}, line {node.lineno}"
        if names is None:
            raise TemplateError(
                f"{where}: the name of a template is computed, so that a bulk send can't keep that"
                " template for later: write the name itself, or choose with {% if %}."
            )
        found = [_collect(environment, one, sources) for one in names]
        if not any(found) and not getattr(node, "ignore_missing", False):
            raise TemplateError(
                f"{where}: {' and '.join(map(repr, names)) or 'nothing'} is in no template folder:"
                " create it, correct the name, or write 'ignore missing' after an include."
            )


def _constant_names(template: nodes.Expr) -> list[str] | None:
    """Return the names that a tag refers to, or None if they are known only when it runs."""
    items = template.items if isinstance(template, nodes.Tuple | nodes.List) else [template]
    names: list[str] = []
    for item in items:
        value = item.value if isinstance(item, nodes.Const) else None
        if isinstance(value, str):
            names.append(value)
        elif isinstance(value, list | tuple) and all(isinstance(one, str) for one in value):
            names += value
        else:
            return None
    return names


def _parts(snapshot: Snapshot) -> Iterator[tuple[str, str]]:
    yield SUBJECT, snapshot.subject
    yield from snapshot.sources.items()


# --- the shared context ---------------------------------------------------------------------------


def _shared_context(
    app: Flask, sandbox: SandboxedTemplates, snapshot: Snapshot, shared: dict[str, Any]
) -> dict[str, Any]:
    """Return the shared context with what the templates use of the app's values."""
    check_json(shared, "shared")
    offered = {
        name: value for name, value in app.jinja_env.globals.items() if name not in sandbox.globals
    }
    processed = dict(shared)
    app.update_template_context(processed)
    offered |= processed
    trees = {part: parsed(sandbox, part, source) for part, source in _parts(snapshot)}
    assigned = {name for tree in trees.values() for name in _assigned(tree)}
    for part, tree in trees.items():
        undeclared = meta.find_undeclared_variables(tree) - shared.keys()
        for name in sorted(undeclared):
            where = f"{called(part)}, line {_line_of(tree, name)}"
            if name in FORBIDDEN_GLOBALS and name not in assigned:
                raise TemplateError(
                    f"{where}: {name!r} is not there in a bulk send, which is rendered without a"
                    " request and must show no secrets: pass what the template needs as a value of"
                    " another name, in shared={…} or for each recipient."
                )
            if name in offered:
                check_json(offered[name], f"{where}: {name!r} of your app")
                shared[name] = offered[name]
            elif _is_called(tree, name) and name not in assigned:
                raise TemplateError(
                    f"{where}: {name}() is no global function of your app: correct its name, or"
                    " register it with app.template_global()."
                )
    json_again: dict[str, Any] = json.loads(json.dumps(shared))  # tuples become lists
    return json_again


def _assigned(tree: nodes.Template) -> Iterator[str]:
    """Return the names that a template gives to values and macros: others may use them."""
    for name in tree.find_all(nodes.Name):
        if name.ctx != "load":
            yield name.name
    for macro in tree.find_all(nodes.Macro):
        yield macro.name
    for imported in tree.find_all(nodes.Import):
        yield imported.target
    for node in tree.find_all(nodes.FromImport):
        for one in node.names:
            yield one if isinstance(one, str) else one[1]


def _line_of(tree: nodes.Template, name: str) -> int:
    return next((node.lineno for node in tree.find_all(nodes.Name) if node.name == name), 1)


def _is_called(tree: nodes.Template, name: str) -> bool:
    functions = (call.node for call in tree.find_all(nodes.Call))
    return any(isinstance(node, nodes.Name) and node.name == name for node in functions)


def _read_snapshot(text: str) -> Snapshot:
    if len(text) > MAX_SNAPSHOT:
        raise ValueError(f"it has more than {MAX_SNAPSHOT:,} characters")
    values = json.loads(text)
    if not isinstance(values, dict) or values.keys() != _FIELDS:
        raise ValueError(f"it has to have the fields {', '.join(sorted(_FIELDS))}")
    texts = [values["subject"], values["template"]]
    if isinstance(values["sources"], dict) and isinstance(values["locales"], list):
        texts += [*values["sources"].values(), *values["locales"]]
    else:
        texts.append(None)
    if not isinstance(values["shared"], dict) or not all(isinstance(one, str) for one in texts):
        raise ValueError("a field has the wrong type")
    return Snapshot(**{**values, "locales": tuple(values["locales"])})
