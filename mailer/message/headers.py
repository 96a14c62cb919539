"""The headers that an application adds to a mail, checked."""

import re
from collections.abc import Mapping

from mailer.errors import InvalidHeader
from mailer.message.addresses import Address
from mailer.message.text import check_text, shown

#: The only header of an application that holds a mailbox.
SENDER = "sender"
HEADER_NAME = re.compile(r"[A-Za-z0-9-]{1,64}")
_OURS = frozenset(
    (
        "from to cc bcc reply-to subject date message-id mime-version return-path received"
        " dkim-signature"
    ).split()
)


def check_headers(headers: Mapping[str, str] | None) -> tuple[tuple[str, str], ...]:
    """Return the pairs of a dict of headers. Refuse headers that Mailer writes itself.

    `Sender` is the mailbox of the person or program that sends for the author in `From`.
    """
    if not isinstance(headers or {}, Mapping):
        raise InvalidHeader(
            f"headers: {headers!r}: give a dict, such as {{'List-Id': 'news.example.com'}}."
        )
    return tuple(_check_header(name, value) for name, value in (headers or {}).items())


def _check_header(name: str, value: str) -> tuple[str, str]:
    if not isinstance(name, str) or not HEADER_NAME.fullmatch(name):
        raise InvalidHeader(
            f"headers: {shown(name)} is no header name: use letters, digits and hyphens, 64 at"
            " most."
        )
    if name.lower() in _OURS or name.lower().startswith(("content-", "resent-")):
        raise InvalidHeader(
            f"headers: {name!r} is written by Mailer: use the argument of that name, if there is"
            " one."
        )
    field = f"headers[{name!r}]"
    if name.lower() == SENDER:
        return name, str(Address.parse(value, field=field))
    return name, check_text(value, field=field, quoted=False)
