"""Criteria for recorded mails, and the differences of a mail that does not meet them."""

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, TypedDict, cast

from mailer.message import AddressLike, Lane, parse_addresses
from mailer.testing.mails import RecordedMail

Text = str | re.Pattern[str]


class Criteria(TypedDict, total=False):
    """The criteria of `assert_sent()` and the like. A mail has to meet all that are given.

    >>> from mailer.testing import Criteria
    >>> welcome: Criteria = {"template": "mail/welcome", "tags": "onboarding"}
    >>> with Outbox(app) as outbox:
    ...     receipt = mailer.send_email(
    ...         "ada@example.com", "Welcome", "mail/welcome", name="Ada", tags=["onboarding", "eu"]
    ...     )
    >>> mail = outbox.assert_sent(**welcome)
    """

    #: Addresses that must be among the recipients in `To`; likewise `cc`, `bcc` and `reply_to`.
    to: AddressLike | Iterable[AddressLike]
    cc: AddressLike | Iterable[AddressLike]
    bcc: AddressLike | Iterable[AddressLike]
    reply_to: AddressLike | Iterable[AddressLike]
    sender: AddressLike
    #: The whole subject, or a compiled regular expression to find in it.
    subject: Text
    #: A part of the text, or a compiled regular expression to find in it.
    text: Text
    #: A part of the html, or a compiled regular expression to find in it.
    html: Text
    template: str
    #: Variables that the call must have had, with these values. There may be more.
    context: Mapping[str, Any]
    #: Headers that the call must have had, with these values.
    headers: Mapping[str, Text]
    #: File names that must be among those of the attachments.
    attachments: str | Iterable[str]
    lane: Lane | str
    tenant: str
    #: Tags that must be among those of the mail.
    tags: str | Iterable[str]
    #: Metadata that the mail must have. There may be more.
    metadata: Mapping[str, str]


def checked(criteria: Criteria) -> Criteria:
    """Return the criteria, to compare with several mails: with a list for each iterator.

    Raise `TypeError` for a criterion that does not exist, and `ValueError` for one that asks for
    nothing.
    """
    unknown = sorted(criteria.keys() - _CHECKS.keys())
    if unknown:
        raise TypeError(
            f"{', '.join(unknown)}: there is no such criterion. There are {', '.join(_CHECKS)}."
        )
    found: dict[str, Any] = {
        name: [*wanted] if isinstance(wanted, Iterator) else wanted
        for name, wanted in criteria.items()
    }
    for name, wanted in found.items():
        if name in ("text", "html") and wanted == "":
            raise ValueError(f"{name}='' asks for nothing, since each mail contains it.")
        if isinstance(wanted, Collection) and not wanted and not isinstance(wanted, str):
            raise ValueError(f"{name}={wanted!r} asks for nothing: name at least one.")
    return cast(Criteria, found)


def differences(mail: RecordedMail, criteria: Criteria) -> list[str]:
    """Return, for each criterion that a mail does not meet, how it differs."""
    found = [_CHECKS[name](name, mail, wanted) for name, wanted in criteria.items()]
    return [one for one in found if one is not None]


def _addresses(name: str, mail: RecordedMail, wanted: Any) -> str | None:
    actual = [getattr(mail, name)] if name == "sender" else getattr(mail, name)
    have = {one.email.lower() for one in parse_addresses(actual, field=name)}
    need = {one.email.lower() for one in parse_addresses(wanted, field=name)}
    return None if need and need <= have else _differs(name, getattr(mail, name), wanted)


def _exact(name: str, mail: RecordedMail, wanted: Any) -> str | None:
    actual = getattr(mail, name)
    return None if _equals(actual, wanted) else _differs(name, actual, wanted)


def _contained(name: str, mail: RecordedMail, wanted: Any) -> str | None:
    actual = getattr(mail, name) or ""
    is_there = wanted in actual if isinstance(wanted, str) else _equals(actual, wanted)
    return None if is_there else f"{name} does not contain {_shown(wanted)}: {_shown(actual)}"


def _lane(name: str, mail: RecordedMail, wanted: Any) -> str | None:
    lane = Lane.parse(wanted)
    if mail.lane is lane:
        return None
    return _differs(name, mail.lane.name.lower(), lane.name.lower())


def _pairs(name: str, mail: RecordedMail, wanted: Mapping[str, Any]) -> str | None:
    actual: Mapping[str, Any] = getattr(mail, name)
    if name == "headers":
        actual = {key.lower(): value for key, value in actual.items()}
        wanted = {key.lower(): value for key, value in wanted.items()}
    wrong = [
        f"{name}[{key!r}] is {_shown(actual[key])}, not {_shown(value)}"
        if key in actual
        else f"{name} has no {key!r}"
        for key, value in wanted.items()
        if key not in actual or not _equals(actual[key], value)
    ]
    return ", ".join(wrong) or None


def _listed(name: str, mail: RecordedMail, wanted: Any) -> str | None:
    actual = getattr(mail, name)
    have = [one.filename for one in actual] if name == "attachments" else list(actual)
    need = [wanted] if isinstance(wanted, str) else [*wanted]
    return None if set(need) <= set(have) else _differs(name, have, wanted)


_CHECKS: Mapping[str, Callable[[str, RecordedMail, Any], str | None]] = {
    **dict.fromkeys(("to", "cc", "bcc", "reply_to", "sender"), _addresses),
    "subject": _exact,
    **dict.fromkeys(("text", "html"), _contained),
    "template": _exact,
    **dict.fromkeys(("context", "headers", "metadata"), _pairs),
    "attachments": _listed,
    "lane": _lane,
    "tenant": _exact,
    "tags": _listed,
}


def _equals(actual: Any, wanted: Any) -> bool:
    if isinstance(wanted, re.Pattern):
        return isinstance(actual, str) and wanted.search(actual) is not None
    return bool(actual == wanted)


def _differs(name: str, actual: object, wanted: object) -> str:
    return f"{name} is {_shown(actual)}, not {_shown(wanted)}"


# --- words --------------------------------------------------------------------------------------

_SHOWN = 200


def _shown(value: object) -> str:
    text = f"re.compile({value.pattern!r})" if isinstance(value, re.Pattern) else repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def in_words(criteria: Criteria) -> str:
    """Return criteria as they stand in a call."""
    return ", ".join(f"{name}={_shown(wanted)}" for name, wanted in criteria.items())


def describe(mail: RecordedMail) -> str:
    """Return a mail on one line: its recipients, its subject and how it was made."""
    people = {"to": mail.to, "cc": mail.cc, "bcc": mail.bcc}
    made = {
        "template": mail.template,
        "context": dict(mail.context),
        "attachments": [one.filename for one in mail.attachments],
        "lane": "" if mail.lane is Lane.NORMAL else mail.lane.name.lower(),
        "tenant": mail.tenant,
        "tags": [*mail.tags],
    }
    return " ".join(
        [
            *(f"{name} {', '.join(given)}" for name, given in people.items() if given),
            repr(mail.subject),
            *(f"{name}={_shown(value)}" for name, value in made.items() if value),
        ]
    )
