"""The group `flask mail`, and what its commands share."""

from typing import Any

import click
from flask import current_app
from flask.cli import AppGroup

from mailer.errors import MailerError
from mailer.message import Lane
from mailer.operations import Operations
from mailer.store import Store

LANE = click.Choice([lane.name.lower() for lane in Lane])
#: The length of a list that is no page by itself.
SHOWN = 10


class _MailGroup(AppGroup):
    """A group whose commands print the text of an error of Mailer, and no traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except MailerError as error:
            raise click.ClickException(str(error)) from error


mail_group = _MailGroup("mail", help="The email queue.")


def store() -> Store:
    """Return the store of the current app."""
    store: Store = current_app.extensions["mailer"].store
    return store


def operations() -> Operations:
    """Return the operations of the current app."""
    operations: Operations = current_app.extensions["mailer"].operations
    return operations


def find_mail(given: str) -> str:
    """Return the id of the mail that an operator means."""
    return operations().find(given)
