"""Faults that the SMTP server plays on demand.

A `Fault` names a stage of the conversation and the action there. Tests add faults at run time:

    server.faults.add(Fault("rcpt", "450 4.2.0 greylisted", times=2))
    server.faults.add(Fault("dot", DROP, recipient="ada@example.com"))

In the inbox a person asks for a fault with the address of the recipient:

    450@fault.example    refused for now             550@fault.example      refused for good
    drop@fault.example   disconnects at the dot      doubt@fault.example    accepts and disconnects
    slow@fault.example   the reply takes 5 seconds   hang@fault.example     no reply, no hang-up
"""

import threading
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

Stage = Literal["connect", "ehlo", "auth", "mail", "rcpt", "data", "dot", "quit"]

DROP = "drop"  # close the socket instead of answering
HANG = "hang"  # say nothing, keep the socket open until the server stops
DELAY = "delay"  # answer as usual, but only after `delay`
ACCEPT_AND_DROP = "accept_and_drop"  # dot only: take the mail, close instead of answering
CLOSE_AFTER_250 = "close_after_250"  # dot only: take the mail, answer, close
AFTER_ACCEPTING = (ACCEPT_AND_DROP, CLOSE_AFTER_250)


@dataclass(frozen=True)
class Fault:
    """A fault that the server plays: `action`, at `stage`, after `delay` seconds.

    The action is one of the constants above, or a reply such as "451 4.7.1 try later". It happens
    `times` times (None: always); with a `recipient`, only for mail to that address, at the stages
    rcpt, data and dot.
    """

    stage: Stage
    action: str
    times: int | None = 1
    recipient: str | None = None
    delay: float = 0.0

    def __post_init__(self) -> None:
        if self.action in AFTER_ACCEPTING and self.stage != "dot":
            raise ValueError(f'{self.action!r} is for the stage "dot", not for {self.stage!r}')

    def concerns(self, stage: Stage, recipients: Iterable[str]) -> bool:
        return self.stage == stage and (self.recipient is None or self.recipient in recipients)


class Faults:
    """The pending faults, oldest first. Safe to use from any thread."""

    def __init__(self, faults: Iterable[Fault] = ()) -> None:
        self._lock = threading.Lock()
        self._pending = list(faults)

    def add(self, *faults: Fault) -> None:
        with self._lock:
            self._pending.extend(faults)

    def __len__(self) -> int:
        """Return the number of pending faults."""
        with self._lock:
            return len(self._pending)

    def clear(self) -> None:
        with self._lock:
            self._pending.clear()

    def take(self, stage: Stage, recipients: Iterable[str] = ()) -> Fault | None:
        """Return the fault to play now, if there is one, and count it as played."""
        with self._lock:
            for index, fault in enumerate(self._pending):
                if fault.concerns(stage, recipients):
                    self._pending[index : index + 1] = _left_of(fault)
                    return fault
        return None


def _left_of(fault: Fault) -> list[Fault]:
    if fault.times is None:
        return [fault]
    return [replace(fault, times=fault.times - 1)] if fault.times > 1 else []


def _for_ever(name: str, stage: Stage, action: str, delay: float = 0.0) -> Fault:
    return Fault(stage, action, times=None, recipient=f"{name}@fault.example", delay=delay)


BY_ADDRESS = (
    _for_ever("450", "rcpt", "450 4.2.0 The mailbox is busy, try later"),
    _for_ever("550", "rcpt", "550 5.1.1 No such user here"),
    _for_ever("drop", "dot", DROP),
    _for_ever("doubt", "dot", ACCEPT_AND_DROP),
    _for_ever("slow", "dot", DELAY, delay=5.0),
    _for_ever("hang", "dot", HANG),
)
