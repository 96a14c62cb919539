"""The search for mails, page by page, the newest first."""

from dataclasses import dataclass
from typing import Any

from mailer.message import Status, could_be_id, id_at
from mailer.store.collation import id_by_byte
from mailer.store.mails import Mails

# Ids sort by time, so a page begins after the last id of the page before.
SEARCH = """
SELECT id FROM mailer_message
WHERE EXISTS (
    SELECT 1 FROM mailer_delivery WHERE mail_id = mailer_message.id {and_delivery})
    AND NOT EXISTS (SELECT 1 FROM mailer_bulk WHERE mailer_bulk.id = mailer_message.id)
    {and_message}
ORDER BY {id_by_byte} DESC LIMIT :most
"""
_HAS_TAG_SQLITE = "AND EXISTS (SELECT 1 FROM json_each(tags) WHERE value = :tag)"
_HAS_TAG_POSTGRESQL = """
AND EXISTS (SELECT 1 FROM json_array_elements_text(tags) AS one (value) WHERE value = :tag)
"""
# A sensitive mail is not found by its content.
_HAS_SUBJECT = r"AND NOT sensitive AND LOWER(subject) LIKE :subject ESCAPE '\'"


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """The conditions of a search. One delivery of a mail has to meet those of deliveries."""

    state: Status | None = None
    recipient: str | None = None  #: an address, or a domain after "@"
    relay: str | None = None
    tag: str | None = None
    subject: str | None = None  #: a part of the subject, in any case
    since: float | None = None
    until: float | None = None


class Search(Mails):
    """The search for mails."""

    def find_ids(self, wanted: Filter, *, before: str | None, most: int) -> list[str]:
        """Return the ids of the newest mails, or of the newest ones before the mail `before`."""
        if before is not None and not could_be_id(before):
            return []
        self.settle_aside()
        values: dict[str, Any] = {"most": most}
        of_message, of_delivery = self._conditions(wanted, values)
        if before is not None:
            of_message += " AND {id_by_byte} < :before"
            values["before"] = before
        # Conditions are texts of this file: values from outside are parameters.
        statement = SEARCH.replace("{and_message}", of_message)
        statement = statement.replace("{and_delivery}", of_delivery)
        with self._look() as transaction:
            statement = statement.replace("{id_by_byte}", id_by_byte(transaction))
            return [mail_id for (mail_id,) in transaction.execute(statement, values)]

    def _conditions(self, wanted: Filter, values: dict[str, Any]) -> tuple[str, str]:
        """Return the conditions of the message and of the delivery. Add their parameters."""
        of_message, of_delivery = [], []
        if wanted.since is not None:
            of_message.append("AND {id_by_byte} >= :since")
            values["since"] = id_at(wanted.since)
        if wanted.until is not None:
            of_message.append("AND {id_by_byte} < :until")
            values["until"] = id_at(wanted.until)
        if wanted.tag is not None:
            of_message.append(_HAS_TAG_SQLITE if self._sqlite else _HAS_TAG_POSTGRESQL)
            values["tag"] = wanted.tag
        if wanted.subject is not None:
            of_message.append(_HAS_SUBJECT)
            values["subject"] = f"%{_literally(wanted.subject.lower())}%"
        if wanted.state is not None:
            of_delivery.append("AND status = :status")
            values["status"] = str(wanted.state)
        if wanted.relay is not None:
            of_delivery.append("AND relay = :relay")
            values["relay"] = wanted.relay
        if wanted.recipient is not None and wanted.recipient.startswith("@"):
            of_delivery.append("AND LOWER(domain) = :domain")
            values["domain"] = wanted.recipient[1:].lower()
        elif wanted.recipient is not None:
            of_delivery.append("AND LOWER(recipient) = :recipient")
            values["recipient"] = wanted.recipient.lower()
        return " ".join(of_message), " ".join(of_delivery)


def _literally(text: str) -> str:
    """Escape the characters that stand for others in LIKE."""
    return text.replace("\\", r"\\").replace("%", r"\%").replace("_", r"\_")
