"""The headers that an application adds to a mail, checked."""

import re
from collections.abc import Mapping
from typing import Any

from mailer.errors import InvalidHeader
from mailer.message.addresses import Address
from mailer.message.text import check_text, shown

#: The only header of an application that holds a mailbox.
SENDER = "sender"
#: The headers that tell other programs that a program sent the mail. Mailer may add them.
MACHINE_HEADERS = ("Auto-Submitted", "X-Auto-Response-Suppress", "Precedence", "Feedback-ID")
HEADER_NAME = re.compile(r"[A-Za-z0-9-]{1,64}")
_OURS = frozenset(
    (
        "from to cc bcc reply-to subject date message-id mime-version return-path received"
        " dkim-signature"
    ).split()
)
_CAN_BE_NONE = frozenset(name.lower() for name in MACHINE_HEADERS)


def check_headers(headers: Mapping[str, str | None] | None) -> tuple[tuple[str, str], ...]:
    """Return the pairs of a dict of headers. Refuse headers that Mailer writes itself.

    `Sender` is the mailbox of the person or program that sends for the author in `From`. A machine
    header that is None is left out.
    """
    if not isinstance(headers or {}, Mapping):
        raise InvalidHeader(
            f"headers: {headers!r}: give a dict, such as {{'List-Id': 'news.example.com'}}."
        )
    return tuple(
        _check_header(name, value)
        for name, value in (headers or {}).items()
        if not _is_unset(name, value)
    )


def unset_headers(headers: Mapping[str, str | None] | None) -> tuple[str, ...]:
    """Return the names of the machine headers that are None: this mail gets none of that name."""
    return tuple(name for name, value in (headers or {}).items() if _is_unset(name, value))


def _is_unset(name: object, value: str | None) -> bool:
    return value is None and isinstance(name, str) and name.lower() in _CAN_BE_NONE


def _check_header(name: str, value: Any) -> tuple[str, str]:
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
