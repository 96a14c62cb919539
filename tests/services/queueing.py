"""Web processes that queue mail."""

from collections.abc import Mapping

from mailer import send_email
from tests.application import create_app
from tests.services.processes import all_at_once


def address(number: int) -> str:
    return f"reader{number}@example.com"


def queue_from_processes(config: Mapping[str, str], *, processes: int, each: int) -> list[str]:
    """Queue `processes * each` mails to addresses numbered from 0, and return their ids."""
    calls = [(dict(config), number * each, each) for number in range(processes)]
    return [mail_id for ids in all_at_once(queue, calls) for mail_id in ids]


def queue(config: Mapping[str, str], first: int, count: int) -> list[str]:
    """Queue each mail in a request of its own."""
    app = create_app(config)
    ids = []
    for number in range(first, first + count):
        with app.test_request_context():
            receipt = send_email(address(number), f"Mail {number}", "welcome", name="reader")
            ids.append(receipt.id)
    return ids
