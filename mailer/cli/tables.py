"""`flask mail migrate`."""

import click

from mailer.cli.group import mail_group, store


@mail_group.command()
@click.option("--to", default="head", show_default=True, help="The revision to go to.")
@click.option("--new-tables", is_flag=True, help="Create tables that were dropped, empty.")
def migrate(to: str, *, new_tables: bool) -> None:
    """Create or upgrade the tables."""
    store().migrate(to, new_tables=new_tables)
    click.echo(
        "The tables of Mailer are up to date."
        if to == "head"
        else f"The tables of Mailer are at {to}."
    )
