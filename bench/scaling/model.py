"""The model behind docs/scaling.md: pure, and the same for the same seed.

A slot of a worker takes one mail after the other: processor of the worker, processor of the
database, flush of the write-ahead log, round trips to the relay. The model plays that for all slots
at once, with the costs that `measure` found, and counts how busy each resource is.
"""

import heapq
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

_WARM_UP = 0.2  # of the mails, not counted
#: A resource that is busier than this is what saturates.
_SATURATED = 0.9
_MINUTES = 24 * 60
LOG = "flushes of the WAL"


@dataclass(frozen=True, slots=True)
class Costs:
    """The seconds that one mail takes of each resource, and its bytes of WAL."""

    worker: float  #: processor
    database: float  #: processor
    flushes: float  #: of the write-ahead log that it waits for
    flush: float  #: each of them
    wal_bytes: float
    round_trips: float = 1.0  #: to the relay


@dataclass(frozen=True, slots=True)
class Site:
    """Machines, workers and a relay."""

    workers: int
    slots: int  #: of each worker
    cores: int  #: of the workers, or of everything on one machine
    database_cores: int | None = None  #: None: everything is on one machine
    round_trip: float = 0.0  #: seconds, to the relay
    connections: int | None = None  #: that the relay allows
    rate: float | None = None  #: mails a second that the relay allows


@dataclass(frozen=True, slots=True)
class Flow:
    """The mails a second of a site, and the busy share of each resource."""

    per_second: float
    busy: Mapping[str, float]

    @property
    def limit(self) -> str:
        """The resource that saturates first, or the slots, which wait for relay and log."""
        name = max(self.busy, key=lambda name: self.busy[name] * (name != LOG))
        return name if self.busy[name] > _SATURATED else "slots"


class _Resource:
    """A number of equal servers with one queue, first come, first served."""

    def __init__(self, servers: int) -> None:
        self._free_at = [0.0] * servers
        self.servers = servers
        self.busy = 0.0

    def next_free(self) -> float:
        return self._free_at[0]

    def hold(self, start: float, seconds: float) -> float:
        """Take a server from a time on. Return when it is free again."""
        heapq.heapreplace(self._free_at, start + seconds)
        self.busy += seconds
        return start + seconds


class _Log(_Resource):
    """The write-ahead log. Who comes while it is flushed waits for the next flush, with others."""

    def __init__(self) -> None:
        super().__init__(1)
        self._began = self._ends = 0.0

    def hold(self, start: float, seconds: float) -> float:
        if start <= self._began:
            return self._ends  # it shares the flush that is about to begin
        self._began = max(start, self._ends)
        self._ends = self._began + seconds
        self.busy += seconds
        return self._ends

    def next_free(self) -> float:
        return 0.0


#: The resources that a mail holds at once, and the seconds.
_Step = tuple[Sequence[_Resource], float]


def simulate(site: Site, costs: Costs, *, mails: int = 20_000, seed: int = 1) -> Flow:
    """Play a full queue, and return the flow."""
    chance = random.Random(seed)  # noqa: S311 -- a simulation
    machine = _Resource(site.cores)
    database = machine if site.database_cores is None else _Resource(site.database_cores)
    log, gate = _Log(), _Resource(1)
    total = site.workers * site.slots
    connections = _Resource(min(total, site.connections or total))
    processes = _Resource(site.workers)  # the threads of one compute one at a time

    def steps() -> Iterator[_Step]:
        """Return the resources that a mail holds, one after the other, and for how long."""
        if site.rate:
            yield (gate,), 1 / site.rate
        yield (processes, machine), chance.expovariate(1 / costs.worker)
        yield (database,), chance.expovariate(1 / costs.database)
        for _ in range(int(costs.flushes + chance.random())):
            yield (log,), costs.flush
        yield (connections,), costs.round_trips * site.round_trip

    everything = {
        "processor": machine,
        "worker processes": processes,
        "database": database,
        LOG: log,
        "relay's connections": connections,
        "relay's rate": gate,
    }
    per_second, busy = _play(total, steps, everything, mails)
    return Flow(per_second, _told(busy, site))


def _play(
    total: int,
    steps: Callable[[], Iterator[_Step]],
    everything: Mapping[str, _Resource],
    mails: int,
) -> tuple[float, dict[str, float]]:
    """Let all slots take mails until so many are sent."""
    slots = [steps() for _ in range(total)]
    agenda = [(0.0, slot) for slot in range(total)]
    sent, began, before = 0, 0.0, dict.fromkeys(everything, 0.0)
    now = 0.0
    while sent < mails:
        now, slot = heapq.heappop(agenda)
        step = next(slots[slot], None)
        if step is None:
            sent += 1
            slots[slot] = steps()
            heapq.heappush(agenda, (now, slot))
            if sent == int(mails * _WARM_UP):
                began, before = now, {name: one.busy for name, one in everything.items()}
            continue
        resources, seconds = step
        start = max(now, *(one.next_free() for one in resources))
        ends = max([one.hold(start, seconds) for one in resources])
        heapq.heappush(agenda, (ends, slot))
    seconds = now - began
    busy = {
        name: (one.busy - before[name]) / seconds / one.servers for name, one in everything.items()
    }
    return (mails - int(mails * _WARM_UP)) / seconds, busy


def _told(busy: Mapping[str, float], site: Site) -> dict[str, float]:
    """Leave out what does not limit: a slot's own process and connection, the database's share."""
    unlimited = {
        "worker processes": site.slots == 1,
        "relay's connections": site.connections is None,
        "relay's rate": site.rate is None,
        "database": site.database_cores is None,
    }
    return {name: share for name, share in busy.items() if not unlimited.get(name)}


# --- a day --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Day:
    """A day of mail at a site that delivers at most so much."""

    mails: int
    peak: float  #: mails a second in the busiest minute
    backlog: int  #: the largest number of mails that wait
    waits: float  #: seconds: the longest that a mail waits
    drained: float | None  #: minutes from the end of the outage to an empty queue, if within a day


def play_day(
    mails: int,
    capacity: float,
    curve: Sequence[float],
    *,
    outage: tuple[int, int] | None = None,
    seed: int = 1,
) -> Day:
    """Play a day minute by minute, then go on until the queue is empty.

    `curve` has the weight of each hour; `capacity` is in mails a second; `outage` has the first
    minute without a relay and the first one with it again.
    """
    chance = random.Random(seed)  # noqa: S311 -- a simulation
    down = range(*outage) if outage else range(0)
    backlog = peak = most = waits = 0.0
    drained = None
    for minute in range(2 * _MINUTES):
        expected = mails * curve[minute // 60 % 24] / sum(curve) / 60
        arrived = max(0.0, chance.normalvariate(expected, expected**0.5))  # nearly Poisson
        leaves = 0.0 if minute in down else 60 * capacity
        backlog = max(0.0, backlog + arrived - leaves)
        waits = max(waits, backlog / capacity + 60 * max(0, down.stop - minute) * (minute in down))
        peak, most = max(peak, arrived / 60), max(most, backlog)
        if outage and minute >= down.stop and drained is None and backlog == 0:
            drained = minute - down.stop + 1.0
        if minute >= _MINUTES and backlog == 0:
            break
    return Day(mails, peak, round(most), waits, drained)
