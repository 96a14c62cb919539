"""`make bench`: how fast this product is, beside what else there is, on this machine, in this run.

    delivery    queued first, then timed at the sink, contender after contender, in alternating order
    safety      what the black box costs
    queueing    how long a request waits until its mail is handed over
    busy        the same beside a worker that delivers as fast as it can
    latency     how soon a mail is at the relay, and what a request notices of a Redis that is away
    distance    the same with a relay that is 30 ms away
    growth      how the figures change from a thousand mails in the queue to a million

`contenders` says who is measured and how each is started, `programs` is what they run, `sink` is
where all mail arrives and is counted. A whole run is kept in `results` and shown by
docs/benchmarks.md; a part of one goes to `results/partial`.
"""

import argparse
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from bench import busy, delivery, distance, growth, latency, machine, queueing, report, safety
from bench.contenders import Contender
from bench.contenders.celery_flask_mail import CeleryFlaskMail
from bench.contenders.flask_mail_alone import FlaskMailKept, FlaskMailLoop, FlaskMailThreads
from bench.contenders.ours import OursOnPostgres, OursOnSqlite, WorkerOptions
from bench.contenders.post_office import PostOffice, PostOfficeTuned
from bench.contenders.postfix import Postfix, PostfixDelivery
from bench.contenders.smtp_source import SmtpSource
from bench.figures import Section
from bench.plan import Plan

PARTS: dict[str, Callable[[Plan], Iterator[Section]]] = {
    "delivery": delivery.measure,
    "safety": safety.measure,
    "queueing": queueing.measure,
    "busy": busy.measure,
    "latency": latency.measure,
    "distance": distance.measure,
    "growth": growth.measure,
}

#: The options of a run that docs/benchmarks.md does not show.
_PARTIAL = ("only", "contenders", "mails", "repeats", "depths", "quick", "out")


def main(arguments: Sequence[str]) -> None:
    options = _parser().parse_args(arguments)
    plan = _plan(options)
    machine.work_on_disk()
    run = _run(plan, options.only or list(PARTS))
    print(report.table(run), end="")
    if any(getattr(options, name) for name in _PARTIAL):
        report.write(run, options.out or report.RESULTS / "partial")
    else:
        report.publish(run)


def _run(plan: Plan, parts: Sequence[str]) -> report.Run:
    here, load = machine.describe(), machine.load()
    sections = [
        section for name, measure in PARTS.items() if name in parts for section in measure(plan)
    ]
    return report.Run(
        taken=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        machine=here,
        load=(load, machine.load()),
        worker=str(plan.worker),
        mails=plan.mails,
        repeats=plan.repeats,
        sections=sections,
    )


def all_contenders(worker: WorkerOptions) -> list[Contender]:
    return [
        OursOnSqlite(worker),
        OursOnPostgres(worker),
        FlaskMailLoop(),
        FlaskMailKept(),
        FlaskMailThreads(),
        CeleryFlaskMail(),
        PostOffice(),
        PostOfficeTuned(),
        Postfix(),
        PostfixDelivery(),
        SmtpSource(),
    ]


def _plan(options: argparse.Namespace) -> Plan:
    worker = WorkerOptions(options.pool, options.concurrency)
    contenders = all_contenders(worker)
    return Plan(
        contenders=[
            one for one in contenders if options.contenders is None or one.key in options.contenders
        ],
        worker=worker,
        mails=options.mails or (200 if options.quick else 20_000),
        repeats=options.repeats or (1 if options.quick else 3),
        calls=100 if options.quick else 1000,
        depths=options.depths
        or ((500, 1000) if options.quick else (1000, 10_000, 100_000, 1_000_000)),
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--only", type=_names(PARTS), help=f"some parts of {', '.join(PARTS)}, with commas between"
    )
    keys = [contender.key for contender in all_contenders(WorkerOptions())]
    parser.add_argument("--contenders", type=_names(keys), help=f"some of {', '.join(keys)}")
    parser.add_argument("--mails", type=int, help="how many a fast contender delivers in a round")
    parser.add_argument("--repeats", type=int, help="rounds; the medians count")
    parser.add_argument(
        "--depths", type=_numbers, help="how many mails are queued in the part growth"
    )
    parser.add_argument(
        "--quick", action="store_true", help="see that it works: the figures mean nothing"
    )
    parser.add_argument("--pool", default=WorkerOptions().pool, help="of our worker")
    parser.add_argument(
        "--concurrency", type=int, default=WorkerOptions().concurrency, help="of our worker"
    )
    parser.add_argument(
        "--out", type=Path, help="folder for the results, if not that of docs/benchmarks.md"
    )
    return parser


def _names(known: Collection[str]) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        names = text.split(",")
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name!r} is not known: use {', '.join(known)}")
        return names

    return parse


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


if __name__ == "__main__":
    main(sys.argv[1:])
