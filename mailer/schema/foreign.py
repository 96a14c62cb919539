"""Hooks for the migrations of an application whose database contains our tables.

Alembic drops tables that the application's models do not know. These hooks exclude our tables:

    Migrate(app, db, include_object=include_object)       # Flask-Migrate
    context.configure(…, include_object=include_object)   # env.py of Alembic

An application with a hook of its own calls both:
`lambda *args: include_object(*args) and own_hook(*args)`.
"""

from collections.abc import Mapping
from typing import Any

PREFIX = "mailer_"


def include_object(
    _object: Any, name: str | None, type_: str, reflected: bool, compare_to: Any
) -> bool:
    """Return False for a table of Mailer: `mailer_…`, without a model of the application.

    >>> from mailer.schema import include_object
    >>> include_object(None, "mailer_message", "table", reflected=True, compare_to=None)
    False
    """
    return not (type_ == "table" and reflected and compare_to is None and is_ours(name))


def include_name(name: str | None, type_: str, _parent_names: Mapping[str, Any]) -> bool:
    """Return False for the name of a table of Mailer, so that Alembic does not read it.

    >>> from mailer.schema import include_name
    >>> [name for name in ("users", "mailer_message") if include_name(name, "table", {})]
    ['users']
    """
    return not (type_ == "table" and is_ours(name))


def is_ours(name: str | None) -> bool:
    """Return whether a table belongs to Mailer, in this or a newer version."""
    return name is not None and name.startswith(PREFIX)
