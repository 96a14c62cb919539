"""The tables of docs/scaling.md, from the measurements and the model."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import starmap
from pathlib import Path
from typing import Any

from bench.program import PROJECT
from bench.report import RESULTS, number
from bench.scaling import vacuum
from bench.scaling.measure import FILE
from bench.scaling.model import Costs, Day, Flow, Site, play_day, simulate

PAGE = PROJECT / "docs" / "scaling.md"

#: The weight of each hour of the day: a shop's. The busiest hour has twice the average.
CURVE = (1, 1, 1, 1, 1, 2, 3, 5, 8, 10, 10, 9, 8, 8, 8, 8, 8, 7, 6, 5, 4, 3, 2, 1)
#: The relay is gone for two hours from the busiest one on.
OUTAGE = (9 * 60, 11 * 60)
#: Seconds to the relay, which is that of a provider in another country.
ROUND_TRIP = 0.1

SITES = {
    10**5: Site(workers=1, slots=8, cores=2, round_trip=ROUND_TRIP),
    10**6: Site(workers=1, slots=16, cores=2, round_trip=ROUND_TRIP),
    10**7: Site(workers=4, slots=16, cores=4, database_cores=4, round_trip=ROUND_TRIP),
    10**8: Site(workers=32, slots=16, cores=24, database_cores=16, round_trip=ROUND_TRIP),
}


@dataclass(frozen=True, slots=True)
class Measured:
    """The inputs: bench/results/scaling.json, latest.json and vacuum.json."""

    scaling: Mapping[str, Any]
    figures: Mapping[str, float | None]  #: of `make bench`, by key
    vacuum: Mapping[str, Any]

    @classmethod
    def read(cls, folder: Path = RESULTS) -> "Measured":
        latest = json.loads((folder / "latest.json").read_text())
        figures = {
            figure["key"]: figure["value"]
            for section in latest["sections"]
            for figure in section["figures"]
        }
        return cls(
            scaling=json.loads((folder / FILE.name).read_text()),
            figures=figures,
            vacuum=json.loads((folder / vacuum.FILE.name).read_text()),
        )

    def costs(self, *, far: bool, with_waits: bool = False) -> Costs:
        """Return the costs of a delivery, measured with one worker.

        They depend on the relay: to one that is far away, mails go one by one, and not in batches.
        `with_waits` adds the time for which other programs of the machine had the processor.
        """
        one = self.scaling["delivery"]["far-1" if far else "near-1"]
        alone = self.figures["distance.one"]
        assert alone, "make bench ARGS='--only distance'"
        return Costs(
            worker=one["worker_cpu"] + with_waits * one["worker_waits"],
            database=one["postgres_cpu"] + with_waits * one["postgres_waits"],
            flushes=one["syncs"],
            flush=one["sync_ms"] / one["syncs"] / 1000,
            wal_bytes=one["wal_bytes"],
            round_trips=1 / alone / self.scaling["round_trip"],
        )


def write(measured: Measured, page: Path = PAGE) -> None:
    text = page.read_text(encoding="utf-8")
    for name, lines in tables(measured).items():
        text = replaced(text, name, "\n".join(lines))
    page.write_text(text, encoding="utf-8")


def tables(measured: Measured) -> dict[str, list[str]]:
    return {
        "costs": [*_costs(measured)],
        "check": [*_check(measured)],
        "sizes": [*_sizes(measured)],
        "vacuum": [*_vacuum(measured)],
    }


def replaced(page: str, name: str, table: str) -> str:
    """Return the page with this table between the marks of its name."""
    before, begin, rest = page.partition(f"<!-- {name}: written by python -m bench.scaling -->\n")
    _, end, after = rest.partition(f"<!-- {name}: end -->\n")
    if not begin or not end:
        raise ValueError(f"{PAGE.name} lacks the marks of the table {name!r}. Put them there.")
    return f"{before}{begin}{table}\n\n{end}{after}"


def _row(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def _head(*cells: str) -> Iterator[str]:
    yield _row(*cells)
    yield "|---|" + "--:|" * (len(cells) - 1)


# --- what a mail costs --------------------------------------------------------------------------


def _costs(measured: Measured) -> Iterator[str]:
    scaling = measured.scaling
    queueing, one = scaling["queueing"], scaling["delivery"]["near-1"]
    signed = scaling["delivery"]["signed-1"]
    yield (
        f"Measured on {scaling['taken'][:10]} (load {scaling['load'][0]:.1f} before,"
        f" {scaling['load'][1]:.1f} after): {scaling['machine']}; {scaling['mails']:,} mails,"
        f" medians of {scaling['repeats']}."
    )
    yield ""
    away = f"{1000 * scaling['round_trip']:.0f} ms away"
    yield from _head("per mail", "`enqueue()`", "delivery, relay beside it", f"relay {away}")
    every = (queueing, one, scaling["delivery"]["far-1"])
    yield _row("processor of PostgreSQL", *(_ms(of["postgres_cpu"]) for of in every))
    yield _row("processor of the worker", "", *(_ms(of["worker_cpu"]) for of in every[1:]))
    yield _row("the same with DKIM, RSA 2048", "", _ms(signed["worker_cpu"]), "")
    for name, title in (
        ("statements", "SQL statements"),
        ("commits", "transactions"),
        ("syncs", "flushes of the WAL"),
    ):
        yield _row(title, *(number(of[name]) for of in every))
    yield _row("time of a flush", *(f"{of['sync_ms'] / of['syncs']:.1f} ms" for of in every))
    yield _row("WAL", *(_kb(of["wal_bytes"]) for of in every))
    yield _row("tables and indexes on disk", _kb(queueing["kept_bytes"]), "", "")


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.2f} ms"


def _kb(of_bytes: float) -> str:
    return f"{of_bytes / 1000:.1f} KB"


# --- the model beside the measurements ----------------------------------------------------------


def _check(measured: Measured) -> Iterator[str]:
    yield from _head("workers", "measured", "computed", "computed / measured", "saturates first")
    for title, site, value in points(measured):
        # Only those of one slot come one after the other.
        costs = measured.costs(far=site.round_trip > 0, with_waits=site.slots == 1)
        flow = simulate(site, costs)
        yield _row(
            title,
            f"{number(value)} mails/s",
            f"{number(flow.per_second)} mails/s",
            f"{flow.per_second / value:.2f}",
            flow.limit,
        )


def points(measured: Measured) -> Iterator[tuple[str, Site, float]]:
    """Yield each measured point with its site."""
    far = measured.scaling["round_trip"]
    for one in measured.scaling["delivery"].values():
        if not one["signs"]:
            place = f"{1000 * far:.0f} ms away" if one["far"] else "beside it"
            title = f"{_fleet(one['workers'], one['slots'])}, relay {place}"
            site = Site(
                workers=one["workers"],
                slots=one["slots"],
                cores=2,
                round_trip=far if one["far"] else 0.0,
            )
            yield title, site, one["mails_per_second"]


# --- a hundred thousand mails a day, and more ---------------------------------------------------


def _sizes(measured: Measured) -> Iterator[str]:
    costs, queueing = measured.costs(far=True), measured.scaling["queueing"]
    wal = costs.wal_bytes + queueing["wal_bytes"]
    done = [_played(mails, site, costs) for mails, site in SITES.items()]
    yield from _head("mails a day", *(f"10^{len(str(day.mails)) - 1}" for _s, _f, day in done))
    yield _row("mails a second, in the busiest minute", *(number(day.peak) for _s, _f, day in done))
    yield _row("workers and slots", *(_fleet(site.workers, site.slots) for site, _f, _d in done))
    yield _row("cores: workers + database", *starmap(_cores, done))
    yield _row("delivers at most, mails a second", *(number(f.per_second) for _s, f, _d in done))
    yield _row("saturates first", *(flow.limit for _s, flow, _d in done))
    yield _row("busiest resource at that rate", *(_busiest(flow) for _s, flow, _d in done))
    yield _row("WAL at the peak", *(f"{number(d.peak * wal / 1e6)} MB/s" for _s, _f, d in done))
    kept = queueing["kept_bytes"]
    yield _row("stored a day", *(f"{number(d.mails * kept / 1e9)} GB" for _s, _f, d in done))
    yield _row("waiting after two hours without relay", *(f"{d.backlog:,}" for _s, _f, d in done))
    yield _row("minutes until they have left", *(number(d.drained) for _s, _f, d in done))


def _played(mails: int, site: Site, costs: Costs) -> tuple[Site, Flow, Day]:
    flow = simulate(site, costs)
    return site, flow, play_day(mails, flow.per_second, CURVE, outage=OUTAGE)


def _fleet(workers: int, slots: int) -> str:
    return f"{workers} with {slots} slot{'s' * (slots > 1)}{' each' * (workers > 1)}"


def _cores(site: Site, _flow: Flow, _day: Day) -> str:
    return f"{site.cores} + {site.database_cores}" if site.database_cores else f"{site.cores}, one"


def _busiest(flow: Flow) -> str:
    name = max(flow.busy, key=lambda name: flow.busy[name])
    return f"{name} {100 * flow.busy[name]:.0f} %"


# --- vacuum -------------------------------------------------------------------------------------


def _vacuum(measured: Measured) -> Iterator[str]:
    runs = {kind: measured.vacuum[kind] for kind in vacuum.RUNS if kind in measured.vacuum}
    first = next(iter(runs.values()))
    lengths = ", ".join(f"{run['minutes']:g}" for run in runs.values())
    yield (
        f"Measured for {lengths} minutes, at {first['rate']} mails/s if the machine had time, with"
        f" {first['kept']:,} finished mails at the start and a load of"
        f" {', '.join(format(run['load'], '.1f') for run in runs.values())} at the end:"
        f" {first['machine']}."
    )
    yield ""
    yield from _head("", *(vacuum.RUNS[kind] for kind in runs))
    samples = [[_sample(one) for one in run["samples"]] for run in runs.values()]
    yield _row(
        "mails a second: queued, delivered",
        *(f"{_rate(of, 'queued')}, {_rate(of, 'delivered')}" for of in samples),
    )
    yield _row("dead rows, most", *(f"{max(one.dead_rows for one in of):,}" for of in samples))
    yield _row("automatic vacuums", *(of[-1].vacuums for of in samples))
    hot = (100 * of[-1].hot_updates / max(1, of[-1].updates) for of in samples)
    yield _row("updates that are HOT", *(f"{share:.1f} %" for share in hot))
    yield _row("table, MB", *(_grown([one.table for one in of]) for of in samples))
    for key, name in vacuum.INDEXES.items():
        yield _row(f"`{name}`, MB", *(_grown([one.indexes[key] for one in of]) for of in samples))
    for title, quarter in (("second", 1), ("last", 3)):
        times = (vacuum.quarter(vacuum.claim_times(of), quarter) for of in samples)
        yield _row(f"a claim in the {title} quarter", *(f"{ms:.1f} ms" for ms in times))


def _sample(values: Mapping[str, Any]) -> vacuum.Sample:
    return vacuum.Sample(**values)


def _rate(samples: Sequence[vacuum.Sample], of: str) -> str:
    first, last = samples[0], samples[-1]
    return number((getattr(last, of) - getattr(first, of)) / (last.seconds - first.seconds))


def _grown(sizes: Sequence[int]) -> str:
    return f"{sizes[0] / 1e6:.1f} → {sizes[-1] / 1e6:.1f}"
