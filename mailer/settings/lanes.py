"""Lanes by their names, as settings have them."""

from typing import Annotated, Any

from pydantic import BeforeValidator, WithJsonSchema

from mailer.message import Lane


def lanes_by_name(value: Any) -> Any:
    """Return the lanes of a list of names, each once. Return any other value unchanged."""
    if not isinstance(value, (list, tuple)):
        return value
    try:
        given = {one if isinstance(one, Lane) else Lane[one.strip().upper()] for one in value}
    except (KeyError, AttributeError):
        raise ValueError("allowed: a list of 'critical', 'normal' and 'bulk'") from None
    return tuple(sorted(given))


def _listed(value: Any) -> Any:
    return lanes_by_name(value.split(",") if isinstance(value, str) else value)


#: In the environment, names with commas.
WorkerLanes = Annotated[
    tuple[Lane, ...],
    BeforeValidator(_listed),
    WithJsonSchema({"type": "array", "items": {"enum": [lane.name.lower() for lane in Lane]}}),
]
