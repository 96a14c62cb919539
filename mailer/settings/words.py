"""What a key takes, and what is wrong with a value, in words."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

#: They are one relay's own.
LOGINS = frozenset({"MAIL_PASSWORD", "MAILER_OAUTH"})
SECRETS = LOGINS | {"MAILER_PROXY", "MAILER_DATABASE_URL", "MAILER_REDIS_URL", "MAILER_DKIM_KEYS", "MAILER_SECRET_KEYS"}
_KINDS = {
    "boolean": "true or false",
    "integer": "a whole number",
    "number": "a number",
    "string": "a text",
    "array": "a pair (name, address)",
    "object": "an object",
}


def allowed(model: type[BaseModel], key: str) -> str:
    """What a key takes, in words."""
    whole = model.model_json_schema()
    schema = whole["properties"].get(key) or whole["$defs"]["RelaySettings"]["properties"][key]
    kinds = [kind for kind in schema.get("anyOf", [schema]) if kind.get("type") != "null"]
    return " or ".join(_kind(kind) for kind in kinds)


def _kind(kind: Mapping[str, Any]) -> str:
    if "enum" in kind:
        return ", ".join(kind["enum"])
    if kind["type"] == "array" and "items" in kind:
        return "a list"
    return _KINDS[kind["type"]] + _bounds(kind)


def _bounds(kind: Mapping[str, Any]) -> str:
    least, above, most = kind.get("minimum"), kind.get("exclusiveMinimum"), kind.get("maximum")
    if kind.get("minLength"):
        return " that is not empty"
    if least is not None:
        return f" from {least:g} to {most:g}" if most is not None else f", {least:g} or more"
    if above is not None:
        return f" above {above:g}" + (f", {most:.0f} at most" if most is not None else "")
    return ""


def explained(model: type[BaseModel], error: ValidationError, given: Mapping[str, Any]) -> str:
    """One line a wrong key: where it is, the value (secrets left out) and what is allowed."""
    lines = []
    for fault in error.errors(include_url=False, include_context=False, include_input=False):
        shown = f"{_place(fault['loc'])}={_value(fault['loc'], given)}: " if fault["loc"] else ""
        ours = fault["type"] == "value_error"
        what = fault["msg"].removeprefix("Value error, ") if ours else _allowed_at(model, fault["loc"])
        lines.append(shown + what)
    return "\n".join(f"{line.rstrip('.')}." for line in dict.fromkeys(lines))


def _allowed_at(model: type[BaseModel], loc: tuple[int | str, ...]) -> str:
    return f"allowed: {allowed(model, str(_keys_of(loc)[-1]))}"


def _keys_of(loc: tuple[int | str, ...]) -> list[int | str]:
    """KEY, or KEY, number and key of its entry: pydantic also tells which branch of a union it tried."""
    return list(loc[:3]) if loc[0] == "MAILER_RELAYS" else [loc[0]]


def _place(loc: tuple[int | str, ...]) -> str:
    first, *rest = _keys_of(loc)
    return f"{first}" + "".join(f"[{key!r}]" for key in rest)


def _value(loc: tuple[int | str, ...], given: Mapping[str, Any]) -> str:
    keys = _keys_of(loc)
    is_whole = keys[0] == "MAILER_RELAYS" and len(keys) < 3  # an entry as a whole may hold a password
    if is_whole or not SECRETS.isdisjoint(map(str, loc)):
        return "<hidden>"
    value: Any = given
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else value[int(key)]
    return repr(value)
