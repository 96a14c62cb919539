"""The longest delivery: a relay whose replies all come at the last moment, on a virtual clock."""

from collections.abc import Iterator

import pytest

from mailer.message import Verdict
from mailer.mime import WireMessage
from mailer.smtp import opening, session
from mailer.smtp.opening import SessionOpener
from mailer.smtp.session import Session
from tests.services.relay import make_letter, make_relay, supply

_LAST_MOMENT = 0.999
_WAY_IN = [b"220 relay", b"250 relay\nPIPELINING\nAUTH CRAM-MD5", b"334 PDE+", b"235 welcome"]
_ENVELOPE = [b"250 ok", b"250 ok", b"354 go on"]
_SILENCE = b""
TIMEOUTS = {
    "MAILER_CONNECT_TIMEOUT": 10,
    "MAILER_COMMAND_TIMEOUT": 60,
    "MAILER_DATA_TIMEOUT": 180,
    "MAILER_REPLY_TIMEOUT": 600,
    "MAIL_USERNAME": "ada",
    "MAIL_PASSWORD": "secret",
}


class SlowRelay:
    """A relay that uses up each time-out before it replies, and the clock that shows it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *replies: bytes) -> None:
        self.now = 0.0
        self._replies = list(replies)
        for module in (session, opening):
            monkeypatch.setattr(module, "time", self)
        monkeypatch.setattr(
            SessionOpener, "_connect", lambda way: self._connected(way._settings.connect_timeout)
        )
        monkeypatch.setattr(Session, "receive_reply", lambda _, seconds: self._reply(seconds))
        monkeypatch.setattr(
            Session,
            "send_bytes",
            lambda _, data, seconds, more=b"", **_what: self._take(data + more, seconds),
        )

    def monotonic(self) -> float:
        return self.now

    def _connected(self, seconds: float) -> "_Line":
        self.now += seconds * _LAST_MOMENT
        return _Line()

    def _reply(self, seconds: float) -> bytes:
        self.now += seconds * _LAST_MOMENT
        if not (reply := self._replies.pop(0)):
            raise TimeoutError("timed out")
        return reply

    def _take(self, data: bytes, seconds: float) -> None:
        if b"\r\n.\r\n" in data:
            self.now += seconds * _LAST_MOMENT


class _Line:
    """A socket without data."""

    def shutdown(self, _how: int) -> None:
        pass

    def close(self) -> None:
        pass


def test_the_way_in_has_a_time_out_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening a connection has a time-out as a whole, however many steps it takes."""
    steps = [
        b"220 relay",
        b"250 relay\nAUTH LOGIN",
        b"334 VXNlcm5hbWU6",
        b"334 UGFzc3dvcmQ6",
        b"334 TW9yZTo=",
        b"535 no",
    ]
    relay = make_relay("127.0.0.1", 25, **TIMEOUTS)
    clock = SlowRelay(monkeypatch, *steps)

    with relay.connection() as connection:
        assert connection.try_open() is not None

    assert clock.now <= relay.settings.longest_opening


@pytest.mark.parametrize(
    ("mails", "replies"),
    [
        (
            2,
            [
                *_WAY_IN,
                *_ENVELOPE,
                b"250 taken",
                b"250 ok",
                b"250 ok",
                _SILENCE,
                *_WAY_IN,
                *_ENVELOPE,
                b"250 taken",
            ],
        ),
        (1, [*_WAY_IN, b"250 ok", b"250 ok", _SILENCE, *_WAY_IN, *_ENVELOPE, b"250 taken"]),
    ],
    ids=["its envelope rides", "there is no connection"],
)
def test_the_lease_of_a_mail_outlasts_the_slowest_relay(
    monkeypatch: pytest.MonkeyPatch, mails: int, replies: list[bytes]
) -> None:
    """A lease outlasts the slowest delivery, from taking the mail to its outcome."""
    relay = make_relay("127.0.0.1", 25, **TIMEOUTS)
    clock = SlowRelay(monkeypatch, *replies)
    asked_at = 0.0

    def source() -> Iterator[WireMessage]:
        nonlocal asked_at
        for _ in range(mails):
            asked_at = clock.now
            yield make_letter()

    with relay.connection() as connection:
        outcomes = [outcome.verdict for outcome in connection.exchange(supply(source()))]
        connection.drop()
    took = clock.now - asked_at

    assert outcomes == [Verdict.SENT] * mails
    assert 0.5 * relay.settings.longest_try < took < relay.settings.longest_try
    assert relay.settings.longest_try < 3600
