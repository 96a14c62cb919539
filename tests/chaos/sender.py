"""A web process that queues mail until it is told to stop: `python -m tests.chaos.sender NAME [option=value …]`.

It prints a line for each call: "accepted ID MESSAGE-ID RECIPIENT SECONDS", or "refused ERROR - RECIPIENT SECONDS". The
options are those of `send_email()`, and `count`, after which it ends, `pause`, in seconds between two calls, and `delay`, the
seconds after which a mail is due.
"""

import signal
import sys
import threading
import time
from datetime import timedelta
from typing import Any

from mailer import MailerError, send_email
from tests.application import create_app


def main(name: str, options: dict[str, str]) -> None:
    count, pause = int(options.pop("count", "0")), float(options.pop("pause", "0"))
    delay = timedelta(seconds=float(options.pop("delay", "0")))
    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_signal: stopping.set())
    app = create_app({})
    number = 0
    while not stopping.wait(pause) and (not count or number < count):
        number += 1
        with app.test_request_context():
            _send(f"{name}-{number}@example.com", {**options, "send_at": delay})


def _send(recipient: str, options: dict[str, Any]) -> None:
    started = time.perf_counter()
    try:
        receipt = send_email(recipient, "Chaos", "welcome", name=recipient, **options)
        said = f"accepted {receipt.id} {receipt.message_id}"
    except MailerError as error:
        said = f"refused {type(error).__name__} -"
    print(said, recipient, f"{time.perf_counter() - started:.4f}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], dict(option.split("=", 1) for option in sys.argv[2:]))
