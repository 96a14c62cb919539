"""One mail, and a thousand, from the request to the SMTP server, with real workers over a real broker."""

from collections.abc import Callable

import pytest
from flask import Flask

from mailer import Mailer, Status
from tests.services.sink import Sink
from tests.services.waiting import wait_until
from tests.services.worker import StartWorker

MakeApp = Callable[..., Flask]


@pytest.mark.parametrize("pool", ["prefork", "threads", "gevent"])
def test_a_mail_arrives(make_app: MakeApp, start_worker: StartWorker, sink: Sink, pool: str) -> None:
    """What a request queued, a worker delivers, and its status tells the relay's words."""
    start_worker(pool=pool)

    with make_app().test_request_context():
        receipt = Mailer().send_email("ada@example.com", "Welcome", "welcome", name="Ada")

        [received] = sink.wait_for(1)
        wait_until(lambda: Mailer().status(receipt.id).is_finished)
        [delivery] = Mailer().status(receipt.id).deliveries

    assert received.recipients == ("ada@example.com",)
    assert received.message_id == receipt.message_id
    assert delivery.status is Status.SENT
    assert delivery.attempts == 1
    assert "queued as 1" in (delivery.reply or "")
