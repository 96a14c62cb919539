"""The plain arguments of a call, checked: times, flags, lists of texts."""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import TypeVar

from mailer.errors import InvalidMail, OverLimit
from mailer.message import OnDoubt, check_text
from mailer.policy import NO_TENANT, OTHER_TENANTS

Item = TypeVar("Item")
When = datetime | timedelta | None
#: Seconds during which a mail can be taken back. None: as the settings say.
Undo = timedelta | float | None

_MAX_UNDO = 30 * 86400
# Characters of all names and values together.
_MAX_METADATA = 10_000
_MAX_TENANT = 200


def check_on_doubt(given: OnDoubt | str) -> OnDoubt:
    try:
        return OnDoubt(given)
    except ValueError:
        raise InvalidMail(f"on_doubt: {given!r}: use 'resend' or 'hold'.") from None


def check_sensitive(given: bool) -> bool:
    if not isinstance(given, bool):
        raise InvalidMail(f"sensitive: {given!r}: use True or False.")
    return given


def check_tenant(given: str | None) -> str:
    """Return the name of a tenant, or an empty one for mail without a tenant."""
    if given is None:
        return NO_TENANT
    name = check_text(given, field="tenant", error=InvalidMail)
    if not name or len(name) > _MAX_TENANT or name == OTHER_TENANTS:
        raise InvalidMail(
            f"tenant: {name[:_MAX_TENANT]!r}: give a name of 1 to {_MAX_TENANT} characters, such"
            f" as an id, or leave it out. {OTHER_TENANTS!r} means all others in settings."
        )
    return name


def check_time(given: When, now: float, *, field: str) -> float | None:
    """Return a time in seconds since 1970, or None if none is given."""
    if given is None:
        return None
    if isinstance(given, timedelta):
        seconds = now + given.total_seconds()
    elif isinstance(given, datetime) and given.utcoffset() is not None:
        seconds = given.timestamp()
    else:
        raise InvalidMail(
            f"{field}: {given!r}: give a timedelta, or a datetime with a time zone:"
            " datetime.now(UTC) + …"
        )
    return check_year(seconds, field=field)


def check_undo(given: Undo) -> float | None:
    """Return the seconds of an undo window, or None if none is given."""
    if given is None:
        return None
    seconds = given.total_seconds() if isinstance(given, timedelta) else given
    is_number = isinstance(seconds, (int, float)) and not isinstance(seconds, bool)
    if not is_number or not 0 <= seconds <= _MAX_UNDO:
        raise InvalidMail(
            f"undo: {given!r}: give seconds, from 0 (no window) to {_MAX_UNDO}, or a timedelta."
        )
    return float(seconds)


def check_year(seconds: float, *, field: str) -> float:
    try:
        datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError):
        raise InvalidMail(
            f"{field}: {seconds!r} seconds since 1970 are in no year from 1 to 9999."
        ) from None
    return seconds


def check_tags(given: Iterable[str] | None) -> tuple[str, ...]:
    return tuple(
        check_text(tag, field="tags", error=InvalidMail)
        for tag in check_iterable(given, field="tags", of="texts")
    )


def check_metadata(given: Mapping[str, str] | None) -> tuple[tuple[str, str], ...]:
    """Return the pairs of a dict of short texts."""
    if not isinstance(given or {}, Mapping):
        raise InvalidMail(f"metadata: give a dict of texts, not {type(given).__name__}.")
    pairs = tuple((given or {}).items())
    for name, value in pairs:
        if not (isinstance(name, str) and isinstance(value, str)):
            wrong = value if isinstance(name, str) else name
            raise InvalidMail(f"metadata: {name!r}: give texts, not {type(wrong).__name__}.")
        check_text(name, field="metadata", error=InvalidMail)
        check_text(value, field=f"metadata: {name}", error=InvalidMail)
    if (size := sum(len(name) + len(value) for name, value in pairs)) > _MAX_METADATA:
        raise OverLimit(
            f"metadata: {size} characters: give {_MAX_METADATA} at most, such as an id."
        )
    return pairs


def check_iterable(given: Iterable[Item] | None, *, field: str, of: str) -> Iterable[Item]:
    """Return the items. Refuse a text, whose letters would be items."""
    if given is None:
        return ()
    if isinstance(given, (str, bytes, Mapping)) or not isinstance(given, Iterable):
        raise InvalidMail(f"{field}: give a list of {of}, not {type(given).__name__}.")
    return given
