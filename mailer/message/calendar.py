"""Sending calendars: the days and hours in which the mail of a bulk send may go out.

Pure: the time is passed in. A time is inside the hours if the clocks on the wall of its zone say
so, also on the days when they are changed.
"""

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo

from mailer.errors import InvalidMail
from mailer.message.text import shown

_DAY = 86400
_NAMES = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_HOURS = re.compile(r"(\d\d):([0-5]\d)-(\d\d):([0-5]\d)", re.ASCII)
# Days in which hours may change: first those of nearly all calendars, then so many that a single
# hour of a week may be skipped when the clocks are put forward.
_NEAR, _FAR = range(-1, 4), range(-1, 18)
_KNOWN = "Europe/London"  # every copy of the database has it


@dataclass(frozen=True, slots=True)
class Window:
    """The state of a zone at a time: open or closed, and until when."""

    is_open: bool
    until: float | None = None  #: None: it never changes, or nobody knows
    problem: str = ""  #: why nobody knows: this machine has no such zone


@dataclass(frozen=True, slots=True, kw_only=True)
class Calendar:
    """The days and hours in which the mail of a bulk send may go out.

    Quiet hours are the rest: `hours="08:00-22:00"` keeps the nights quiet. Hours over midnight,
    such as `"20:00-02:00"`, belong to the day on which they begin.

    >>> from mailer import Calendar
    >>> office = Calendar(days="mon-fri", hours="09:00-18:00", time_zone="Europe/Berlin")
    >>> readers = [{"email": "ada@example.com", "name": "Ada", "time_zone": "America/New_York"}]
    >>> bulk = mailer.send_bulk("News", "mail/news", readers, calendar=office)

    Args:
        time_zone: The zone of the recipients who have none of their own, such as `"Europe/Berlin"`.
        days: Days and ranges of days: `"mon-fri"`, `"mon,wed,fri"`, `"fri-mon"`.
        hours: From and to, in 24 hours: `"09:00-18:00"`, `"20:00-02:00"`, `"08:00-24:00"`.

    Raises:
        InvalidMail: One of the three can't be used, or is never open.
    """

    time_zone: str
    days: str = "mon-sun"
    hours: str = "00:00-24:00"
    _days: frozenset[int] = field(init=False, repr=False, compare=False)
    _opens: int = field(init=False, repr=False, compare=False)
    _closes: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_zone(self.time_zone, field="calendar: time_zone")
        self._read()

    def _read(self) -> None:
        opens, closes = _read_hours(self.hours)
        for name, value in (
            ("_days", _read_days(self.days)),
            ("_opens", opens),
            ("_closes", closes),
        ):
            object.__setattr__(self, name, value)

    def is_open(self, at: datetime, time_zone: str | None = None) -> bool:
        """Return whether mail may go out at a time to a recipient in a zone.

        >>> from datetime import UTC, datetime
        >>> from mailer import Calendar
        >>> office = Calendar(days="mon-fri", hours="09:00-18:00", time_zone="Europe/Berlin")
        >>> evening = datetime(2026, 11, 27, 18, 30, tzinfo=UTC)
        >>> office.is_open(evening), office.is_open(evening, "America/New_York")
        (False, True)

        Args:
            at: The time, with a time zone.
            time_zone: The zone of the recipient. None: that of the calendar.

        Raises:
            InvalidMail: The time has no zone, or there is no such zone.
        """
        zone = self.time_zone if time_zone is None else time_zone
        check_zone(zone, field="time_zone")
        if at.utcoffset() is None:
            raise InvalidMail(f"at: {at!r}: give a datetime with a time zone: datetime.now(UTC).")
        return self._is_open(at.timestamp(), ZoneInfo(zone))

    def window(self, now: float, time_zone: str | None = None) -> Window:
        """Return whether the hours of a zone are open, and when that changes."""
        name = time_zone or self.time_zone
        zone = _find_zone(name)
        if zone is None:
            return Window(is_open=False, problem=_not_found(name, "time_zone"))
        is_open = self._is_open(now, zone)
        for days in (_NEAR, _FAR):
            for moment in _changes(self, zone, int(now // _DAY), days):
                if moment > now and self._is_open(moment, zone) is not is_open:
                    return Window(is_open, moment)
        return Window(is_open)

    def opens_at(self, now: float) -> float | None:
        """Return the first time from now on that is open in the zone of the calendar."""
        found = self.window(now)
        return now if found.is_open else found.until

    def _is_open(self, at: float, zone: ZoneInfo) -> bool:
        local = datetime.fromtimestamp(at, zone)
        seconds = local.hour * 3600 + local.minute * 60 + local.second
        is_day, day = local.weekday() in self._days, local.weekday()
        if self._opens < self._closes:
            return is_day and self._opens <= seconds < self._closes
        is_night = (day - 1) % 7 in self._days
        return (is_day and seconds >= self._opens) or (is_night and seconds < self._closes)

    def _changes_of(self, day: date, zone: ZoneInfo) -> Iterator[float]:
        """Yield the times at which the hours of a day may begin or end."""
        midnight = datetime(day.year, day.month, day.day)  # noqa: DTZ001 -- of each zone
        for seconds in (self._opens, self._closes):
            wall = (midnight + timedelta(seconds=seconds)).replace(tzinfo=zone)
            # An hour that comes twice begins and ends twice.
            yield from (wall.timestamp(), wall.replace(fold=1).timestamp())

    # --- storage ---------------------------------------------------------------------------------

    def to_json(self) -> str:
        """Return the calendar as JSON."""
        return json.dumps({"time_zone": self.time_zone, "days": self.days, "hours": self.hours})

    @classmethod
    def from_json(cls, text: str) -> "Calendar":
        """Return the calendar that `to_json` wrote. This machine may not have its zone."""
        made: Calendar = object.__new__(cls)
        for name, value in json.loads(text).items():
            object.__setattr__(made, name, value)
        made._read()
        return made


def check_zone(given: object, *, field: str) -> str:
    """Return the name of a time zone. Raise `InvalidMail` if there is none of this name."""
    if not isinstance(given, str) or not given:
        raise InvalidMail(f"{field}: {given!r}: give a name such as 'Europe/Berlin'.")
    if _find_zone(given) is None:
        raise InvalidMail(_not_found(given, field))
    return given


def _not_found(name: str, field: str) -> str:
    if _find_zone(_KNOWN) is None:
        return (
            f"{field}: {shown(name)} is not found, since this Python has no time zones: install"
            " the package tzdata."
        )
    return f"{field}: {shown(name)}: there is no such time zone: give one such as 'Europe/Berlin'."


def _find_zone(name: str) -> ZoneInfo | None:
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):  # it is part of the name of a file, or a folder
        return None


def _read_days(given: str) -> frozenset[int]:
    days = set[int]()
    for part in given.lower().split(",") if isinstance(given, str) else [""]:
        ends = [word.strip() for word in part.split("-")]
        if len(ends) > 2 or not set(ends) <= set(_NAMES):
            break
        begin, end = _NAMES.index(ends[0]), _NAMES.index(ends[-1])
        days |= {(begin + step) % 7 for step in range((end - begin) % 7 + 1)}
    else:
        return frozenset(days)
    raise InvalidMail(
        f"calendar: days: {given!r}: give days such as 'mon-fri' or 'mon,wed,sat'. The days are"
        f" {', '.join(_NAMES)}."
    )


def _read_hours(given: str) -> tuple[int, int]:
    """Return the seconds since midnight at which the hours begin and end."""
    found = _HOURS.fullmatch(given) if isinstance(given, str) else None
    if found:
        hour, minute, to_hour, to_minute = map(int, found.groups())
        opens, closes = 60 * (60 * hour + minute), 60 * (60 * to_hour + to_minute)
        if opens < _DAY and closes <= _DAY:
            if opens == closes:
                raise InvalidMail(
                    f"calendar: hours: {given!r} are never open: give two times that differ, or"
                    " '00:00-24:00' for the whole day."
                )
            return opens, closes
    raise InvalidMail(
        f"calendar: hours: {given!r}: give from and to, such as '09:00-18:00' or '20:00-02:00'."
    )


@lru_cache(4096)  # a sweep asks about the same zones each second
def _changes(calendar: Calendar, zone: ZoneInfo, today: int, days: range) -> list[float]:
    """Return the times, in order, at which the hours of days around one may begin or end."""
    noon, found = today * _DAY + _DAY // 2, set[float]()
    with suppress(OverflowError, ValueError):  # the calendar of Python ends
        first = datetime.fromtimestamp(noon, zone).date()
        for day in days:
            moments = calendar._changes_of(first + timedelta(days=day), zone)  # noqa: SLF001 -- ours
            found.update(moments)
        found.update(_changes_of_clocks(noon, days, zone))
    return sorted(found)


def _changes_of_clocks(noon: int, days: range, zone: ZoneInfo) -> Iterator[float]:
    """Yield the times, in these days around one, at which the clocks of a zone are changed."""

    def offset(at: float) -> timedelta | None:
        return datetime.fromtimestamp(at, zone).utcoffset()

    for day in days:
        low, high = noon + day * _DAY, noon + (day + 1) * _DAY
        if offset(low) == offset(high):
            continue
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if offset(middle) == offset(low) else (low, middle)
        yield float(high)
