"""`flask mail inbox`."""

from pathlib import Path

import click
from flask import current_app

from mailer.cli.group import mail_group, operations
from mailer.cli.relays import location
from mailer.settings import INBOX_PORT


@mail_group.command()
@click.option(
    "--smtp-port", default=INBOX_PORT, show_default=True, help="The port that receives mail."
)
@click.option(
    "--web-port", default=8025, show_default=True, help="The port of the page that shows the mail."
)
def inbox(smtp_port: int, web_port: int) -> None:
    """Receive mail on this machine and show it on a page, until Ctrl-C.

    In debug mode an app sends its mail there, unless MAIL_SERVER or MAIL_PORT say otherwise.
    Nothing is passed on.
    """
    from mailer.web.serving import serve_inbox  # noqa: PLC0415 -- of all commands, only this one is a server

    relays = operations().relays().values()
    if not any(relay.is_local and relay.mail_port == smtp_port for relay in relays):
        places = ", ".join(map(location, relays))
        click.echo(
            f"This app sends its mail to {places}, not here. Start it in debug mode (`flask run"
            f" --debug`, FLASK_DEBUG=1), or set MAIL_SERVER=127.0.0.1 and MAIL_PORT={smtp_port}."
        )
    serve_inbox(Path(current_app.instance_path, "inbox"), smtp_port, web_port, click.echo)
