"""`flask mail …`: the operator's command."""

import time
from datetime import UTC, datetime
from typing import Any

import click
from flask import current_app
from flask.cli import AppGroup

from mailer.errors import MailerError
from mailer.message import DeliveryStatus, Pause, Status
from mailer.settings import RelaySettings
from mailer.smtp.replies import printable
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


def _relays() -> dict[str, RelaySettings]:
    """By name."""
    relays: tuple[RelaySettings, ...] = current_app.extensions["mailer"].settings.relays
    return {relay.name: relay for relay in relays}


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
    click.echo(f"{mail.id}  {_clock(mail.created_at)}  {printable(mail.subject)}")
    for delivery in mail.deliveries:
        click.echo(_line(delivery))
        for attempt in delivery.history:
            what = f"{attempt.verdict} at {attempt.phase}, {attempt.relay}: {printable(attempt.reply)}"
            click.echo(f"    {_clock(attempt.at)}  {what}")


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


@mail_group.command()
def relays() -> None:
    """Which relays there are, what each is for, and which are paused and why."""
    pauses = _store().relay_pauses()
    for name, relay in _relays().items():
        pause = pauses.get(name)
        click.echo(f"{name}  {_place(relay)}  {_rules(relay)}")
        click.echo(f"  {_pause(pause)}" if pause else "  open")


@mail_group.command()
@click.argument("relay")
def resume(relay: str) -> None:
    """End the pause of a relay: it is used again at once."""
    if relay not in (known := _relays()):
        raise click.ClickException(f"No relay is named {relay!r}: there is {', '.join(known)}.")
    is_over = _store().resume_relay(relay)
    click.echo(f"The pause of {relay} is over." if is_over else f"{relay} is not paused.")


def _place(relay: RelaySettings) -> str:
    return relay.mail_server if relay.is_unix else f"{relay.mail_server}:{relay.mail_port}"


def _rules(relay: RelaySettings) -> str:
    """What it is asked for, in the words of MAILER_RELAYS."""
    rules = {"senders": relay.senders, "domains": relay.domains, "lanes": [lane.name.lower() for lane in relay.lanes]}
    said = [f"{kind} {', '.join(values)}" for kind, values in rules.items() if values]
    return "; ".join([*(said or ["all mail"]), f"preference {relay.preference}", f"weight {relay.weight:g}"])


def _pause(pause: Pause) -> str:
    if pause.until is None:
        until = "until it is resumed"
    elif pause.until > time.time():
        until = f"until {_clock(datetime.fromtimestamp(pause.until, UTC))}"
    else:
        until = "to be tried with the next mail"
    times = "once" if pause.failures == 1 else f"{pause.failures} times"
    return f"paused since {_clock(pause.since)}, {until}, failed {times}: {printable(pause.reason)}"


def _settle(mail_id: str, to: Status) -> None:
    before = _store().status(mail_id)  # an unknown id is an error, not "0 moved"
    moved = _store().settle_if_resting(mail_id, to, now=time.time())
    if not moved:
        states = ", ".join(sorted({delivery.status for delivery in before.deliveries}))
        raise click.ClickException(f"Nothing was moved to {to}: the deliveries of this mail are {states}.")
    click.echo(f"{len(moved)} moved to {to}.")


def _line(delivery: DeliveryStatus) -> str:
    when = delivery.finished_at or delivery.due_at
    said = f"  {delivery.relay}: {printable(delivery.reply)}" if delivery.reply else ""
    return f"  {delivery.recipient}  {delivery.status}  {_clock(when)}  attempts {delivery.attempts}{said}"


def _clock(when: datetime | None) -> str:
    return when.strftime("%Y-%m-%d %H:%M:%S UTC") if when else "-"
