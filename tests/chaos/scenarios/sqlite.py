"""SQLite: many writers, a held lock, a full disk, a read-only file, a second machine."""

import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from statistics import median

from tests.chaos.flow import (
    count_up,
    let_mail_flow,
    note_resumption,
    refused,
    wait_for_a_refusal,
    wait_for_flow,
)
from tests.chaos.scenario import Report, Scenario, Size
from tests.chaos.site import Site, running_site, site_on
from tests.services.mounts import immutable, small_disk
from tests.services.worker import PROJECT

_WRITERS = 8


def crowd(folder: Path, size: Size) -> Report:
    """Queue from eight processes without a pause. No call is refused, and none starves."""
    with _site(folder) as (site, report):
        let_mail_flow(site, workers=2, senders=_WRITERS, pause=0)
        began = [len(sender.calls()) for sender in site.senders]
        time.sleep(size.pick(2, 120))
        counts = [
            len(sender.calls()) - before for sender, before in zip(site.senders, began, strict=True)
        ]
        report.faults = _WRITERS
    report.remarks.append(f"calls of a writer: {min(counts)} to {max(counts)}; {_times(site)}")
    report.expect(not refused(site), f"{len(refused(site))} calls were refused")
    report.expect(min(counts) * 4 > max(counts), f"a writer starved: {counts}")
    return report


def locked(folder: Path, size: Size, *, seconds: float, refuses: bool) -> Report:
    """Let another program hold the lock.

    For ten seconds callers only wait; after that, each gets one clear error.
    """
    with _site(folder) as (site, report):
        let_mail_flow(site, senders=3)
        for _ in range(size.pick(1, 10)):
            with closing(
                sqlite3.connect(folder / "mailer.sqlite3", isolation_level=None, timeout=10)
            ) as other:
                other.execute("BEGIN IMMEDIATE")
                time.sleep(seconds)
                other.execute("COMMIT")
            report.faults += 1
            note_resumption(site, report)
    report.remarks.append(_times(site))
    report.expect(bool(refused(site)) == refuses, f"{len(refused(site))} calls were refused")
    return report


def disk_full(folder: Path, size: Size) -> Report:
    """Fill the disk, and free it later."""
    with (
        small_disk(folder, "16m") as disk,
        site_on(f"sqlite:///{disk / 'mailer.sqlite3'}", folder) as site,
    ):
        report = Report()
        let_mail_flow(site)
        for _ in range(size.pick(2, 20)):
            wait_for_flow(site)
            ballast = disk / "ballast"
            _fill(ballast)
            report.faults += 1
            wait_for_a_refusal(site)
            ballast.unlink()
            note_resumption(site, report)
        count_up(site, report)
    return report


def read_only(folder: Path, size: Size) -> Report:
    """Make the file and its folder read-only while everything runs, and undo it later."""
    with _site(folder) as (site, report):
        let_mail_flow(site)
        for _ in range(size.pick(2, 20)):
            wait_for_flow(site)
            # Not the -shm file: it is mapped, and Linux kills a process that fails to write there.
            with immutable(folder, folder / "mailer.sqlite3", folder / "mailer.sqlite3-wal"):
                report.faults += 1
                wait_for_a_refusal(site)
            note_resumption(site, report)
    return report


def second_machine(folder: Path, size: Size) -> Report:
    """Start a worker and the application on a second machine that shares the disk.

    Both are refused.
    """
    with _site(folder) as (site, report):
        let_mail_flow(site, pause=0.2)
        for _ in range(size.pick(1, 5)):
            for program in (
                ["-m", "celery", "-A", "tests.worker_app", "worker", "--pool", "solo"],
                ["-m", "flask", "mail", "queue"],
            ):
                output = _on_another_machine(site, folder, program)
                report.expect(
                    "in use on another machine" in output and "use PostgreSQL" in output,
                    f"{program[1]} printed: {output[-500:]}",
                )
            report.faults += 1
            wait_for_flow(site)
    return report


def _on_another_machine(site: Site, folder: Path, program: list[str]) -> str:
    """Run a program as on another machine, and return its output.

    The program sees another boot id, which is all that tells machines apart.
    """
    boot_id = folder / "boot_id"
    boot_id.write_text("another machine\n")
    there = f'mount --bind {boot_id} /proc/sys/kernel/random/boot_id && exec "$@"'
    command = ["unshare", "--mount", "sh", "-c", there, "sh", sys.executable, *program]
    environment = {**os.environ, **site.config, "FLASK_APP": "tests.application:create_app({})"}
    done = subprocess.run(
        command,
        cwd=PROJECT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.stdout + done.stderr if done.returncode else "(it was not refused)"


# --- helpers ------------------------------------------------------------------------------------


@contextmanager
def _site(folder: Path) -> Iterator[tuple[Site, Report]]:
    """Start a site; count the mails at the end."""
    report = Report()
    with running_site(folder) as site:
        yield site, report
        count_up(site, report)


def _fill(file: Path) -> None:
    """Write until the disk is full."""
    with file.open("wb", buffering=0) as ballast:
        for size in (1 << 20, 1 << 12, 1):
            with suppress(OSError):
                while ballast.write(bytes(size)):
                    pass


def _times(site: Site) -> str:
    seconds = sorted(call.seconds for call in site.calls())
    return f"a call took {1000 * median(seconds):.0f} ms, {seconds[-1]:.1f} s at most"


SCENARIOS = [
    Scenario("SQLite, eight writers", crowd),
    Scenario("SQLite locked for nine seconds", partial(locked, seconds=9, refuses=False)),
    Scenario("SQLite locked for too long", partial(locked, seconds=14, refuses=True)),
    Scenario("SQLite, the disk is full", disk_full),
    Scenario("SQLite, the file is read-only", read_only),
    Scenario("SQLite on a second machine", second_machine),
]
