"""The hours of a calendar, also on the days when clocks are changed."""

import subprocess
import sys
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailer import Calendar, InvalidMail
from mailer.message.bulk import BulkZone, Wait, wait_of
from mailer.message.calendar import Window, check_zone

OFFICE = Calendar(days="mon-fri", hours="09:00-18:00", time_zone="Europe/Berlin")
NIGHT = Calendar(days="fri", hours="20:00-02:00", time_zone="Europe/Berlin")
ZONES = (
    "Europe/Berlin America/New_York Asia/Kathmandu Pacific/Kiritimati Pacific/Pago_Pago"
    " Australia/Lord_Howe Africa/Casablanca America/Havana Pacific/Apia Asia/Tehran UTC"
).split()
HOUR, DAY = 3600, 86400


def at(text: str, zone: str = "Europe/Berlin", fold: int = 0) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone), fold=fold).timestamp()


def utc(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


# --- what it says -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("calendar", "now", "expected"),
    [
        (OFFICE, "2026-11-27 08:59:59", (False, "2026-11-27 09:00")),
        (OFFICE, "2026-11-27 09:00", (True, "2026-11-27 18:00")),
        (OFFICE, "2026-11-27 18:00", (False, "2026-11-30 09:00")),
        (NIGHT, "2026-11-27 19:00", (False, "2026-11-27 20:00")),
        (NIGHT, "2026-11-28 01:59", (True, "2026-11-28 02:00")),
        (NIGHT, "2026-11-28 20:00", (False, "2026-12-04 20:00")),
        (NIGHT, "2026-11-27 01:00", (False, "2026-11-27 20:00")),
    ],
)
def test_a_window(calendar: Calendar, now: str, expected: tuple[bool, str]) -> None:
    """Hours begin with their first second; those over midnight belong to the day before."""
    assert calendar.window(at(now)) == Window(expected[0], at(expected[1]))


@pytest.mark.parametrize(
    ("days", "open_on"),
    [
        ("mon-fri", "0 1 2 3 4"),
        ("fri-mon", "4 5 6 0"),
        ("Mon, wed ,SAT", "0 2 5"),
        ("sun", "6"),
        ("sat-sun,wed", "5 6 2"),
    ],
)
def test_days(days: str, open_on: str) -> None:
    """Days are names and ranges, which may go over the end of the week."""
    calendar = Calendar(days=days, time_zone="UTC")
    monday = utc("2026-11-23 12:00")

    assert {day for day in range(7) if calendar.window(monday + day * DAY).is_open} == {
        int(day) for day in open_on.split()
    }


def test_a_calendar_without_limits_never_closes() -> None:
    """Seven whole days are open for ever."""
    assert Calendar(time_zone="UTC").window(0.0) == Window(is_open=True)


def test_the_hours_of_another_zone() -> None:
    """A recipient's own zone counts, with the days that it has."""
    evening = utc("2026-11-27 23:30")
    friday = Calendar(days="fri", time_zone="Europe/Berlin")

    assert not friday.window(evening).is_open
    assert friday.window(evening, "America/New_York").is_open
    assert friday.window(utc("2026-11-26 10:30"), "Pacific/Kiritimati").is_open
    assert friday.window(utc("2026-11-28 10:30"), "Pacific/Pago_Pago").is_open


# --- clocks that are changed --------------------------------------------------------------------


def test_hours_that_begin_in_a_gap() -> None:
    """Hours that begin while the clocks are put forward begin at that moment."""
    calendar = Calendar(hours="02:30-04:00", time_zone="Europe/Berlin")
    gap = utc("2026-03-29 01:00")

    assert calendar.window(gap - HOUR) == Window(is_open=False, until=gap)
    assert calendar.window(gap) == Window(is_open=True, until=at("2026-03-29 04:00"))


