"""Web processes that queue mail.

`python -m tests.services.queueing FIRST COUNT` prints the id of each mail that it queued.
"""

import os
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

from mailer import send_email
from tests.application import create_app
from tests.services.worker import PROJECT


def address(number: int) -> str:
    return f"reader{number}@example.com"


def queue_from_processes(config: Mapping[str, str], *, processes: int, each: int) -> list[str]:
    """Queue `processes * each` mails to addresses numbered from 0, and return their ids."""

    def queue(number: int) -> list[str]:
        command = [sys.executable, "-m", "tests.services.queueing", str(number * each), str(each)]
        environment = {**os.environ, **config}
        return subprocess.run(
            command, cwd=PROJECT, env=environment, check=True, capture_output=True, text=True
        ).stdout.split()

    with ThreadPoolExecutor(processes) as threads:
        return [mail_id for ids in threads.map(queue, range(processes)) for mail_id in ids]


def main(first: int, count: int) -> None:
    app = create_app({})
    for number in range(first, first + count):
        with app.test_request_context():
            print(
                send_email(address(number), f"Mail {number}", "welcome", name=f"reader {number}").id
            )


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
