"""The end of a mail, to the byte, over a socket that takes a limited number of bytes."""

import socket
from typing import cast

import pytest

from mailer.message import Outcome, Phase, Verdict
from mailer.settings import Settings
from mailer.smtp.dialogue import Dialogue
from mailer.smtp.session import Session

SMALL = b"Subject: Hello\r\n\r\nHello\r\n.\r\n"
LARGE = b"Subject: Hello\r\n\r\n" + b"all work and no play\r\n" * 5000 + b".\r\n"
NEXT = b"MAIL FROM:<ada@example.com>\r\nRCPT TO:<eve@example.com>\r\nDATA\r\n"


class ShortSocket:
    """A socket that loses its connection after `most` bytes, with a reply left to be read."""

    def __init__(self, most: int, piece: int, said: bytes) -> None:
        self.left = most
        self._piece = piece
        self._said = said

    def send(self, data: bytes) -> int:
        if not self.left:
            raise BrokenPipeError
        taken = min(len(data), self._piece, self.left)
        self.left -= taken
        return taken

    def recv(self, _size: int) -> bytes:
        said, self._said = self._said, b""
        return said

    def settimeout(self, seconds: float) -> None:
        assert seconds > 0

    def shutdown(self, _how: int) -> None:
        pass

    def close(self) -> None:
        pass


def outcome_of(body: bytes, rides: bytes, *, taken: int, piece: int, said: bytes) -> Outcome:
    session = Session("relay", command_timeout=60, is_lmtp=False)
    session.sock = cast(socket.socket, ShortSocket(taken, piece, said))
    settings = Settings.load({}, {}, default_database_url="sqlite://")
    return Dialogue(session, settings).send_body(body, rides)


@pytest.mark.parametrize("body", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("rides", [b"", NEXT], ids=["alone", "with another"])
@pytest.mark.parametrize("piece", [1000, 10**9], ids=["in pieces", "at once"])
@pytest.mark.parametrize(
    ("missing", "said", "verdict", "phase"),
    [
        (1, b"", Verdict.DEFERRED, Phase.DATA),
        (1, b"552 5.3.4 too big\r\n", Verdict.REFUSED, Phase.DATA),
        (1, b"421 4.3.2 closing\r\n", Verdict.DEFERRED, Phase.DATA),
        (1, b"250 taken\r\n", Verdict.DEFERRED, Phase.DATA),  # impossible before the last byte
        (1, b"354 go on\r\n", Verdict.DEFERRED, Phase.DATA),
        (1, b"what?\r\n", Verdict.DEFERRED, Phase.DATA),
        (0, b"", Verdict.DOUBTFUL, Phase.DOT),
        (0, b"what?\r\n", Verdict.DOUBTFUL, Phase.DOT),
        (0, b"250 taken\r\n", Verdict.SENT, Phase.DOT),
        (0, b"552 5.3.4 too big\r\n", Verdict.REFUSED, Phase.DOT),
        (-5, b"", Verdict.DOUBTFUL, Phase.DOT),
        (-5, b"250 taken\r\n", Verdict.SENT, Phase.DOT),
    ],
)
def test_doubt_begins_with_the_last_byte(
    body: bytes, rides: bytes, piece: int, missing: int, said: bytes, verdict: Verdict, phase: Phase
) -> None:
    """A mail is in doubt only after its last byte; before it, a negative reply counts."""
    if len(body) - missing > len(body + rides):
        return
    outcome = outcome_of(body, rides, taken=len(body) - missing, piece=piece, said=said)

    assert (outcome.verdict, outcome.phase) == (verdict, phase)
    is_silence = outcome.reply.startswith(
        ("connection lost before the end of the mail: ", "no reply after the end of the mail: ")
    )
    assert is_silence is not (outcome.reply == said.decode().strip())
    if missing > 0:
        assert is_silence is not said.startswith((b"4", b"5"))


def test_a_reply_that_came_before_the_mail() -> None:
    """Before the mail was sent, a negative reply counts and a positive one does not."""
    for said, verdict in {
        b"250 taken\r\n": Verdict.DEFERRED,
        b"554 5.7.1 never\r\n": Verdict.REFUSED,
    }.items():
        session = Session("relay", command_timeout=60, is_lmtp=False)
        session.sock = cast(socket.socket, ShortSocket(10**9, 10**9, b"354 go on\r\n" + said))
        dialogue = Dialogue(session, Settings.load({}, {}, default_database_url="sqlite://"))
        assert session.receive_reply(60) == b"354 go on\r"

        outcome = dialogue.send_body(SMALL, NEXT)

        assert (outcome.verdict, outcome.phase) == (verdict, Phase.DATA)
        assert not session.is_open
