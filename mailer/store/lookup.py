"""The lookup of a mail by its id, the beginning of its id, or the number of a delivery.

For `flask mail` only. Anybody can guess the beginning of an id, which is a time, and the number of
a delivery: a page that took them from its visitors would show other people's mail.
"""

import re

from mailer.errors import UnknownMail
from mailer.message import could_be_id, is_bulk_id
from mailer.store.callers import ARE_THERE
from mailer.store.collation import id_by_byte
from mailer.store.sql import packed
from mailer.store.transactions import Transaction

BEGINS_WITH = """
SELECT id FROM mailer_message
WHERE {id_by_byte} >= :beginning AND {id_by_byte} < :end
LIMIT :most
"""
MAIL_OF = "SELECT mail_id FROM mailer_delivery WHERE id = :id"

#: The beginning of an id: at least eight characters, as in the documentation.
_BEGINNING = re.compile(r"[0-9a-f]{8,31}")
#: A number that fits into BIGINT. Unlike an id, until the year 2527, it does not begin with a zero.
_NUMBER = re.compile(r"[1-9][0-9]{0,17}")
_CANDIDATES = 10


def find_mail(transaction: Transaction, given: str) -> str:
    """Return the id of the mail that is meant. Raise `UnknownMail` for none, or more than one."""
    if could_be_id(given) and transaction.execute(ARE_THERE, {"mails": packed([given])}):
        return given
    found = sorted(_candidates(transaction, given))
    if not found:
        raise unknown(given)
    if len(found) > 1:
        shown = ", ".join(found[:_CANDIDATES]) + (", …" if len(found) > _CANDIDATES else "")
        raise UnknownMail(
            f"{given!r} may be any of these mails: {shown}. Give the whole id, or more of it."
        )
    return found[0]


def unknown(given: object) -> UnknownMail:
    """Make the error for an id that no mail has."""
    if isinstance(given, str) and is_bulk_id(given):
        return UnknownMail(f"{given!r} is a bulk send: see mailer.bulk({given!r}).")
    shown = repr(given)
    shown = shown if len(shown) <= 80 else f"{shown[:80]}…"
    return UnknownMail(
        f"No mail has the id {shown}: it was never queued here, or it has been purged."
    )


def _candidates(transaction: Transaction, given: str) -> set[str]:
    found: set[str] = set()
    if _BEGINNING.fullmatch(beginning := given.removesuffix("…").removesuffix("...")):
        statement = BEGINS_WITH.replace("{id_by_byte}", id_by_byte(transaction))
        # "g" comes after all hex digits.
        values = {"beginning": beginning, "end": f"{beginning}g", "most": _CANDIDATES + 1}
        found.update(mail_id for (mail_id,) in transaction.execute(statement, values))
    if _NUMBER.fullmatch(given):
        found.update(mail_id for (mail_id,) in transaction.execute(MAIL_OF, {"id": int(given)}))
    return found
