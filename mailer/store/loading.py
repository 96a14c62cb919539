"""Messages, read from their rows."""

from collections import defaultdict
from collections.abc import Collection, Iterable
from logging import Logger

from mailer.logs import get_logger
from mailer.message import Message
from mailer.policy import FAULTS_OF_A_MAIL
from mailer.store import rows
from mailer.store.sql import packed
from mailer.store.transactions import Row, Transaction

LOAD = f"""
SELECT {rows.MESSAGE_SELECTION},
    EXISTS (SELECT 1 FROM mailer_attachment WHERE mail_id = mailer_message.id)
FROM mailer_message
WHERE id {{mails}} AND erased_at IS NULL
"""
LOAD_ATTACHMENTS = """
SELECT mail_id, mailer_attachment.sha256, data, filename, content_type, content_id, disposition,
    CAST(headers AS text)
FROM mailer_attachment
LEFT JOIN mailer_blob ON mailer_blob.sha256 = mailer_attachment.sha256
WHERE mail_id {mails}
ORDER BY mail_id, position
"""

log: Logger = get_logger(__name__)


def find(transaction: Transaction, mail_ids: Collection[str]) -> list[tuple[Row, list[Row]]]:
    """Return the row of each message that is not erased, with the rows of its attachments."""
    mails = transaction.execute(LOAD, {"mails": packed(mail_ids)})
    attached: dict[str, list[Row]] = defaultdict(list)
    if with_attachments := [mail[0] for mail in mails if mail[-1]]:
        values = {"mails": packed(with_attachments)}
        for attachment in transaction.execute(LOAD_ATTACHMENTS, values):
            attached[attachment[0]].append(attachment)
    return [(mail, attached[mail[0]]) for mail in mails]


def messages(found: Iterable[tuple[Row, list[Row]]]) -> dict[str, Message]:
    """Return these messages by id. Leave out damaged ones."""
    read = {mail[0]: _read(mail, attachments) for mail, attachments in found}
    return {mail_id: message for mail_id, message in read.items() if message is not None}


def _read(mail: Row, attachments: list[Row]) -> Message | None:
    """Return the message, or None if its rows are damaged, so that the other mails are read."""
    try:
        return rows.message(mail, attachments)
    except FAULTS_OF_A_MAIL as error:
        kind = type(error).__name__  # the text may quote the mail
        log.error("Mail %s can't be read: %s", mail[0], kind)  # noqa: TRY400 -- without the text
        return None
