"""Error mails of a log: `SMTPHandler`."""

from collections.abc import Iterator

import libcst as cst

from mailer.migrate_code.findings import Finding
from mailer.migrate_code.reading import File, last_name, string

_HANDLER = (
    "SMTPHandler makes the request wait for the relay, and mails every repeat. Write"
    " QueuedMailHandler(addresses, subject) in its place (from mailer.logging import"
    " QueuedMailHandler): it queues, and the relay is that of the MAIL_* settings."
)


def plan_loggers(file: File) -> Iterator[Finding]:
    """Point to the SMTPHandlers of a log."""
    for node in file.nodes:
        match node:
            case cst.Call():
                found = last_name(node) == "SMTPHandler"
            case cst.ClassDef(bases=bases):
                found = any(last_name(one.value) == "SMTPHandler" for one in bases)
            case cst.SimpleString():
                found = string(node) == "logging.handlers.SMTPHandler"
            case _:
                found = False
        if found:
            yield Finding(file.line(node), _HANDLER)
