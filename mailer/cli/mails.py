"""`flask mail status`, `list`, `cancel`, `retry`, `reschedule` and `resolve`: single mails."""

import time
from datetime import datetime
from typing import Any

import click

from mailer.cli.group import LANE, SHOWN, find_mail, mail_group, operations
from mailer.cli.times import format_time, parse_time
from mailer.message import DeliveryStatus, Lane, MailStatus, Status
from mailer.message.text import printable


@mail_group.command()
@click.argument("mail_id")
def status(mail_id: str) -> None:
    """Show the status of a mail, recipient by recipient.

    MAIL_ID is the id of a mail, eight or more characters of its beginning, or the number of one of
    its deliveries.
    """
    mail = operations().status(find_mail(mail_id))
    gone = f"  what it said was erased at {format_time(mail.erased_at)}" if mail.erased_at else ""
    click.echo(f"{mail.id}  {format_time(mail.created_at)}  {_subject(mail)}{gone}")
    for delivery in mail.deliveries:
        click.echo(_line(delivery))
        for attempt in delivery.history:
            what = (
                f"{attempt.verdict} at {attempt.phase}, {attempt.relay}: {printable(attempt.reply)}"
            )
            click.echo(f"    {format_time(attempt.at)}  {what}")


@mail_group.command("list")
@click.option(
    "--state",
    type=click.Choice([status.value for status in Status], case_sensitive=False),
    help="Only mail with a delivery in this state.",
)
@click.option(
    "--to", metavar="ADDRESS", help="Only mail to an address, or to a domain such as @example.com."
)
@click.option("--tag", help="Only mail with this tag.")
@click.option("--subject", metavar="PART", help="Only mail with this in its subject.")
@click.option("--relay", metavar="NAME", help="Only mail that this relay took or refused.")
@click.option(
    "--since",
    type=parse_time,
    metavar="TIME",
    help="Only mail that was queued since '2026-11-25 10:00' (UTC).",
)
@click.option(
    "--until", type=parse_time, metavar="TIME", help="Only mail that was queued before a time."
)
@click.option(
    "--before", metavar="MAIL_ID", help="The next page: mail that was queued before this one."
)
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True)
def list_mails(**conditions: Any) -> None:
    """List mail, the newest first."""
    if conditions["before"]:
        conditions["before"] = find_mail(conditions["before"])
    mails = operations().mails(**conditions)
    for mail in mails:
        states = ", ".join(sorted({delivery.status for delivery in mail}))
        recipients = ", ".join(delivery.recipient for delivery in mail.deliveries[:SHOWN])
        more = ", …" if len(mail.deliveries) > SHOWN else ""
        queued = format_time(mail.created_at)
        click.echo(f"{mail.id}  {queued}  {states}  {recipients}{more}  {_subject(mail)}")
    if not mails:
        click.echo("No such mail.")
    elif len(mails) == conditions["limit"]:
        last = mails[-1].id
        if operations().mails(**{**conditions, "before": last, "limit": 1}):
            click.echo(f"More: --before {last}")


@mail_group.command()
@click.argument("mail_id", required=False)
@click.option(
    "--due-before",
    type=parse_time,
    metavar="TIME",
    help="All that was due before, such as '2026-11-25 10:00' (UTC).",
)
@click.option("--lane", type=LANE, help="With --due-before: only of this lane.")
def cancel(mail_id: str | None, due_before: datetime | None, lane: str | None) -> None:
    """Cancel the queued deliveries of a mail, or all that were due before a time."""
    if (mail_id is None) == (due_before is None):
        raise click.UsageError("Give the id of a mail, or --due-before.")
    if mail_id is not None and lane is not None:
        raise click.UsageError("--lane goes with --due-before: leave it out.")
    if mail_id is not None:
        _settle(mail_id, Status.CANCELLED)
    elif due_before is not None:
        _cancel_all(due_before, [Lane[lane.upper()]] if lane else [*Lane])


@mail_group.command()
@click.argument("mail_id")
def retry(mail_id: str) -> None:
    """Queue the failed and doubtful deliveries of a mail again."""
    _settle(mail_id, Status.QUEUED)


@mail_group.command()
@click.argument("mail_id")
@click.argument("send_at", metavar="TIME", type=parse_time)
def reschedule(mail_id: str, send_at: datetime) -> None:
    """Send the queued deliveries of a mail at another time, such as '2026-11-25 10:00' (UTC)."""
    mail_id = find_mail(mail_id)
    moved = operations().reschedule(mail_id, send_at)
    if not moved:
        states = ", ".join(sorted({one.status for one in operations().status(mail_id)}))
        raise click.ClickException(
            f"Nothing was rescheduled: the deliveries of this mail are {states}, or expire before."
        )
    click.echo(f"{moved} rescheduled to {format_time(send_at)}.")


@mail_group.command()
@click.argument("mail_id")
@click.argument("verdict", type=click.Choice([Status.SENT.value, Status.FAILED.value]))
def resolve(mail_id: str, verdict: str) -> None:
    """Decide about the doubtful deliveries of a mail: they were sent, or they have failed."""
    _settle(mail_id, Status(verdict))


def _cancel_all(before: datetime, lanes: list[Lane]) -> None:
    """Cancel queued deliveries. Doubtful ones may have been sent, so they wait for a person."""
    cancelled, held = operations().cancel_due_before(before, lanes)
    doubts = f" {held} are in doubt, and are not sent again by themselves." if held else ""
    click.echo(f"{cancelled} cancelled.{doubts}")


def _settle(mail_id: str, to: Status) -> None:
    mail_id = find_mail(mail_id)  # an unknown one is an error, not "0 moved"
    before = operations().status(mail_id)
    match to:
        case Status.CANCELLED:
            moved = operations().cancel(mail_id)
        case Status.QUEUED:
            moved = operations().retry(mail_id)
        case _:
            moved = operations().resolve(mail_id, to)
    if not moved and to is Status.QUEUED and before.erased_at:
        raise click.ClickException(
            "This mail can't be sent again: what it said was erased at"
            f" {format_time(before.erased_at)}. Queue it anew."
        )
    if not moved:
        states = ", ".join(sorted({delivery.status for delivery in before.deliveries}))
        raise click.ClickException(
            f"Nothing was moved to {to}: the deliveries of this mail are {states}."
        )
    click.echo(f"{moved} moved to {to}.")


def _subject(mail: MailStatus) -> str:
    return "(sensitive)" if mail.sensitive else printable(mail.subject)


def _line(delivery: DeliveryStatus) -> str:
    said = f"  {delivery.relay}: {printable(delivery.reply)}" if delivery.reply else ""
    return (
        f"  {delivery.recipient}  {delivery.status}  {_when(delivery)}"
        f"  attempts {delivery.attempts}{said}"
    )


def _when(delivery: DeliveryStatus) -> str:
    """Return the time of a delivery's end, or else that of its next try, in words."""
    if delivery.is_being_tried:
        return "being tried now"
    if delivery.status is Status.HELD and delivery.due_at:
        return f"for the quota of {printable(delivery.tenant or '')}"
    if (
        delivery.finished_at is None
        and delivery.due_at
        and delivery.due_at.timestamp() <= time.time()
    ):
        return "due now"
    return format_time(delivery.finished_at or delivery.due_at)
