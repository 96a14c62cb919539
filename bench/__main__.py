"""`make bench`: measure Mailer and its peers on this machine, in one run.

    delivery    mails a second: queued first, then timed as they arrive
    safety      the processor time of the black box
    queueing    the time of a call that queues a mail
    bulk        the rows a second of a bulk send's import, and the memory that it takes
    personal    mails a second of a bulk send, which the workers render
    recipients  a mailing, from the call to the last arrival
    busy        the same beside a worker that delivers as fast as it can
    latency     from the call to the relay, and the time of a call without Redis
    distance    mails a second to a relay that is 30 ms away
    critical    the arrival of critical mail while bulk mail keeps every slot busy
    tenants     a small tenant behind a large one, and claims beside much else
    growth      the figures with a thousand mails in the queue, up to a million

`contenders` lists the programs under test and starts them, `programs` has their code, and `sink`
receives and counts all mail. A complete run is stored in `results` and shown by docs/benchmarks.md;
a part of one goes to `results/partial`.
"""

import argparse
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from bench import (
    bulk,
    busy,
    critical,
    delivery,
    distance,
    growth,
    latency,
    machine,
    personal,
    queueing,
    recipients,
    report,
    safety,
    tenants,
)
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
    "bulk": bulk.measure,
    "personal": personal.measure,
    "recipients": recipients.measure,
    "busy": busy.measure,
    "latency": latency.measure,
    "distance": distance.measure,
    "critical": critical.measure,
    "tenants": tenants.measure,
    "growth": growth.measure,
}

#: A run with one of these options is not shown by docs/benchmarks.md.
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
        "--only", type=_names(PARTS), help=f"parts, separated by commas: {', '.join(PARTS)}"
    )
    keys = [contender.key for contender in all_contenders(WorkerOptions())]
    parser.add_argument("--contenders", type=_names(keys), help=f"some of: {', '.join(keys)}")
    parser.add_argument("--mails", type=int, help="mails of a fast contender in a round")
    parser.add_argument("--repeats", type=int, help="rounds, of which the medians count")
    parser.add_argument(
        "--depths", type=_numbers, help="numbers of queued mails in the part growth"
    )
    parser.add_argument(
        "--quick", action="store_true", help="check that the bench runs; the figures mean nothing"
    )
    parser.add_argument("--pool", default=WorkerOptions().pool, help="of Mailer's worker")
    parser.add_argument(
        "--concurrency", type=int, default=WorkerOptions().concurrency, help="of Mailer's worker"
    )
    parser.add_argument("--out", type=Path, help="folder for the results (default: bench/results)")
    return parser


def _names(known: Collection[str]) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        names = text.split(",")
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name!r} is unknown. Use {', '.join(known)}.")
        return names

    return parse


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


if __name__ == "__main__":
    main(sys.argv[1:])
