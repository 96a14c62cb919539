"""`flask mail tenants`: whose mail waits, and how much of their quotas is used."""

import click

from mailer.cli.group import mail_group, operations
from mailer.cli.times import format_time
from mailer.message.tenants import QuotaStatus
from mailer.message.text import printable


@mail_group.command()
def tenants() -> None:
    """Count the mail of each tenant that is queued or held, and show the quotas."""
    found = operations().tenants()
    if not found:
        click.echo("No mail of a tenant is waiting.")
    for one in found:
        quotas = ", ".join(map(_described, one.quotas)) or "no quota"
        click.echo(f"{printable(one.name):30}{one.queued:>9} queued{one.held:>9} held  {quotas}")


def _described(quota: QuotaStatus) -> str:
    return f"{quota.used:,} of {quota.amount:,} until {format_time(quota.ends_at)}"
