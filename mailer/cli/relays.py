"""`flask mail relays`."""

import time
from datetime import UTC, datetime

import click

from mailer.cli.group import mail_group, operations
from mailer.cli.times import format_time
from mailer.message import Pause
from mailer.message.text import printable
from mailer.settings import RelaySettings


@mail_group.command()
def relays() -> None:
    """List the relays, the mail that each is for, and the pauses with their reasons."""
    pauses = operations().relay_pauses()
    for name, relay in operations().relays().items():
        pause = pauses.get(name)
        click.echo(f"{name}  {location(relay)}  {_rules(relay)}")
        click.echo(f"  {_pause(pause)}" if pause else "  open")


def location(relay: RelaySettings) -> str:
    """Return host and port of a relay, or its socket."""
    return relay.mail_server if relay.is_unix else f"{relay.mail_server}:{relay.mail_port}"


def _rules(relay: RelaySettings) -> str:
    """Return the rules of a relay, in the words of MAILER_RELAYS."""
    rules = {
        "senders": relay.senders,
        "domains": relay.domains,
        "lanes": [lane.name.lower() for lane in relay.lanes],
    }
    said = [f"{kind} {', '.join(values)}" for kind, values in rules.items() if values]
    return "; ".join(
        [*(said or ["all mail"]), f"preference {relay.preference}", f"weight {relay.weight:g}"]
    )


def _pause(pause: Pause) -> str:
    if pause.until is None:
        until = "until it is resumed"
    elif pause.until > time.time():
        until = f"until {format_time(datetime.fromtimestamp(pause.until, UTC))}"
    else:
        until = "to be tried with the next mail"
    times = "once" if pause.failures == 1 else f"{pause.failures} times"
    since = f"paused since {format_time(pause.since)}"
    return f"{since}, {until}, failed {times}: {printable(pause.reason)}"
