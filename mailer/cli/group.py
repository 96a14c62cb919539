"""The group `flask mail`, and the functions that its commands share."""

from contextlib import suppress
from typing import Any

import click
from flask.cli import AppGroup, ScriptInfo

from mailer.errors import MailerError
from mailer.message import Lane
from mailer.operations import Operations
from mailer.store import Store
from mailer.wiring import state_of

LANE = click.Choice([lane.name.lower() for lane in Lane])
#: The length of a list that is no page by itself.
SHOWN = 10


class _MailGroup(AppGroup):
    """A group whose commands print the text of an error of Mailer, and no traceback.

    Flask prefers it to a group `mail` of the application, whose commands are called as well.
    """

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if (command := super().get_command(ctx, cmd_name)) is not None:
            return command
        own = self._group_of_the_app(ctx)
        return None if own is None else own.get_command(ctx, cmd_name)

    def list_commands(self, ctx: click.Context) -> list[str]:
        own = self._group_of_the_app(ctx)
        names = set(super().list_commands(ctx)) | set(own.list_commands(ctx) if own else ())
        return sorted(names)

    def _group_of_the_app(self, ctx: click.Context) -> click.Group | None:
        """Return the application's own group of the same name."""
        info = ctx.ensure_object(ScriptInfo)
        with suppress(Exception):  # `flask mail init` works without an app
            group = info.load_app().cli.commands.get(self.name or "")
            return group if isinstance(group, click.Group) and group is not self else None
        return None

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except MailerError as error:
            raise click.ClickException(str(error)) from error


mail_group: AppGroup = _MailGroup("mail", help="The email queue.")


def store() -> Store:
    """Return the store of the current app."""
    return state_of().store


def operations() -> Operations:
    """Return the operations of the current app."""
    return state_of().operations


def find_mail(given: str) -> str:
    """Return the id of the mail that an operator means."""
    return operations().find(given)
