"""A plugin of Alembic, so that no migration it writes for an application drops our tables, whatever hooks it has.

It is found by its entry point where Mailer is installed, and else registered by `register_if_needed`.
"""

import sys
from typing import Any

import click

from mailer.logs import get_logger
from mailer.schema.foreign import is_ours

#: Alembic takes all plugins with this beginning, unless an application says otherwise.
NAME = "alembic.autogenerate.mailer"

log = get_logger(__name__)


def setup(plugin: Any) -> None:
    """Add our step to Alembic's comparison, after all others."""
    from alembic.util import DispatchPriority  # noqa: PLC0415 -- most processes never need Alembic

    plugin.add_autogenerate_comparator(_leave_our_tables_alone, "autogenerate", priority=DispatchPriority.LAST)


def register_if_needed() -> None:
    """Tell Alembic of the plugin where it may be about to write a migration: if it is imported, or in a command."""
    if "alembic" not in sys.modules and click.get_current_context(silent=True) is None:
        return
    from alembic.runtime import plugins  # noqa: PLC0415 -- see above

    if NAME not in plugins._all_plugins:  # noqa: SLF001 -- it tells a second registration only by raising
        plugins.Plugin.setup_plugin_from_module(sys.modules[__name__], NAME)


def _leave_our_tables_alone(context: Any, upgrade: Any) -> Any:
    from alembic.util import PriorityDispatchResult  # noqa: PLC0415

    known = {table.name for table in context.sorted_tables}
    ours = [op for op in upgrade.ops if is_ours(name := getattr(op, "table_name", None)) and name not in known]
    if ours:
        log.info("The tables of Mailer are left alone: no model of the application has to know them")
        upgrade.ops[:] = [op for op in upgrade.ops if op not in ours]
    return PriorityDispatchResult.CONTINUE
