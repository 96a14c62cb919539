"""The servers of the bench count each mail once, in any session and any packet."""

import smtplib
import socket
import subprocess
from pathlib import Path

from bench.distance import running_relay
from bench.sink import Sink, find_program, running_sink
from tests.services import requirement
from tests.services.waiting import wait_until

LETTER = b"Subject: hello\r\n\r\nhello\r\n.. a line with dots\r\n"


def test_the_sink_counts_every_mail(tmp_path: Path) -> None:
    """The sink counts every mail, in many sessions and however fast."""
    requirement.require(
        "Postfix (smtp-sink)", requirement.find_program("smtp-sink", also_in=[Path("/usr/sbin")])
    )
    with running_sink(tmp_path) as sink:
        subprocess.run(
            [find_program("smtp-source"), "-s", "7", "-m", "501", f"{sink.host}:{sink.port}"],
            check=True,
        )
        wait_until(lambda: sink.count >= 501)
        for _ in range(3):
            send_one(sink)
        flow = sink.wait_for(504)

        assert sink.count == 504
        assert flow.mails <= 504


def test_mails_that_come_between_two_looks(tmp_path: Path) -> None:
    """The rate of mails that all come between two looks is counted from the look before."""
    counter = tmp_path / "sink.count"
    counter.touch()

    def arrive() -> None:
        counter.write_bytes(b"mesg=40\r")

    with Sink(0, counter) as sink:
        flow = sink.wait_for(40, check=arrive)

    assert (flow.mails, flow.seconds > 0) == (40, True)
    assert flow.per_second > 0


def test_the_relay_far_away_counts_every_mail(tmp_path: Path) -> None:
    """The distant relay counts every mail that the standard library's client sends."""
    with running_relay(tmp_path) as relay:
        for _ in range(3):
            send_one(relay)

        wait_until(lambda: relay.count == 3)


def test_the_relay_far_away_answers_what_came_in_one_packet(tmp_path: Path) -> None:
    """The distant relay answers pipelined commands in order, also those behind a final dot."""
    with (
        running_relay(tmp_path) as relay,
        socket.create_connection((relay.host, relay.port)) as connection,
    ):
        replies = connection.makefile("rb")
        assert replies.readline().startswith(b"220 ")
        envelope = b"MAIL FROM:<a@example.com>\r\nRCPT TO:<b@example.com>\r\nDATA\r\n"
        connection.sendall(envelope)
        assert [replies.readline()[:3] for _ in range(3)] == [b"250", b"250", b"354"]
        connection.sendall(LETTER + b".\r\n" + envelope)
        assert [replies.readline()[:3] for _ in range(4)] == [b"250", b"250", b"250", b"354"]
        connection.sendall(LETTER + b".\r\nQUIT\r\n")
        assert [replies.readline()[:3] for _ in range(2)] == [b"250", b"221"]

        assert relay.count == 2


def send_one(server: Sink) -> None:
    with smtplib.SMTP(server.host, server.port, local_hostname="localhost") as client:
        client.sendmail("a@example.com", ["b@example.com"], LETTER)
