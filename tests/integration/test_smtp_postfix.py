"""Many mails to Postfix's test server: each arrives once, with its exact bytes."""

import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from mailer.message import Verdict
from tests.services.ports import free_port
from tests.services.relay import make_letter, make_relay, supply
from tests.services.requirement import find_program, require
from tests.services.waiting import wait_until

MAILS = 200


@contextmanager
def smtp_sink(folder: Path, *options: str) -> Iterator[int]:
    """Run smtp-sink, which writes each mail into a file of its own, and yield its port."""
    program = require("Postfix (smtp-sink)", find_program("smtp-sink", also_in=[Path("/usr/sbin")]))
    port = free_port()
    user = ["-u", "root"] if os.geteuid() == 0 else []
    server = subprocess.Popen(
        [program, *user, "-d", f"{folder}/mail.", *options, f"127.0.0.1:{port}", "100"]
    )

    def is_listening() -> bool:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return True
        return False

    try:
        wait_until(is_listening)
        yield port
    finally:
        server.kill()
        server.wait()


def received(folder: Path) -> dict[str, bytes]:
    """Return the received mails by recipient, without the lines that the server adds."""
    mails = {}
    for file in folder.glob("mail.*"):
        head, _, rest = file.read_bytes().partition(b"Received: ")
        _, _, mail = rest.partition(b"(UTC)\n")
        recipient = head.partition(b"X-Rcpt-Args: <")[2].partition(b">")[0].decode()
        assert recipient not in mails
        mails[recipient] = mail.removesuffix(b"\n")
    return mails


@pytest.mark.parametrize("options", [(), ("-p",), ("-8",)], ids=["pipelining", "plain", "7 bit"])
@pytest.mark.parametrize("most", [None, 7])
def test_many_mails(tmp_path: Path, options: tuple[str, ...], most: int | None) -> None:
    """Mails with dots, non-ASCII or large text arrive unchanged, in any mode of the server."""
    texts = ["Hello\n", ".\n..\n.first\n", "Grüße\n", "all work and no play\n" * 5000]
    letters = [
        make_letter(f"m{number}@example.com", text=texts[number % len(texts)])
        for number in range(MAILS)
    ]
    with smtp_sink(tmp_path, *options) as port:
        relay = make_relay("127.0.0.1", port, **({"MAIL_MAX_EMAILS": most} if most else {}))
        with relay.connection() as connection:
            verdicts = [outcome.verdict for outcome in connection.exchange(supply(letters))]
        relay.hang_up()

    assert verdicts == [Verdict.SENT] * MAILS
    in_eight_bits = "-8" not in options
    sent = {
        letter.recipient: letter._composed.form(eightbit=in_eight_bits).as_bytes()
        for letter in letters
    }
    assert received(tmp_path) == {
        recipient: mail.replace(b"\r\n", b"\n") for recipient, mail in sent.items()
    }
