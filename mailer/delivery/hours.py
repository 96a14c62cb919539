"""The hours of bulk sends: the zones that are open, and mail that was claimed outside its hours."""

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from logging import Logger

from mailer.logs import get_logger
from mailer.message import Delivery
from mailer.message.calendar import Calendar, Window
from mailer.store import Store

# The calendars of so many bulk sends are kept in each process.
_KEPT = 1000
# In seconds: mail of a zone that this machine does not know is looked at again.
_UNKNOWN_FOR = 600.0

log: Logger = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class OpenZones:
    """The time zones of a bulk send that have something to do."""

    to_release: list[str]  #: open, those that close first at the front
    to_close: list[str]  #: closed, and some of their mail may be queued


class Hours:
    """Looks at the calendars of bulk sends. Threads share it."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._calendars: OrderedDict[str, Calendar | None] = OrderedDict()
        self._told = set[str]()  # problems that were logged

    def look(self, bulk_id: str, calendar: Calendar, now: float) -> OpenZones:
        """Return what to release and what to close of a send with a calendar."""
        closes, to_close = dict[str, float](), list[str]()
        for zone in self._store.load_bulk_zones(bulk_id):
            if not (zone.has_held or zone.has_queued):
                continue
            window = self._window(calendar, zone.time_zone, now)
            if window.is_open and zone.has_held:
                closes[zone.time_zone] = now if window.until is None else window.until
            elif not window.is_open and zone.has_queued:
                to_close.append(zone.time_zone)
        return OpenZones(sorted(closes, key=lambda name: closes[name]), to_close)

    def closed(self, deliveries: Iterable[Delivery], now: float) -> dict[int, float]:
        """Return until when deliveries wait that were claimed outside their hours."""
        bound = [
            (one, calendar)
            for one in deliveries
            if one.is_bulk and (calendar := self._calendar(one.mail_id)) is not None
        ]
        if not bound:
            return {}
        zones = self._store.load_zones_of([one.id for one, _calendar in bound])
        seen, waits = dict[tuple[str, str | None], Window](), dict[int, float]()
        for one, calendar in bound:
            key = one.mail_id, zones.get(one.id)
            window = seen[key] = seen.get(key) or self._window(calendar, key[1], now)
            if not window.is_open:
                waits[one.id] = now + _UNKNOWN_FOR if window.until is None else window.until
        return waits

    def _window(self, calendar: Calendar, time_zone: str | None, now: float) -> Window:
        window = calendar.window(now, time_zone)
        if window.problem and window.problem not in self._told:
            self._told.add(window.problem)
            log.error("Bulk mail is not sent: %s", window.problem)
        return window

    def _calendar(self, bulk_id: str) -> Calendar | None:
        """Return the calendar of a bulk send. Two threads may both load it."""
        try:
            return self._calendars[bulk_id]
        except KeyError:
            self._calendars[bulk_id] = loaded = self._store.load_calendar(bulk_id)
        while len(self._calendars) > _KEPT:
            self._calendars.popitem(last=False)
        return loaded
