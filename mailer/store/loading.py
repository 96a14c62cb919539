"""Messages, out of their rows."""

from collections import defaultdict
from collections.abc import Collection, Iterable

from mailer.logs import get_logger
from mailer.message import Message
from mailer.policy import FAULTS_OF_A_MAIL
from mailer.store import rows
from mailer.store import statements as sql
from mailer.store.spelling import packed
from mailer.store.transactions import Row, Transaction

log = get_logger(__name__)


def find(transaction: Transaction, mail_ids: Collection[str]) -> list[tuple[Row, list[Row]]]:
    """Return the row of each message that is not erased, with those of its attachments."""
    mails = transaction.execute(sql.LOAD, {"mails": packed(mail_ids)})
    attached: dict[str, list[Row]] = defaultdict(list)
    if with_attachments := [mail[0] for mail in mails if mail[-1]]:
        for attachment in transaction.execute(sql.LOAD_ATTACHMENTS, {"mails": packed(with_attachments)}):
            attached[attachment[0]].append(attachment)
    return [(mail, attached[mail[0]]) for mail in mails]


def messages(found: Iterable[tuple[Row, list[Row]]]) -> dict[str, Message]:
    """Return these messages by id; what somebody has spoilt is left out."""
    read = {mail[0]: _read(mail, attachments) for mail, attachments in found}
    return {mail_id: message for mail_id, message in read.items() if message is not None}


def _read(mail: Row, attachments: list[Row]) -> Message | None:
    """Return None if somebody has spoilt its rows: that is for this mail to suffer, not for those beside it."""
    try:
        return rows.message(mail, attachments)
    except FAULTS_OF_A_MAIL as error:  # its words may be the mail's
        log.error("Mail %s can't be read: %s", mail[0], type(error).__name__)  # noqa: TRY400 -- without them
        return None
