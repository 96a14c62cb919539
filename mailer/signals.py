"""Signals: tell the application about changes of its mail.

A receiver is called with the Flask app and an `Event`, in an app context, after the change is
committed, in the process that made it. A thread of that process calls the receivers, so that none
delays a request or a delivery. Each event is sent at most once: events are lost that wait when a
process dies, or that come faster than the receivers take them. A receiver that raises is logged,
and harms nothing.

>>> from mailer.signals import mail_failed
>>> @mail_failed.connect
... def note_failure(app, event):
...     app.logger.warning("No mail to %s: %s", event.recipient, event.reply)
"""

import atexit
import math
import threading
import weakref
from collections import deque
from collections.abc import Sequence
from logging import Logger

from blinker import NamedSignal, Namespace
from flask import Flask

from mailer.forks import notice_fork, survive_forks
from mailer.logs import get_logger
from mailer.message.events import AnyEvent, BulkEvent, Event, EventKind
from mailer.message.ports import Clock
from mailer.threads import start_daemon

__all__ = [
    "BulkEvent",
    "Event",
    "EventKind",
    "bulk_finished",
    "mail_cancelled",
    "mail_deferred",
    "mail_doubtful",
    "mail_expired",
    "mail_failed",
    "mail_queued",
    "mail_sent",
]

#: The name of the threads that call receivers.
RECEIVERS_THREAD = "mailer-signals"
# So many events may wait for receivers that are slow.
_MAX_WAITING = 10_000
# Events that are lost are logged this seldom, in seconds.
_LOGGED_EVERY = 60.0
# An idle thread ends after so many seconds, and an exiting process waits so long for it.
_IDLE_SECONDS, _EXIT_SECONDS = 5.0, 2.0

#: The logger of lines about receivers, which are functions of the application.
SIGNALS_LOGGER = __name__

log: Logger = get_logger(SIGNALS_LOGGER)

_signals = Namespace()

mail_queued: NamedSignal = _signals.signal(
    "mail-queued",
    """A mail is stored. The signal is sent once for each recipient, in the process that queues.

    >>> from mailer.signals import mail_queued
    >>> @mail_queued.connect
    ... def show_queued(app, event):
    ...     print("queued for", event.recipient)
    >>> receipt = mailer.send_email("ada@example.com", "Welcome", "mail/welcome", name="Ada")
    queued for ada@example.com
    """,
)
mail_sent: NamedSignal = _signals.signal(
    "mail-sent",
    """A relay took the delivery, or a person said so. A bounce may still come back.

    >>> from mailer.signals import mail_sent
    >>> @mail_sent.connect
    ... def mark_order(app, event):
    ...     print("order", dict(event.metadata)["order"], "is confirmed")
    >>> receipt = mailer.send_email(
    ...     "ada@example.com", "Your order", "mail/order", number=42, metadata={"order": "42"}
    ... )
    order 42 is confirmed
    """,
)
mail_deferred: NamedSignal = _signals.signal(
    "mail-deferred",
    """A try failed, and a worker will try again later. `event.reply` says why.

    >>> from mailer.signals import mail_deferred
    >>> @mail_deferred.connect
    ... def log_delay(app, event):
    ...     app.logger.info("Try %d failed: %s", event.attempts, event.reply)
    """,
)
mail_failed: NamedSignal = _signals.signal(
    "mail-failed",
    """The delivery is given up: the relay refused it, or the last try is over.

    >>> from mailer.signals import mail_failed
    >>> @mail_failed.connect
    ... def note_failure(app, event):
    ...     print("no mail to", event.recipient)
    >>> [mail] = mailer.mails(state="doubtful")
    >>> moved = mailer.resolve(mail.id, "failed")
    no mail to eve@example.com
    """,
)
mail_doubtful: NamedSignal = _signals.signal(
    "mail-doubtful",
    """All of the mail was sent, and no reply came: nobody knows whether the relay took it.

    >>> from mailer.signals import mail_doubtful
    >>> @mail_doubtful.connect
    ... def ask_operator(app, event):
    ...     app.logger.warning("Was it sent? flask mail resolve %s sent", event.mail_id)
    """,
)
mail_expired: NamedSignal = _signals.signal(
    "mail-expired",
    """The time `expires_at` is over, and the mail will not be sent.

    If it was in doubt, it may have been sent once: `event.reply` says so.

    >>> from mailer.signals import mail_expired
    >>> @mail_expired.connect
    ... def log_expired(app, event):
    ...     app.logger.warning("Too late for %s: %s", event.recipient, event.tags)
    """,
)
mail_cancelled: NamedSignal = _signals.signal(
    "mail-cancelled",
    """A person or a program cancelled the delivery while it was queued.

    >>> from datetime import timedelta
    >>> from mailer.signals import mail_cancelled
    >>> @mail_cancelled.connect
    ... def show_cancelled(app, event):
    ...     print("cancelled for", event.recipient)
    >>> receipt = mailer.send_email(
    ...     "ada@example.com", "Welcome", "mail/welcome", name="Ada", send_at=timedelta(hours=1)
    ... )
    >>> moved = mailer.cancel(receipt)
    cancelled for ada@example.com
    """,
)