def test_hours_that_end_in_a_gap() -> None:
    """Hours that end while the clocks are put forward end at that moment."""
    calendar = Calendar(hours="01:00-02:30", time_zone="Europe/Berlin")

    assert calendar.window(at("2026-03-29 01:30")).until == utc("2026-03-29 01:00")


def test_hours_within_a_gap() -> None:
    """Hours that a day does not have are left out."""
    calendar = Calendar(days="sun", hours="02:15-02:45", time_zone="Europe/Berlin")

    assert calendar.window(at("2026-03-23 12:00")).until == at("2026-04-05 02:15")


def test_hours_in_a_fold() -> None:
    """An hour that comes twice is open twice."""
    calendar = Calendar(hours="02:15-02:45", time_zone="Europe/Berlin")
    moment, ends = at("2026-10-25 00:00"), list[float]()
    for _change in range(4):
        moment = calendar.window(moment).until or 0.0
        ends.append(moment)

    assert ends == [
        at(f"2026-10-25 02:{minute}", fold=fold) for fold in (0, 1) for minute in (15, 45)
    ]


@given(
    now=st.integers(int(utc("2009-01-01")), int(utc("2030-01-01"))),
    zone=st.sampled_from(ZONES),
    opens=st.integers(0, 95),
    closes=st.integers(0, 96),
    first=st.integers(0, 6),
    last=st.integers(0, 6),
)
def test_nothing_changes_before_until(
    now: int, zone: str, opens: int, closes: int, first: int, last: int
) -> None:
    """`until` is the first change, and what is open is so by the clocks of the zone."""
    if opens == closes:
        closes += 1
    hours = "-".join(f"{one // 4:02}:{one % 4 * 15:02}" for one in (opens, closes))
    names = "mon tue wed thu fri sat sun".split()
    calendar = Calendar(days=f"{names[first]}-{names[last]}", hours=hours, time_zone=zone)
    window = calendar.window(now)

    def is_open(moment: float) -> bool:
        local = datetime.fromtimestamp(moment, ZoneInfo(zone))
        minutes, days = 60 * local.hour + local.minute, (last - first) % 7
        today, yesterday = ((local.weekday() - back - first) % 7 <= days for back in (0, 1))
        if opens < closes:
            return today and 15 * opens <= minutes < 15 * closes
        return (today and minutes >= 15 * opens) or (yesterday and minutes < 15 * closes)

    assert window.is_open is is_open(now)
    until = window.until if window.until is not None else now + 20 * DAY
    steps = range(now + 900 - now % 900, int(until), 900)
    assert all(is_open(moment) is window.is_open for moment in steps)
    if window.until is not None:
        assert until > now
        assert is_open(until) is not window.is_open
        assert is_open(until - 1) is window.is_open


def test_the_end_of_time() -> None:
    """A time near the end of Python's calendar is no error."""
    assert OFFICE.window(datetime(9999, 12, 31, 20, tzinfo=UTC).timestamp()).until is None


# --- what can't be used -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"hours": "9-18"}, "calendar: hours: '9-18': give from and to, such as '09:00-18:00'"),
        ({"hours": "09:00-24:01"}, "calendar: hours"),
        ({"hours": "24:00-02:00"}, "calendar: hours"),
        ({"hours": "09:60-10:00"}, "calendar: hours"),
        ({"hours": ("09:00", "18:00")}, "calendar: hours"),
        ({"hours": "09:00-09:00"}, "hours: '09:00-09:00' are never open"),
        ({"days": ""}, "calendar: days: '': give days such as 'mon-fri'"),
        ({"days": "monday"}, "calendar: days"),
        ({"days": "mon-"}, "calendar: days"),
        ({"days": "mon-wed-fri"}, "calendar: days"),
        ({"days": ["mon"]}, "calendar: days"),
        ({"time_zone": "Europe/Berln"}, "time_zone: 'Europe/Berln': there is no such time zone"),
        ({"time_zone": ""}, "calendar: time_zone: '': give a name such as 'Europe/Berlin'"),
        ({"time_zone": ZoneInfo("UTC")}, "calendar: time_zone"),
    ],
)
def test_a_calendar_that_can_not_be_used(changes: dict[str, object], said: str) -> None:
    """Days, hours and zones that nobody understands are refused with an example."""
    given: dict[str, object] = {"time_zone": "Europe/Berlin", **changes}
    with pytest.raises(InvalidMail, match=said.replace("(", r"\(")):
        Calendar(**given)  # type: ignore[arg-type]  # the mistake


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "/etc/localtime", "Europe", "a" * 5000, "\x00", "\ud800", 5, None]
)
def test_names_that_are_no_zone(name: object) -> None:
    """A name from a file of recipients reads no other file, and is no other error."""
    with pytest.raises(InvalidMail, match="time_zone: "):
        check_zone(name, field="time_zone")


