"""A web process that queues mail until it is told to stop.

`python -m tests.chaos.sender NAME [option=value …]`.

It prints a line for each call: "accepted ID MESSAGE-ID RECIPIENT SECONDS", or "refused ERROR -
RECIPIENT SECONDS". The options are those of `send_email()`, and: `count`, the number of calls;
`pause`, the seconds between two calls; `delay`, the seconds until the mail is due; `file`, the size
of an attachment; `line`, the length of a line in the mail.

With `shared=orders`, every process queues the same mails, orders-1 and so on, each with its
idempotency key. With `orders=1`, a mail is queued in the transaction that writes an order with the
name of its recipient; every third is rolled back.
"""

import os
import signal
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any

from sqlalchemy import Engine, create_engine, text

from mailer import Attachment, MailerError, Receipt, send_email
from tests.application import create_app


def main(name: str, options: dict[str, str]) -> None:
    count, pause = int(options.pop("count", "0")), float(options.pop("pause", "0"))
    # No Event: a signal may come while this thread holds the Event's lock.
    is_told: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _frame: is_told.append(number))
    shared, orders = options.pop("shared", ""), bool(options.pop("orders", ""))
    given = _given(options)
    app = create_app({})
    engine = (
        create_engine(
            os.environ["MAILER_DATABASE_URL"].replace("postgresql:", "postgresql+psycopg:")
        )
        if orders
        else None
    )
    number = 0
    while not is_told and (not count or number < count):
        time.sleep(pause)
        number += 1
        with app.test_request_context():
            recipient = f"{shared or name}-{number}@example.com"
            if engine is not None:
                _report(recipient, partial(_order, engine, recipient, number % 3 == 0))
            else:
                key = {"idempotency_key": recipient} if shared else {}
                _report(recipient, partial(_send, recipient, **given, **key))


def _given(options: dict[str, str]) -> dict[str, Any]:
    """Turn words of the command line into arguments of `send_email()`."""
    given: dict[str, Any] = dict(options)
    if delay := given.pop("delay", None):
        given["send_at"] = timedelta(seconds=float(delay))
    if size := given.pop("file", None):
        given["attachments"] = [Attachment("file.bin", b"\xa5" * int(size))]
    if length := given.pop("line", None):
        given["name"] = "x" * int(length)
    return given


def _report(recipient: str, call: Callable[[], Receipt]) -> None:
    started = time.perf_counter()
    try:
        receipt = call()
        said = f"accepted {receipt.id} {receipt.message_id}"
    except (MailerError, RolledBack) as error:
        said = f"refused {type(error).__name__} -"
    print(said, recipient, f"{time.perf_counter() - started:.4f}", flush=True)


def _send(recipient: str, **options: Any) -> Receipt:
    return send_email(recipient, "Chaos", "welcome", **{"name": recipient, **options})


class RolledBack(Exception):
    """The application rolls its transaction back."""


def _order(engine: Engine, recipient: str, is_dropped: bool) -> Receipt:
    with engine.begin() as connection:
        receipt = _send(recipient, connection=connection)
        connection.execute(
            text("INSERT INTO chaos_order VALUES (:recipient)"), {"recipient": recipient}
        )
        if is_dropped:
            raise RolledBack
    return receipt


if __name__ == "__main__":
    main(sys.argv[1], dict(option.split("=", 1) for option in sys.argv[2:]))
