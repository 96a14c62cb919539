"""`flask mail …`: the operator's command."""

import time
from datetime import UTC, datetime
from typing import Any

import click
from flask import current_app
from flask.cli import AppGroup

from mailer.errors import MailerError
from mailer.message import DeliveryStatus, Status
from mailer.store import Store


class _MailGroup(AppGroup):
    """Errors of Mailer need their text, not a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except MailerError as error:
            raise click.ClickException(str(error)) from error


mail_group = _MailGroup("mail", help="The email queue.")


def _store() -> Store:
    store: Store = current_app.extensions["mailer"].store
    return store


@mail_group.command()
@click.option("--to", default="head", show_default=True, help="The revision to go to.")
def migrate(to: str) -> None:
    """Create or upgrade the tables."""
    _store().migrate(to)
    click.echo("The tables of Mailer are up to date." if to == "head" else f"The tables of Mailer are at {to}.")


@mail_group.command()
def queue() -> None:
    """How many deliveries are in which state, lane by lane."""
    counts = _store().counts()
    if not counts:
        click.echo("No mail yet.")
    for status, lane, count, oldest in counts:
        waits = f"  the first due at {_clock(datetime.fromtimestamp(oldest, UTC))}" if status is Status.QUEUED and oldest else ""
        click.echo(f"{lane.name.lower():10}{status:14}{count:>9}{waits}")


@mail_group.command()
@click.argument("mail_id")
def status(mail_id: str) -> None:
    """What became of a mail, recipient by recipient."""
    mail = _store().status(mail_id)
    click.echo(f"{mail.id}  {_clock(mail.created_at)}  {mail.subject}")
    for delivery in mail.deliveries:
        click.echo(_line(delivery))
        for attempt in delivery.history:
            click.echo(f"    {_clock(attempt.at)}  {attempt.verdict} at {attempt.phase}, {attempt.relay}: {attempt.reply}")


@mail_group.command()
@click.argument("mail_id")
def cancel(mail_id: str) -> None:
    """Do not send what is still queued of a mail."""
    _settle(mail_id, Status.CANCELLED)


@mail_group.command()
@click.argument("mail_id")
def requeue(mail_id: str) -> None:
    """Try again what failed of a mail, or is doubtful."""
    _settle(mail_id, Status.QUEUED)


@mail_group.command()
@click.argument("mail_id")
@click.argument("verdict", type=click.Choice([Status.SENT.value, Status.FAILED.value]))
def settle(mail_id: str, verdict: str) -> None:
    """Decide what is doubtful of a mail: it was sent, or it has failed."""
    _settle(mail_id, Status(verdict))


def _settle(mail_id: str, to: Status) -> None:
    before = _store().status(mail_id)  # an unknown id is an error, not "0 moved"
    moved = _store().settle_if_resting(mail_id, to, now=time.time())
    if not moved:
        states = ", ".join(sorted({delivery.status for delivery in before.deliveries}))
        raise click.ClickException(f"Nothing was moved to {to}: the deliveries of this mail are {states}.")
    click.echo(f"{len(moved)} moved to {to}.")


def _line(delivery: DeliveryStatus) -> str:
    when = delivery.finished_at or delivery.due_at
    said = f"  {delivery.relay}: {delivery.reply}" if delivery.reply else ""
    return f"  {delivery.recipient}  {delivery.status}  {_clock(when)}  attempts {delivery.attempts}{said}"


def _clock(when: datetime | None) -> str:
    return when.strftime("%Y-%m-%d %H:%M:%S UTC") if when else "-"
