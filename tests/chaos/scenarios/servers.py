"""Stock mail servers as relays: each mail is sent at the first attempt, despite their limits."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

from mailer import Status
from tests.chaos.history import tally
from tests.chaos.scenario import Report, Scenario, Size
from tests.chaos.site import Site, running_site
from tests.services.mail_servers import MailServer, running_exim, running_opensmtpd, running_postfix
from tests.services.waiting import wait_until

Running = Callable[[Path], AbstractContextManager[MailServer]]


def many(running_server: Running, folder: Path, size: Size) -> Report:
    """Queue all mail before the workers start, so that connections reach the server's limits."""
    report, mails = Report(faults=1), size.pick(150, 3000)
    own = folder / "server"
    own.mkdir()
    with running_server(own) as server, running_site(folder) as site:
        site.config["MAIL_PORT"] = str(server.port)
        site.config["MAILER_RETRY_ATTEMPTS"] = "4"
        site.start_sender(count=mails).wait(timeout=300)
        began = time.time()
        site.start_worker("prefork", concurrency=2)
        site.settle(timeout=300)
        report.remarks.append(
            f"{mails} mails in {time.time() - began:.1f} s, including the start of the worker"
        )
        wait_until(lambda: len(server.recipients()) >= mails)
        _expect_first_attempts(report, site, server)
    report.expect_nothing_lost()
    return report


def _expect_first_attempts(report: Report, site: Site, server: MailServer) -> None:
    """Compare the calls with the server's log and with the database."""
    calls, taken = site.calls(), server.recipients()
    message_ids = {call.recipient: call.message_id for call in calls}
    report.tally = tally(calls, site.statuses(), [message_ids[recipient] for recipient in taken])
    copies = [copy for mail in site.mails() for copy in mail]
    at_first = sum(
        copy.status is Status.SENT and copy.attempts == 1 and not copy.history for copy in copies
    )
    report.remarks.append(f"{len(taken)} in the server's log, {at_first} sent at the first attempt")
    report.expect(
        at_first == len(calls), f"{len(calls) - at_first} were not sent at the first attempt"
    )


SCENARIOS = [
    Scenario("many mails to a stock OpenSMTPD", partial(many, running_opensmtpd)),
    Scenario("many mails to a stock Exim", partial(many, running_exim)),
    Scenario("many mails to a stock Postfix", partial(many, running_postfix)),
]