bulk_finished: NamedSignal = _signals.signal(
    "bulk-finished",
    """Each mail of a bulk send has reached a final state, or the send was cancelled.

    The signal is sent once, by the worker whose sweep sees the end.

    >>> from mailer.signals import bulk_finished
    >>> @bulk_finished.connect
    ... def show_end(app, event):
    ...     print(event.progress.sent, "of", event.progress.accepted)
    >>> bulk = mailer.send_bulk("News", "mail/news", [("ada@example.com", {"name": "Ada"})])
    1 of 1
    """,
)

_BY_KIND: dict[EventKind, NamedSignal] = {
    EventKind.QUEUED: mail_queued,
    EventKind.SENT: mail_sent,
    EventKind.DEFERRED: mail_deferred,
    EventKind.FAILED: mail_failed,
    EventKind.DOUBTFUL: mail_doubtful,
    EventKind.EXPIRED: mail_expired,
    EventKind.CANCELLED: mail_cancelled,
    EventKind.BULK_FINISHED: bulk_finished,
}


class SignalOutlet:
    """The outlet of an app's events: it sends them as signals, from a thread of its own.

    An `inline` outlet calls the receivers at once, in the calling thread: for MAIL_SUPPRESS_SEND,
    where everything happens at once.
    """

    def __init__(self, app: Flask, clock: Clock, *, inline: bool = False) -> None:
        self._app = weakref.ref(app)
        self.clock = clock
        self._inline = inline
        self._waiting: deque[AnyEvent] = deque()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._in_hand = False  # an event, whose receivers are being called
        self._lost = 0
        self._logged_at = -math.inf
        survive_forks(self)
        _outlets.add(self)

    def listens_to(self, kind: EventKind) -> bool:
        """Return whether a receiver is connected to the signal of such events."""
        signal = _BY_KIND[kind]
        return bool(signal.receivers) and signal.has_receivers_for(self._app())

    def publish(self, events: Sequence[AnyEvent]) -> None:
        """Take events, and call their receivers soon."""
        if self._inline:
            self._send(events)
            return
        notice_fork()
        with self._changed:
            room = max(0, _MAX_WAITING - len(self._waiting))
            self._waiting.extend(events[:room])
            self._lost += len(events[room:])
            if self._thread is None or not self._thread.is_alive():
                self._thread = start_daemon(self._run, RECEIVERS_THREAD)
            self._changed.notify_all()

    def drain(self, seconds: float) -> bool:
        """Wait for the receivers of all events. Return False if that takes too long."""
        notice_fork()
        with self._changed:
            return self._changed.wait_for(self._has_nothing_to_do, seconds)

    def after_fork_in_child(self) -> None:
        """Begin anew: the events are the parent's, and so is the thread."""
        self._waiting = deque()
        self._changed = threading.Condition()
        self._thread = None
        self._lost = 0

    # --- the thread ------------------------------------------------------------------------------

    def _has_nothing_to_do(self) -> bool:
        return self._thread is None or not self._thread.is_alive() or self._is_idle

    @property
    def _is_idle(self) -> bool:
        return not self._waiting and not self._in_hand

    def _run(self) -> None:
        """Call the receivers of each event, until none has come for a while."""
        while True:
            with self._changed:
                self._in_hand = False
                self._changed.notify_all()
                lost = self._take_losses()
            if lost:  # without the lock: a handler of the log may queue a mail
                log.warning(
                    "Events were lost, since receivers of signals are too slow: events=%d."
                    " Let receivers do little, for example call a task.",
                    lost,
                )
            with self._changed:
                if not self._changed.wait_for(lambda: self._waiting, _IDLE_SECONDS):
                    self._thread = None
                    return
                event, self._in_hand = self._waiting.popleft(), True
            try:
                self._send([event])
            except BaseException:  # such as a time-out of gevent: the thread goes on
                log.exception(
                    "Receiver of a signal failed: signal=%s",
                    _name(event),
                    extra={"mailer_tags": event.tags},
                )

    def _send(self, events: Sequence[AnyEvent]) -> None:
        app = self._app()
        if app is None:
            return
        for event in events:
            for receiver in _BY_KIND[event.kind].receivers_for(app):
                try:
                    with app.app_context():
                        receiver(app, event=event)
                except (Exception, SystemExit):  # it ends this call, and no thread or process
                    log.exception(
                        "Receiver of a signal failed: signal=%s %s",
                        _name(event),
                        _subject(event),
                        extra={"mailer_tags": event.tags},  # for QueuedMailHandler
                    )

    def _take_losses(self) -> int:
        """Return the number of lost events to log, once in a while. The lock is held."""
        now = self.clock.monotonic()
        if not self._lost or now <= self._logged_at + _LOGGED_EVERY:
            return 0
        lost, self._lost, self._logged_at = self._lost, 0, now
        return lost


def _subject(event: AnyEvent) -> str:
    if isinstance(event, BulkEvent):
        return f"bulk={event.bulk_id}"
    return f"mail_id={event.mail_id} delivery={event.delivery_id}"


def _name(event: AnyEvent) -> str:
    return _BY_KIND[event.kind].name.replace("-", "_")


_outlets: weakref.WeakSet[SignalOutlet] = weakref.WeakSet()


@atexit.register
def drain_outlets() -> None:
    """Call the receivers of the last events, before the process ends."""
    left = _EXIT_SECONDS
    for outlet in list(_outlets):
        began = outlet.clock.monotonic()
        outlet.drain(left)
        left = max(0.0, left - (outlet.clock.monotonic() - began))
