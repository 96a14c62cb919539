"""Tenants from the call to the SMTP server, with real workers."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flask import Flask

from mailer import InvalidMail, Mailer
from mailer.smtpd.faults import DELAY, Fault
from mailer.testing import Outbox
from tests.services.clocks import Clock
from tests.services.sink import Sink
from tests.services.waiting import wait_until
from tests.services.worker import StartWorker

MakeApp = Callable[..., Flask]

mailer = Mailer()


def queue(tenant: str, number: int) -> list[str]:
    return [
        mailer.send_email(f"reader{place}@{tenant}.example", "News", text="Hello", tenant=tenant).id
        for place in range(number)
    ]


def tenants_of(sink: Sink) -> list[str]:
    recipients = [mail.recipients[0] for mail in sink.messages]
    return [to.partition("@")[2].partition(".")[0] for to in recipients]


def test_a_small_tenant_goes_first_while_a_large_one_waits(
    make_app: MakeApp, start_worker: StartWorker, sink: Sink
) -> None:
    """Ten mails of a small tenant arrive long before the two thousand that were queued before."""
    sink.faults.add(Fault("dot", DELAY, delay=0.005, times=None))
    with make_app().app_context():
        queue("large", 2000)
        queue("small", 10)
        start_worker(concurrency=1)
        wait_until(lambda: tenants_of(sink).count("small") == 10, timeout=60)

        assert tenants_of(sink).count("large") < 1000


def test_what_is_over_a_quota_goes_on_the_next_day(
    make_app: MakeApp, start_worker: StartWorker, sink: Sink, tmp_path: Path
) -> None:
    """Mail over a quota is held, no other tenant waits for it, and the next day it goes out."""
    quotas = '{"limited": "3/day"}'
    clock = Clock(tmp_path / "clock")
    with make_app(MAILER_TENANT_QUOTAS=quotas).app_context():
        ids = queue("limited", 5)
        queue("free", 2)
        start_worker(env={**clock.env, "MAILER_TENANT_QUOTAS": quotas})
        sink.wait_for(5, timeout=30)
        held = [one for one in ids if mailer.status(one).deliveries[0].status == "held"]
        assert (len(held), Counter(tenants_of(sink))) == (2, {"limited": 3, "free": 2})

        clock.set(86_400)
        sink.wait_for(7, timeout=30)

    assert Counter(tenants_of(sink)) == {"limited": 5, "free": 2}


def test_a_quota_counts_in_tests_as_well(make_app: MakeApp) -> None:
    """With TESTING, mail within the quota counts as sent, and what is over it is held."""
    app = make_app(TESTING=True, MAILER_TENANT_QUOTAS={"acme": "1/day"})
    with app.app_context(), Outbox(app) as outbox:
        sent, held = queue("acme", 2)
        outbox.assert_sent(tenant="acme", times=1)
        assert [mailer.status(one).deliveries[0].status for one in (sent, held)] == ["sent", "held"]
        with pytest.raises(AssertionError, match=r"\(held, the quota of 'acme' is used up\)"):
            outbox.assert_sent(tenant="acme", times=2)
        assert mailer.cancel(held) == 1


@pytest.mark.parametrize("tenant", ["", "*", "x" * 201, "a\nb", 5])
def test_a_name_that_can_not_be_a_tenant(make_app: MakeApp, tenant: Any) -> None:
    """A name that no tenant can have is refused at the call, and nothing is queued."""
    with make_app().app_context():
        with pytest.raises(InvalidMail, match="tenant: "):
            mailer.send_email("ada@example.com", "News", text="Hello", tenant=tenant)
        assert mailer.mails() == []
