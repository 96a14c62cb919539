"""`flask mail inbox`."""

from pathlib import Path

import click
from flask.cli import ScriptInfo, pass_script_info

from mailer.cli.group import mail_group, operations
from mailer.cli.relays import location
from mailer.errors import ConfigurationError
from mailer.settings import INBOX_PORT


@mail_group.command(with_appcontext=False)
@click.option(
    "--smtp-port", default=INBOX_PORT, show_default=True, help="The port that receives mail."
)
@click.option(
    "--web-port", default=8025, show_default=True, help="The port of the page that shows the mail."
)
@pass_script_info
def inbox(info: ScriptInfo, smtp_port: int, web_port: int) -> None:
    """Receive mail on this machine and show it on a page, until Ctrl-C.

    In debug mode an app sends its mail there, unless MAIL_SERVER or MAIL_PORT say otherwise.
    Nothing is passed on.
    """
    from mailer.web.serving import serve_inbox  # noqa: PLC0415 -- of all commands, only this one is a server

    serve_inbox(_instance(info, smtp_port) / "inbox", smtp_port, web_port, click.echo)


def _instance(info: ScriptInfo, smtp_port: int) -> Path:
    """Return the instance folder of the app, or that of this folder if its settings are refused.

    Say so then, and also if the app sends its mail elsewhere.
    """
    try:
        app = info.load_app()
    except ConfigurationError as error:
        click.echo(f"The inbox starts, but the app can't: {error}")
        return Path("instance").absolute()
    with app.app_context():
        relays = operations().relays().values()
    if not any(relay.is_local and relay.mail_port == smtp_port for relay in relays):
        places = ", ".join(map(location, relays))
        click.echo(
            f"This app sends its mail to {places}, not here. Start it in debug mode (`flask run"
            f" --debug`, FLASK_DEBUG=1), or set MAIL_SERVER=127.0.0.1 and MAIL_PORT={smtp_port}."
        )
    return Path(app.instance_path)
