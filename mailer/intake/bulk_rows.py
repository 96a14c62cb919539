"""The rows of a bulk send: from what an application gives to a recipient that can be stored."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mailer.content import check_json
from mailer.errors import InvalidMail
from mailer.message import Address, check_headers
from mailer.message.bulk import BulkError, OwnPart
from mailer.message.text import printable, shown
from mailer.store import NewRecipient

#: The names of the column with the address.
ADDRESS_COLUMNS = ("email", "address", "recipient")
# The other columns of a row that are no variables of the template.
_NAME, _LOCALE, _HEADERS = "recipient_name", "locale", "headers"
_LONGEST_LOCALE = 35  # RFC 5646
_LONGEST_SHOWN = 200


@dataclass(frozen=True, slots=True)
class UnreadableRow:
    """A row of a file that can't be read, beside others that can."""

    reason: str
    address: str = ""


@dataclass(frozen=True, slots=True)
class RowReader:
    """Reads the rows of a bulk send."""

    max_size: int  #: bytes of a mail
    shared_size: int  #: bytes that all mails have in common

    def read(self, row: object, number: int) -> NewRecipient | BulkError:
        """Return the recipient of a row, or the reason why there is none."""
        if isinstance(row, UnreadableRow):
            return BulkError(number, printable(row.address), printable(row.reason))
        address = ""
        try:
            given, context = _split(row)
            address = (given if isinstance(given, str) else repr(given))[:_LONGEST_SHOWN]
            to = Address.parse(given, field="recipient")
            own = _own_part(to.name, context).to_json()
            size = self.shared_size + len(own.encode())
        except UnicodeEncodeError:
            return BulkError(number, printable(address), "context: half a character (a surrogate).")
        except (InvalidMail, RecursionError) as error:
            reason = "context: it is nested too deeply." if _is_deep(error) else str(error)
            return BulkError(number, printable(address), printable(reason))
        if size > self.max_size:
            reason = f"its mail has {size} bytes, MAILER_MAX_SIZE allows {self.max_size}."
            return BulkError(number, to.email, reason)
        return NewRecipient(to.email, number, own, size)


def extend_digest(digest: str, row: NewRecipient | BulkError) -> str:
    """Return the digest of the rows up to this one."""
    said = row.own if isinstance(row, NewRecipient) else row.reason
    text = f"{digest} {row.row} {row.address} {said}"
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _split(row: object) -> tuple[Any, Mapping[str, Any]]:
    """Return the address and the context of a row."""
    columns = getattr(row, "_mapping", row)  # a Row of SQLAlchemy
    if isinstance(columns, Mapping):
        context = dict(columns)
        for column in ADDRESS_COLUMNS:
            if column in context:
                return context.pop(column), context
        raise InvalidMail(
            f"It has no column {' or '.join(ADDRESS_COLUMNS)}, but {', '.join(map(str, context))}."
        )
    if isinstance(row, (str, Address)):
        return row, {}
    if isinstance(row, (tuple, list)) and len(row) == 2 and isinstance(row[1] or {}, Mapping):
        return row[0], row[1] or {}
    raise InvalidMail(
        f"Give (address, context) or a dict with the column email, not {type(row).__name__}."
    )


def _own_part(name: str, context: Mapping[str, Any]) -> OwnPart:
    values = dict(context)
    locale, headers = values.pop(_LOCALE, None), values.pop(_HEADERS, None)
    given_name = values.pop(_NAME, None)
    if not (locale is None or (isinstance(locale, str) and len(locale) <= _LONGEST_LOCALE)):
        raise InvalidMail(f"locale: {shown(str(locale))}: give a text such as 'de' or 'pt_BR'.")
    check_json(values, "context")
    return OwnPart(values, str(given_name or name), locale or None, check_headers(headers))


def _is_deep(error: Exception) -> bool:
    return isinstance(error, RecursionError)
