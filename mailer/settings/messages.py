"""The error messages of unusable values: the place, the value, and the allowed values."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from mailer.settings.spelling import did_you_mean, near
from mailer.settings.structured import NOT_JSON, parse_json

#: Keys with a password. Relays never share them.
LOGINS = frozenset({"MAIL_PASSWORD", "MAILER_OAUTH"})
SECRETS = LOGINS | {
    "MAILER_PROXY",
    "MAILER_DATABASE_URL",
    "MAILER_REDIS_URL",
    "MAILER_DKIM_KEYS",
    "MAILER_SECRET_KEYS",
}
_KINDS = {
    "boolean": "true or false",
    "integer": "a whole number",
    "number": "a number",
    "string": "a text",
    "array": "a pair (name, address)",
    "object": "an object",
}
#: The keys that choose a relay.
_OF_RELAY = ("MAILER_RELAYS", "MAIL_SERVER", "MAIL_PORT")
#: Stands for a value that is not there.
_MISSING = object()


def allowed(model: type[BaseModel], key: str) -> str:
    """Describe the values that a key allows."""
    schema = _Schema(model.model_json_schema())
    return schema.describe(schema.locate((key,)).node)


def explain(model: type[BaseModel], error: ValidationError, given: Mapping[str, Any]) -> str:
    """Return a line for each unusable value: its place, the value, and the allowed values."""
    schema = _Schema(model.model_json_schema())
    faults = error.errors(include_url=False, include_context=False, include_input=False)
    lines = [_line(schema, fault, given) for fault in faults]
    return "\n".join(f"{line.rstrip('.')}." for line in dict.fromkeys(lines) if line)


def origins(config: Mapping[str, Any], environ: Mapping[str, str]) -> str:
    """Say which keys of the relay are set in the app's config, and which in the environment."""
    own = [key for key in _OF_RELAY if config.get(key) is not None]
    others = [key for key in _OF_RELAY if environ.get(key) and key not in own]
    places = (("app.config", own), ("the environment", others))
    said = [f"{' and '.join(keys)} in {place}" for place, keys in places if keys]
    return f"Now set: {', '.join(said)}."


def _line(schema: "_Schema", fault: ErrorDetails, given: Mapping[str, Any]) -> str:
    problem = fault["msg"].removeprefix("Value error, ")
    if not fault["loc"]:
        return problem  # of several keys, which it names
    place = schema.locate(fault["loc"])
    value = _value(place.path, given)
    match fault["type"]:
        case "value_error":
            pass
        case "extra_forbidden":  # its value may be a secret
            return f"{place}: {_unknown(str(place.path[-1]), place.node)}"
        case "missing":
            return f"{place}: missing; allowed: {schema.describe_with_examples(place.node)}"
        case _ if value is _MISSING:
            return ""  # an entry of MAILER_RELAYS inherits it: the key itself has a line
        case "too_short" if parse_json(value):
            return ""  # pydantic does not count the entries with an error
        case kind:
            allowed = f"allowed: {schema.describe_with_examples(place.node)}"
            problem = f"{problem}; {allowed}" if kind == NOT_JSON else allowed
    return f"{place}={_shown(place.path, value)}: {problem}"


def _unknown(key: str, node: Mapping[str, Any]) -> str:
    known = sorted(node["properties"])
    meant = near(key, known)
    return f"unknown key; {did_you_mean(meant) if meant else 'allowed: ' + ', '.join(known)}"


def _value(path: Sequence[str | int], given: Mapping[str, Any]) -> Any:
    value: Any = given
    for step in path:
        value = parse_json(value)
        try:
            value = value[step]
        except (LookupError, TypeError):
            return _MISSING
    return value


def _shown(path: Sequence[str | int], value: Any) -> str:
    is_entry = path[0] == "MAILER_RELAYS" and len(path) < 3  # it may contain a password
    has_login = path[-1] == "MAIL_SERVER" and "@" in str(value)
    is_hidden = is_entry or has_login or not SECRETS.isdisjoint(path)
    return "<hidden>" if is_hidden else repr(value)


@dataclass(frozen=True, slots=True)
class _Place:
    """The place of an error, and the part of the JSON schema that describes it."""

    path: tuple[str | int, ...]
    node: Mapping[str, Any]

    def __str__(self) -> str:
        key, *rest = self.path
        return f"{key}" + "".join(f"[{step!r}]" for step in rest)


@dataclass(frozen=True, slots=True)
class _Schema:
    """The JSON schema of the settings."""

    whole: Mapping[str, Any]

    def locate(self, loc: Sequence[str | int]) -> _Place:
        """Find the place of an error. Pydantic also names the members of unions that it tried."""
        node = self.whole
        path: tuple[str | int, ...] = ()
        for step in loc:
            kinds = self._kinds(node)
            if len(kinds) > 1 or step == "[key]":
                break
            [kind] = kinds
            if "discriminator" in kind:
                node = self._resolved({"$ref": kind["discriminator"]["mapping"][step]})
                continue
            path = (*path, step)
            below = _below(kind, step)
            node = kind if below is None else self._resolved(below)
        return _Place(path, node)

    def describe(self, node: Mapping[str, Any]) -> str:
        return " or ".join(map(_describe, self._kinds(node)))

    def describe_with_examples(self, node: Mapping[str, Any]) -> str:
        examples = " or ".join(node.get("examples", ()))
        such = f", in the environment as JSON, such as {examples}" if examples else ""
        return self.describe(node) + such

    def _kinds(self, node: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        kinds = map(self._resolved, node.get("anyOf", [node]))
        return [kind for kind in kinds if kind.get("type") != "null"]

    def _resolved(self, node: Mapping[str, Any]) -> Mapping[str, Any]:
        if "$ref" not in node:
            return node
        return {**self.whole["$defs"][node["$ref"].rpartition("/")[2]], **node}


def _below(kind: Mapping[str, Any], step: str | int) -> Mapping[str, Any] | None:
    """Return the schema of an item. Return None if there is no such item."""
    if isinstance(step, int) and "items" in kind:
        found = kind["items"]
    else:
        found = kind.get("properties", {}).get(step) or kind.get("additionalProperties")
    return found if isinstance(found, Mapping) else None


def _describe(kind: Mapping[str, Any]) -> str:
    if "enum" in kind:
        return ", ".join(kind["enum"])
    if "oneOf" in kind:
        return _KINDS["object"]
    if kind["type"] == "array" and "items" in kind:
        return "a list" + (" that is not empty" if kind.get("minItems") else "")
    return _KINDS[kind["type"]] + _bounds(kind)


def _bounds(kind: Mapping[str, Any]) -> str:
    minimum, above, maximum = (
        kind.get(name) for name in ("minimum", "exclusiveMinimum", "maximum")
    )
    if kind.get("minLength"):
        return " that is not empty"
    if minimum is not None:
        return (
            f" from {minimum:g} to {maximum:g}" if maximum is not None else f", {minimum:g} or more"
        )
    if above is not None:
        return f" above {above:g}" + (f", {maximum:.0f} at most" if maximum is not None else "")
    return ""
