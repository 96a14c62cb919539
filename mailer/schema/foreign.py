"""Hooks for the migrations of an application whose database has our tables in it.

Alembic drops what the application's models do not know. With these hooks it leaves our tables alone:

    Migrate(app, db, include_object=include_object)       # Flask-Migrate
    context.configure(…, include_object=include_object)   # env.py of Alembic

They call no other hook. Where an application has one of its own, it calls both:
`lambda *args: include_object(*args) and own_hook(*args)`.
"""

from collections.abc import Mapping
from typing import Any

PREFIX = "mailer_"


def include_object(_object: Any, name: str | None, type_: str, reflected: bool, compare_to: Any) -> bool:
    """Return False for a table that is ours: it begins with `mailer_`, and the application has no model of it."""
    return not (type_ == "table" and reflected and compare_to is None and is_ours(name))


def include_name(name: str | None, type_: str, _parent_names: Mapping[str, Any]) -> bool:
    """Return False for the name of a table that is ours, so that Alembic does not even read it."""
    return not (type_ == "table" and is_ours(name))


def is_ours(name: str | None) -> bool:
    """Return whether a table is one of Mailer, of this version or of a newer one."""
    return name is not None and name.startswith(PREFIX)
