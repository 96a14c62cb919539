"""A plugin of Alembic that keeps our tables out of the migrations of applications.

Alembic finds it by its entry point if Mailer is installed. `register_if_needed` covers other cases.
"""

import sys
from logging import Logger
from typing import Any

import click

from mailer.logs import get_logger
from mailer.schema.foreign import is_ours

#: Alembic uses all plugins with this prefix, unless an application configures others.
NAME = "alembic.autogenerate.mailer"

log: Logger = get_logger(__name__)


def setup(plugin: Any) -> None:
    """Add a comparator to Alembic, after all others."""
    from alembic.util import DispatchPriority  # noqa: PLC0415 -- most processes never need Alembic

    plugin.add_autogenerate_comparator(
        _skip_our_tables, "autogenerate", priority=DispatchPriority.LAST
    )


def register_if_needed() -> None:
    """Register the plugin if Alembic may be about to write a migration."""
    if "alembic" not in sys.modules and not _may_migrate():
        return
    from alembic.runtime import plugins  # noqa: PLC0415 -- see above

    if NAME not in plugins._all_plugins:  # noqa: SLF001 -- a second registration would raise
        plugins.Plugin.setup_plugin_from_module(sys.modules[__name__], NAME)


def _may_migrate() -> bool:
    """Return whether this command may write a migration. Celery's write none."""
    context = click.get_current_context(silent=True)
    return context is not None and context.find_root().command.name != "celery"


def _skip_our_tables(context: Any, upgrade: Any) -> Any:
    from alembic.util import PriorityDispatchResult  # noqa: PLC0415

    known = {table.name for table in context.sorted_tables}
    ours = [
        op
        for op in upgrade.ops
        if is_ours(name := getattr(op, "table_name", None)) and name not in known
    ]
    if ours:
        log.info("Tables of Mailer are skipped: the models of the application need not know them.")
        upgrade.ops[:] = [op for op in upgrade.ops if op not in ours]
    return PriorityDispatchResult.CONTINUE
