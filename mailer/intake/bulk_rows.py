"""The rows of a bulk send: from what an application gives to a recipient that can be stored."""

import hashlib
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mailer.content import check_json
from mailer.errors import InvalidAddress, InvalidMail, OverLimit
from mailer.message import Address, check_headers, check_text, unset_headers
from mailer.message.bulk import BulkError, OwnPart
from mailer.message.calendar import check_zone
from mailer.message.text import printable, shown
from mailer.store import NewRecipient

#: The names of the column with the address.
ADDRESS_COLUMNS = ("email", "address", "recipient")
# The other columns of a row that are no variables of the template.
_NAME, _LOCALE, _HEADERS, _ZONE = "recipient_name", "locale", "headers", "time_zone"
_LONGEST_LOCALE = 35  # RFC 5646
_LONGEST_SHOWN = 200


@dataclass(frozen=True, slots=True)
class UnreadableRow:
    """A row of a file that can't be read, beside others that can."""

    reason: str
    address: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowReader:
    """Reads the rows of a bulk send."""

    max_size: int  #: bytes of a mail
    max_header: int  #: characters of a header
    shared_size: int  #: bytes that all mails have in common

    def read(self, row: object, number: int) -> NewRecipient | BulkError:
        """Return the recipient of a row, or the reason why there is none."""
        if isinstance(row, UnreadableRow):
            return BulkError(number, printable(row.address), printable(row.reason))
        address = ""
        try:
            given, context = _split(row)
            address = _shown(given)
            to = Address.parse(given, field="recipient")
            values = dict(context)
            if (zone := values.pop(_ZONE, None) or None) is not None:
                check_zone(zone, field=_ZONE)
            own = self._own_part(to.name, values)
            size = self.shared_size + len(own.encode())
            if size > self.max_size:
                raise OverLimit(
                    f"Its mail has {size} bytes, MAILER_MAX_SIZE allows {self.max_size}."
                )
        except UnicodeEncodeError:
            reason = "context: it has half a character (a surrogate): remove it."
        except InvalidMail as error:
            reason = str(error)
        else:
            return NewRecipient(to.email, number, own, size, zone)
        return BulkError(number, printable(address), printable(reason))

    def _own_part(self, name: str, values: dict[str, Any]) -> str:
        locale, headers = values.pop(_LOCALE, None), values.pop(_HEADERS, None)
        if (given_name := values.pop(_NAME, None)) is not None:
            name = check_text(given_name, field=_NAME, error=InvalidAddress)
        if not (locale is None or (isinstance(locale, str) and len(locale) <= _LONGEST_LOCALE)):
            raise InvalidMail(f"locale: {shown(str(locale))}: give a text such as 'de' or 'pt_BR'.")
        check_json(values, "context")
        pairs = check_headers(headers) if headers else ()
        unset = tuple((header, None) for header in unset_headers(headers))
        for field, text in ((_NAME, name), *pairs):
            if len(text) > self.max_header:
                raise OverLimit(
                    f"{field}: {len(text)} characters, MAILER_MAX_HEADER allows {self.max_header}."
                )
        return OwnPart(values, name, locale or None, (*pairs, *unset)).to_json()


def extend_digest(digest: str, row: NewRecipient | BulkError) -> str:
    """Return the digest of the rows up to this one.

    The words about a refused row do not count: they may differ from call to call, as the address
    of an object in memory does.
    """
    said = "refused"
    if isinstance(row, NewRecipient):
        said = f"{row.address} {row.own}{row.time_zone or ''}"
    return hashlib.sha256(f"{digest} {row.row} {said}".encode()).hexdigest()


def _split(row: object) -> tuple[Any, Mapping[str, Any]]:
    """Return the address and the context of a row."""
    if type(row) is tuple and len(row) == 2 and type(row[1]) is dict:
        return row  # nearly all are of this kind
    if isinstance(row, (str, Address)):
        return row, {}
    columns = getattr(row, "_mapping", row)  # a Row of SQLAlchemy
    if isinstance(columns, sqlite3.Row):
        columns = dict(zip(columns.keys(), columns, strict=True))
    if isinstance(columns, Mapping):
        context = dict(columns)
        for column in ADDRESS_COLUMNS:
            if column in context:
                return context.pop(column), context
        raise InvalidMail(
            f"It has no column {' or '.join(ADDRESS_COLUMNS)}, but {', '.join(map(str, context))}."
        )
    kind = type(row).__name__
    if isinstance(row, (tuple, list)):
        if len(row) == 2 and (row[1] is None or isinstance(row[1], Mapping)):
            return row[0], row[1] or {}
        kind += f" of {', '.join(type(one).__name__ for one in row[:9])}"
    raise InvalidMail(f"Give (address, context) or a dict with the column email, not a {kind}.")


def _shown(address: object) -> str:
    """Return an address as the report of a refused row shows it."""
    if isinstance(address, (str, Address)):
        address = str(address)
        return address if len(address) <= _LONGEST_SHOWN else f"{address[:_LONGEST_SHOWN]}…"
    return repr(address)[:_LONGEST_SHOWN]
