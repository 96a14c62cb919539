"""`flask mail …`: the operator's command. Each module has the commands of one subject."""

from mailer.cli import (  # noqa: F401 -- adds their commands
    bulk,
    inbox,
    init,
    mails,
    migrate_code,
    pauses,
    queue,
    relays,
    tables,
    tenants,
)
from mailer.cli.group import mail_group

__all__ = ["mail_group"]
