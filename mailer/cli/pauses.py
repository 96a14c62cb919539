"""`flask mail pause` and `resume`."""

import click

from mailer.cli.group import LANE, mail_group, operations
from mailer.cli.times import format_time
from mailer.message import Lane
from mailer.message.text import printable


@mail_group.command()
@click.option("--lane", type=LANE, help="Only this lane; the others go on.")
@click.option("--reason", default="by hand", show_default=True, help="Shown by `flask mail queue`.")
def pause(lane: str | None, reason: str) -> None:
    """Send nothing any more, until `flask mail resume`. Mail is queued as ever."""
    held = operations().pause(lane, reason=reason)
    ends = f" {held} are in the hands of workers, and may still go out." if held else ""
    click.echo(f"{scope(_lane(lane))} is paused.{ends}")


@mail_group.command()
@click.argument("relay", required=False)
@click.option("--lane", type=LANE, help="End the pause of this lane.")
def resume(relay: str | None, lane: str | None) -> None:
    """End a pause: that of a relay, of a lane, or, with neither, that of everything."""
    if relay is None:
        is_over = operations().resume(lane)
        what = scope(_lane(lane))
        none = "Nothing is paused as a whole." if lane is None else f"{what} is not paused."
        click.echo(f"The pause of {what.lower()} is over." if is_over else none)
        return
    is_over = operations().resume(lane, relay=relay)
    click.echo(f"The pause of {relay} is over." if is_over else f"{relay} is not paused.")


def show_pauses() -> None:
    """Print the pauses of lanes and of everything."""
    for lane, one in operations().pauses().items():
        click.echo(
            f"{scope(lane)} is paused since {format_time(one.since)}: {printable(one.reason)}"
        )


def _lane(name: str | None) -> Lane | None:
    return None if name is None else Lane[name.upper()]


def scope(lane: Lane | None) -> str:
    """Return the name of a lane, or of all lanes, for the beginning of a sentence."""
    return "Everything" if lane is None else f"The lane {lane.name.lower()}"
