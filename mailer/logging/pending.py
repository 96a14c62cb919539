"""The error mails of a process that wait, and the repeats of errors. Pure; the clock is passed in.

An error is known from its first record until a period passes in which it was not seen.
"""

import math
from collections.abc import Hashable
from dataclasses import dataclass

from mailer.logging.report import Report
from mailer.message.text import span


@dataclass(slots=True)
class _Error:
    """An error that was seen."""

    since: float  #: the beginning of the count
    report: Report | None = None  #: of the first record, once it is written
    is_mailed: bool = False
    repeats: int = 0

    @property
    def is_told(self) -> bool:
        return self.is_mailed and not self.repeats


@dataclass(frozen=True, slots=True)
class ErrorMail:
    """A mail to queue. `Pending.settle()` takes it back afterwards."""

    kind: Hashable
    report: Report
    subject: str
    text: str
    repeats: int
    lost: int


class Pending:
    """The errors of one process, each with its mail and its repeats. Not safe for threads."""

    def __init__(self, period: float, capacity: int) -> None:
        self._period = period
        self._capacity = capacity
        self._errors: dict[Hashable, _Error] = {}
        self._lost = 0

    def __len__(self) -> int:
        """Return the number of errors that are known."""
        return len(self._errors)

    def admit(self, kind: Hashable, now: float) -> bool:
        """Return whether a record is the first of its kind, which needs a report. Count it."""
        if (error := self._errors.get(kind)) is not None:
            error.repeats += 1
            return False
        if len(self._errors) >= self._capacity:
            self._lost += 1
            return False
        self._errors[kind] = _Error(now)
        return True

    def add(self, kind: Hashable, report: Report) -> None:
        """Let a mail be queued with the report of a first record."""
        self._errors[kind].report = report

    def drop(self, kind: Hashable) -> None:
        """Forget an error whose report failed: the next record of its kind is the first again."""
        del self._errors[kind]

    def take(self, now: float, *, early: bool = False) -> ErrorMail | None:
        """Return a mail that is due; `early`, also one about repeats in a period at hand."""
        for kind, error in list(self._errors.items()):
            is_over = now >= error.since + self._period
            if error.report is not None and not error.is_mailed:
                return self._mail(kind, error.report, error.report.subject, "", 0)
            if error.report is not None and error.repeats and (is_over or early):
                times = "time" if error.repeats == 1 else "times"
                words = f"seen {error.repeats:,} more {times} in the last {span(now - error.since)}"
                subject = f"{error.report.subject} ({words})"
                opening = f"This was {words}. The first time:\n\n"
                return self._mail(kind, error.report, subject, opening, error.repeats)
            if error.report is not None and is_over:
                del self._errors[kind]
        return None

    def settle(self, mail: ErrorMail, now: float) -> None:
        """Note that a mail is queued, or that it never can be."""
        error = self._errors[mail.kind]
        if error.is_mailed:
            error.since = now
        error.is_mailed = True
        error.repeats -= mail.repeats
        self._lost -= mail.lost

    def count_waiting(self) -> int:
        """Return the number of errors of which not all is told."""
        return sum(not error.is_told for error in self._errors.values())

    def forget_settled(self) -> None:
        """Forget the errors of which all is told."""
        for kind, error in list(self._errors.items()):
            if error.is_told:
                del self._errors[kind]

    def next_at(self) -> float:
        """Return the time at which a period ends, or infinity. Reports in the making have none."""
        ends = [one.since + self._period for one in self._errors.values() if one.report is not None]
        return min(ends, default=math.inf)

    def _mail(
        self, kind: Hashable, report: Report, subject: str, opening: str, repeats: int
    ) -> ErrorMail:
        closing = ""
        if self._lost:
            closing = (
                f"\n{self._lost:,} records of other errors got no mail, since {self._capacity}"
                " different errors were known or waiting. The log has them.\n"
            )
        text = f"{opening}{report.text}{closing}"
        return ErrorMail(kind, report, subject, text, repeats, self._lost)