def test_a_machine_without_time_zones() -> None:
    """Without time zones, the error names the package to install."""
    program = """
import sys
sys.modules["tzdata"] = None
from mailer import Calendar, InvalidMail
try:
    Calendar(time_zone="Europe/Berlin")
except InvalidMail as error:
    print(error)
stored = Calendar.from_json('{"time_zone": "Europe/Berlin", "days": "fri", "hours": "09:00-10:00"}')
print(stored.window(0.0))
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONTZPATH": "", "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )

    refused, window = done.stdout.splitlines()
    assert "this Python has no time zones: install the package tzdata" in refused
    assert "is_open=False" in window
    assert "install the package tzdata" in window


def test_a_time_without_a_zone() -> None:
    """`is_open()` takes a time with a zone."""
    with pytest.raises(InvalidMail, match=r"at: .*give a datetime with a time zone"):
        OFFICE.is_open(datetime(2026, 11, 27, 10))  # noqa: DTZ001 -- the mistake
    with pytest.raises(InvalidMail, match="there is no such time zone"):
        OFFICE.is_open(datetime.now(UTC), "Nowhere")


def test_it_comes_back_as_it_was_stored() -> None:
    """A stored calendar is read as the same one."""
    assert Calendar.from_json(NIGHT.to_json()) == NIGHT
    assert Calendar.from_json(NIGHT.to_json()).window(0.0) == NIGHT.window(0.0)


# --- why a send waits ---------------------------------------------------------------------------

NOON = at("2026-11-27 12:00")


def zone(name: str, *, has_held: bool = True) -> BulkZone:
    return BulkZone(name, has_held, has_queued=False)


@pytest.mark.parametrize(
    ("now", "expires_at", "zones", "expected"),
    [
        (NOON - 1, None, [zone("Europe/Berlin")], Wait("it waits for its time", NOON)),
        (NOON, None, [zone("Europe/Berlin")], None),
        (NOON + 12 * HOUR, None, [], None),
        (
            NOON + 12 * HOUR,
            None,
            [zone("Europe/Berlin"), zone("Asia/Tokyo")],
            Wait("it waits for its hours: mon-fri 09:00-18:00", utc("2026-11-30 00:00")),
        ),
        (NOON + 6 * HOUR, None, [zone("Europe/Berlin"), zone("America/New_York")], None),
        (
            NOON + 6 * HOUR,
            None,
            [zone("Europe/Berlin"), zone("America/New_York", has_held=False)],
            Wait("it waits for its hours: mon-fri 09:00-18:00", at("2026-11-30 09:00")),
        ),
        (NOON + 12 * HOUR, NOON + 12 * HOUR, [zone("Europe/Berlin")], None),
    ],
)
def test_why_a_send_waits(
    now: float, expires_at: float | None, zones: list[BulkZone], expected: Wait | None
) -> None:
    """A send waits if no zone with recipients is open; mail that has expired waits for nothing."""
    assert wait_of(now, NOON, expires_at, OFFICE, zones) == expected
