"""The error mails that wait: repeats are counted, and mails about them come once in a period."""

import math

import pytest

from mailer.logging.pending import Pending
from mailer.logging.report import Report
from mailer.message.text import span

PERIOD = 600.0


def a_report(words: str = "failed") -> Report:
    return Report(f"Shop: {words}", f"{words}\n", None)


def see(pending: Pending, kind: str, now: float, *, times: int = 1) -> None:
    for _ in range(times):
        if pending.admit(kind, now):
            pending.add(kind, a_report(kind))


def mails(pending: Pending, now: float, *, early: bool = False) -> list[tuple[str, str]]:
    """Take all that is due, as if each mail was queued."""
    found = []
    while mail := pending.take(now, early=early):
        pending.settle(mail, now)
        found.append((mail.subject, mail.text))
    return found


def test_the_first_mail_is_due_at_once() -> None:
    """An error is due when it is seen first, and an unknown one needs no thread."""
    pending = Pending(PERIOD, 10)
    assert (len(pending), pending.next_at(), mails(pending, 0)) == (0, math.inf, [])

    see(pending, "failed", 0)

    assert mails(pending, 0) == [("Shop: failed", "failed\n")]
    assert mails(pending, PERIOD - 1) == []


def test_repeats_are_told_after_a_period() -> None:
    """One mail after each period tells how often the error was seen again."""
    pending = Pending(PERIOD, 10)
    see(pending, "failed", 0)
    mails(pending, 0)
    see(pending, "failed", 1, times=312)
    assert mails(pending, PERIOD - 1) == []
    assert pending.next_at() == PERIOD

    words = "seen 312 more times in the last 10 minutes"
    assert mails(pending, PERIOD) == [
        (f"Shop: failed ({words})", f"This was {words}. The first time:\n\nfailed\n")
    ]
    see(pending, "failed", PERIOD + 1)
    assert mails(pending, 2 * PERIOD - 1) == []
    assert [subject for subject, _ in mails(pending, 2 * PERIOD)] == [
        "Shop: failed (seen 1 more time in the last 10 minutes)"
    ]


def test_an_error_that_is_over_is_forgotten() -> None:
    """After a period without it, an error is new again."""
    pending = Pending(PERIOD, 10)
    see(pending, "failed", 0)
    mails(pending, 0)

    assert mails(pending, PERIOD) == []
    assert len(pending) == 0
    see(pending, "failed", PERIOD)
    assert len(mails(pending, PERIOD)) == 1


def test_a_report_that_takes_longer_than_a_period() -> None:
    """An error whose report is not written yet is kept, and ends no period."""
    pending = Pending(PERIOD, 10)
    assert pending.admit("failed", 0)
    assert not pending.admit("failed", 1)
    assert (pending.take(PERIOD + 1), pending.next_at()) == (None, math.inf)

    pending.add("failed", a_report())

    assert [subject for subject, _ in mails(pending, PERIOD + 1)] == [
        "Shop: failed",
        "Shop: failed (seen 1 more time in the last 10 minutes)",
    ]


def test_a_report_that_fails() -> None:
    """After a report that could not be written, the next record is the first again."""
    pending = Pending(PERIOD, 10)
    assert pending.admit("failed", 0)
    pending.drop("failed")
    assert (len(pending), pending.admit("failed", 1)) == (0, True)


def test_a_mail_that_could_not_be_queued() -> None:
    """A mail that is not settled stays due, and repeats that come meanwhile are counted."""
    pending = Pending(PERIOD, 10)
    see(pending, "failed", 0)
    first = pending.take(0)
    see(pending, "failed", 1, times=5)

    again = pending.take(PERIOD + 1)
    assert first is not None
    assert again is not None
    assert again.subject == first.subject
    pending.settle(again, PERIOD + 1)
    assert [subject for subject, _ in mails(pending, PERIOD + 1)] == [
        "Shop: failed (seen 5 more times in the last 10 minutes)"
    ]


def test_repeats_that_come_while_they_are_told() -> None:
    """Repeats that come while the mail about earlier ones is queued are told by the next mail."""
    pending = Pending(PERIOD, 10)
    see(pending, "failed", 0, times=3)
    mails(pending, 0)
    mail = pending.take(PERIOD)
    assert mail is not None
    see(pending, "failed", PERIOD, times=4)
    pending.settle(mail, PERIOD)

    [(subject, _)] = mails(pending, 2 * PERIOD)
    assert "seen 4 more times" in subject


def test_too_many_errors() -> None:
    """Errors for which there is no room are counted, and the next mail says how many."""
    pending = Pending(PERIOD, 2)
    for kind in ("a", "b", "c", "d", "a"):
        see(pending, kind, 0)

    first, second = mails(pending, 0)

    words = "2 records of other errors got no mail, since 2 different errors were known or waiting."
    assert words in first[1]
    assert words not in second[1]


def test_what_is_told_early() -> None:
    """At the end of a process, repeats are told before their period is over."""
    pending = Pending(PERIOD, 10)
    see(pending, "failed", 0, times=10_000)

    assert [subject for subject, _ in mails(pending, 4, early=True)] == [
        "Shop: failed",
        "Shop: failed (seen 9,999 more times in the last 4 seconds)",
    ]
    assert mails(pending, 5, early=True) == []


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        *((0, "1 second"), (1.9, "1 second"), (90, "90 seconds"), (600, "10 minutes")),
        *((7199, "119 minutes"), (7200, "2 hours"), (172800, "2 days")),
    ],
)
def test_a_span(seconds: float, words: str) -> None:
    """A length of time is told in the largest unit that says enough."""
    assert span(seconds) == words
