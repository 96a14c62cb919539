"""Run scenarios in processes of their own, several at once, since they mostly wait."""

import io
import multiprocessing
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from tests.chaos.scenario import Report, Scenario, Size


@dataclass(slots=True, kw_only=True)
class Row:
    """The result of a scenario, or the reason why it did not run."""

    name: str
    taken: str  #: when it began, UTC
    seconds: float
    report: Report = field(default_factory=Report)
    missing: str = ""  #: the program that is not installed here
    log: str = ""  #: of the workers, and the traceback of an error

    def as_json(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if key != "log"}


@contextmanager
def running(
    scenarios: Iterable[Scenario], size: Size, *, at_once: int
) -> Iterator[Mapping[str, "Future[Row]"]]:
    """Start the scenarios and yield their futures by name."""
    with ProcessPoolExecutor(at_once, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            yield {
                scenario.name: pool.submit(carried_through, scenario, size)
                for scenario in scenarios
            }
        finally:
            pool.shutdown(cancel_futures=True)


def carried_through(scenario: Scenario, size: Size) -> Row:
    """Run a scenario. Turn any error into a row, so that the others run as well."""
    log, started = io.StringIO(), time.monotonic()
    row = Row(name=scenario.name, taken=f"{datetime.now(UTC):%Y-%m-%d %H:%M}", seconds=0)
    with (
        TemporaryDirectory(prefix="mailer-chaos-", ignore_cleanup_errors=True) as folder,
        redirect_stdout(log),
    ):
        try:
            row.report = scenario.run(Path(folder), size)
        except pytest.skip.Exception as reason:
            row.missing = str(reason)
        except (Exception, pytest.fail.Exception) as error:  # noqa: BLE001 -- into the row
            traceback.print_exc(file=log)
            row.report.broken.append(f"the scenario ended with {type(error).__name__}: {error}")
    row.seconds, row.log = time.monotonic() - started, log.getvalue()
    return row
