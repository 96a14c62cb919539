"""PostgreSQL is stopped, frozen and replaced while mail flows."""

import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from tests.chaos.flow import (
    count_up,
    let_mail_flow,
    note_resumption,
    wait_for_a_refusal,
    wait_for_flow,
)
from tests.chaos.scenario import Report, Scenario, Size, named
from tests.chaos.site import Site, find_initdb, migrated, site_on
from tests.services.postgres import PostgresServer, postgres_folder
from tests.services.waiting import wait_until

#: The server crashes in these scenarios, but not the machine, so that nothing has to be on disk.
_SETTINGS = ["-c", "fsync=off", "-c", "full_page_writes=off", "-c", "listen_addresses="]
_HANG_UP = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'mailer'"
# A silent server is given up after 20 s; opening a connection before and after may take 5 s.
_LONGEST_CALL = 26.0


class Pair:
    """A primary, and a standby that has every transaction that the primary has confirmed."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        programs = find_initdb().parent
        self._servers = [
            PostgresServer(programs, stack.enter_context(postgres_folder()), _SETTINGS)
            for _ in range(2)
        ]
        for server in self._servers:
            stack.callback(server.stop, signal.SIGQUIT)
        primary, standby = self._servers
        primary.initialize()
        primary.start()
        migrated(primary)
        standby.follow(primary, "standby")
        standby.start()
        primary.execute("ALTER SYSTEM SET synchronous_standby_names = 'standby'")
        primary.execute("SELECT pg_reload_conf()")
        wait_until(
            lambda: primary.execute("SELECT 1 FROM pg_stat_replication WHERE sync_state = 'sync'")
        )
        folders = ",".join(str(server.folder) for server in self._servers)
        self.url = f"postgresql://mailer@/mailer?host={folders}&target_session_attrs=read-write"

    def fail_over(self) -> None:
        """Crash the primary and promote the standby, which waits for no other standby."""
        primary, standby = self._servers
        primary.stop(signal.SIGQUIT)
        standby.promote()


def restart(folder: Path, size: Size) -> Report:
    """Stop the server cleanly and as in a crash, and start it again after a while."""
    with _site(folder) as (site, server, report):
        let_mail_flow(site)
        for number in range(size.pick(3, 30)):
            wait_for_flow(site)
            server.stop(signal.SIGQUIT if number % 2 else signal.SIGINT)
            report.faults += 1
            wait_for_a_refusal(site)
            server.start()
            note_resumption(site, report)
    return report


def hang_up(folder: Path, size: Size) -> Report:
    """Terminate all connections, again and again."""
    dice = random.Random(4)  # noqa: S311 -- it chooses moments
    with _site(folder) as (site, server, report):
        let_mail_flow(site)
        for _ in range(size.pick(15, 300)):
            wait_for_flow(site)
            time.sleep(dice.uniform(0, 0.2))
            server.execute(_HANG_UP)
            report.faults += 1
    return report


def freeze(folder: Path, size: Size) -> Report:
    """Freeze the server: it accepts connections and bytes, and answers nothing."""
    with _site(folder) as (site, server, report):
        let_mail_flow(site)
        for _ in range(size.pick(1, 5)):
            wait_for_flow(site)
            server.freeze()
            report.faults += 1
            wait_for_a_refusal(site)
            server.thaw()
            note_resumption(site, report)
    longest = max(call.seconds for call in site.calls())
    report.remarks.append(f"the longest call took {longest:.1f} s")
    report.expect(
        longest < _LONGEST_CALL, f"a call took {longest:.1f} s, {_LONGEST_CALL:.0f} allowed"
    )
    return report


def fail_over(folder: Path, size: Size) -> Report:
    """Fail over to a standby in the middle of a batch. The URL names both servers."""
    report = Report()
    for number in range(size.pick(1, 10)):
        with ExitStack() as stack:
            pair = Pair(stack)
            part = folder / str(number)
            part.mkdir()
            site = stack.enter_context(site_on(pair.url, part))
            let_mail_flow(site)
            site.sink.hold()
            pair.fail_over()
            report.faults += 1
            site.sink.let_go()
            note_resumption(site, report)
            count_up(site, report)
    return report


def at_the_250(folder: Path, size: Size, *, fault: Callable[[PostgresServer], None]) -> Report:
    """Stop the database before the relay replies 250. A sent mail stays sent."""
    with _site(folder) as (site, server, report):
        let_mail_flow(site)
        for _ in range(size.pick(2, 20)):
            site.sink.hold()
            fault(server)
            report.faults += 1
            site.sink.let_go()
            wait_for_a_refusal(site)
            server.start()
            note_resumption(site, report)
    return report


@contextmanager
def _site(folder: Path) -> Iterator[tuple[Site, PostgresServer, Report]]:
    """Start a server and a site; count the mails at the end."""
    report = Report()
    with ExitStack() as stack:
        server = PostgresServer(
            find_initdb().parent, stack.enter_context(postgres_folder()), _SETTINGS
        )
        stack.callback(server.stop, signal.SIGQUIT)
        server.initialize()
        server.start()
        site = stack.enter_context(site_on(migrated(server), folder))
        yield site, server, report
        count_up(site, report)


SCENARIOS = [
    Scenario("PostgreSQL restarted", restart),
    Scenario("PostgreSQL terminates all connections", hang_up),
    Scenario("PostgreSQL frozen", freeze),
    Scenario("PostgreSQL fails over to a standby", fail_over),
    *named(
        "PostgreSQL down when the relay replies 250",
        stopped=partial(at_the_250, fault=PostgresServer.stop),
    ),
]
