"""Error mails to administrators: `QueuedMailHandler`, in the place of `SMTPHandler`.

>>> import logging
>>> from mailer.logging import QueuedMailHandler
>>> handler = QueuedMailHandler("admin@example.com", subject="Shop failed")
>>> logging.getLogger("warehouse").addHandler(handler)
"""

import atexit
import logging
import threading
import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import flask_mail
from celery import signals
from flask import Flask, current_app, has_app_context

from mailer.clock import SystemClock
from mailer.errors import ConfigurationError, InvalidMail, StoreError
from mailer.forks import notice_fork, survive_forks
from mailer.intake import Options
from mailer.logging.pending import ErrorMail, Pending
from mailer.logging.report import kind_of, make_report
from mailer.logs import get_logger, is_own_logger
from mailer.message import Address, AddressLike, Lane, parse_addresses
from mailer.message.ports import Clock
from mailer.signals import RECEIVERS_THREAD, SIGNALS_LOGGER
from mailer.threads import is_own_thread, start_daemon
from mailer.wiring import newest_app, state_of

__all__ = ["QueuedMailHandler"]

_MOST_RECIPIENTS = 1000
# The pauses between tries while the database does not answer.
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 1.0, 30.0
# A `flush()` takes no longer, but for the mail in hand. At the end of a process, Python calls it
# several times.
_FLUSH_SECONDS = 5.0
# The tag of error mails.
_TAG = "error-mail"
# The logger of Celery's line about a failed task.
_TASK_LOGGER = "celery.app.trace"

log: logging.Logger = get_logger(__name__)


class QueuedMailHandler(logging.Handler):
    """A handler that queues a mail about each error, for administrators.

    The caller waits for nothing: a thread queues the mail. Repeats are counted: after the first
    mail about an error, another one tells after each `period` how often it was seen again. An error
    is recognised by its logger, its line, the type of its exception and its traceback. At the end
    of a process the repeats are told at once, unless a signal kills it, as SIGTERM does where
    nothing handles it.

    >>> import logging
    >>> from mailer.logging import QueuedMailHandler
    >>> handler = QueuedMailHandler("admin@example.com", subject="Shop failed")
    >>> app.logger.addHandler(handler)
    >>> app.logger.error("The warehouse does not answer")
    >>> handler.flush()  # only a test has a reason to wait
    >>> mailer.mails(to="admin@example.com")[0].subject
    'Shop failed: The warehouse does not answer'
    >>> app.logger.removeHandler(handler)

    In `logging.config.dictConfig()`, which may be called before the app is made:

    >>> from logging.config import dictConfig
    >>> dictConfig(
    ...     {
    ...         "version": 1,
    ...         "disable_existing_loggers": False,
    ...         "handlers": {
    ...             "admins": {
    ...                 "class": "mailer.logging.QueuedMailHandler",
    ...                 "to": ["admin@example.com"],
    ...                 "subject": "Shop failed",
    ...             }
    ...         },
    ...         "loggers": {"warehouse": {"handlers": ["admins"]}},
    ...     }
    ... )

    Args:
        to: The address of the administrator, or several of them.
        subject: The beginning of each subject. Without it: "ERROR on web1", for example.
        app: The Flask app whose queue to use. Without it: the current app, or, outside an app
            context, the app that was made last.
        sender: The address in `From`, if it is not `MAIL_DEFAULT_SENDER`.
        lane: The lane of the mails.
        period: The seconds, or the `timedelta`, between two mails about the same error.
        capacity: The number of different errors that may be known or waiting. More are dropped, and
            the next mail says how many.
        level: The lowest level of records that the handler takes.

    Raises:
        InvalidAddress: An address can't be used.
        InvalidMail: `to` has no address, or `lane` is not a lane.
        ConfigurationError: `period` or `capacity` can't be used.
    """

    def __init__(
        self,
        to: AddressLike | Iterable[AddressLike],
        subject: str | None = None,
        *,
        app: Flask | None = None,
        sender: AddressLike | None = None,
        lane: Lane | str = Lane.NORMAL,
        period: float | timedelta = 600.0,
        capacity: int = 100,
        level: int | str = logging.ERROR,
    ) -> None:
        super().__init__(level)
        addresses = parse_addresses(to, field="to", most=_MOST_RECIPIENTS)
        self._to: list[str | tuple[str, str]] = [str(address) for address in addresses]
        if not self._to:
            raise InvalidMail("to: the handler has no recipient: give at least one address.")
        self._subject = subject
        self._app = None if app is None else weakref.ref(app)
        self._sender = None if sender is None else str(Address.parse(sender, field="sender"))
        self._options = Options(lane=Lane.parse(lane), undo=0, tags=[_TAG], by_workers=True)
        self._period = period.total_seconds() if isinstance(period, timedelta) else float(period)
        self._capacity = capacity
        if not self._period > 0 or capacity < 1:  # NaN is not more than 0 either
            raise ConfigurationError(
                f"QueuedMailHandler: period={period!r}, capacity={capacity!r}: give a period of"
                " more than 0 seconds, and a capacity of 1 or more."
            )
        self._clock: Clock = SystemClock()
        self._here = threading.local()
        self.ends_process = False  #: set when the process ends: the next `close()` is the last try
        self._begin()
        survive_forks(self)
        _handlers.add(self)

    def handle(self, record: logging.LogRecord) -> bool:
        """Take a record that passes the filters, unless the queueing of a mail has caused it."""
        passed: Any = self.filter(record)
        if not passed or self._is_busy or _is_of_mailer(record):
            return False
        # Without the lock that other handlers hold meanwhile: nobody waits for a slow record.
        with self._busy():
            try:
                self.emit(passed if isinstance(passed, logging.LogRecord) else record)
            except Exception:  # noqa: BLE001 -- logging raises nothing
                self.handleError(record)
        return True

    def emit(self, record: logging.LogRecord) -> None:
        """Count a record. If it is the first of its kind, let the thread queue a mail about it."""
        notice_fork()
        kind = kind_of(record)
        with self._changed:
            if not self._pending.admit(kind, self._clock.monotonic()):
                return
        try:
            report = make_report(record, self.format, self._subject, _current_app())
        except BaseException:  # such as a time-out of gevent, in a formatter
            with self._changed:
                self._pending.drop(kind)
                self._changed.notify_all()
            raise
        with self._changed:
            self._pending.add(kind, report)
            self._wake()

    def flush(self) -> None:
        """Queue all mails, also about repeats in a period at hand.

        Wait five seconds at most. At the end of a process, when no thread can start, the calling
        thread queues the mails, and begins none after these five seconds.
        """
        notice_fork()
        if self._is_busy:
            return
        with self._changed:
            if not self._pending:
                return
            self._hurries = True
            self._wake()
            if self._thread is not None:
                self._changed.wait_for(lambda: not self._hurries, _FLUSH_SECONDS)
                self._hurries = False
                return
        with self._busy():  # the process ends, and no thread can start
            self._queue_all()

    def count_waiting(self) -> int:
        """Return the number of mails that are due, or will be at the end of a period."""
        with self._changed:
            return self._pending.count_waiting()

    def close(self) -> None:
        """Queue all mails. Python calls this at the end of a process, unless a signal kills it."""
        self.flush()
        if self.ends_process and (waiting := self.count_waiting()):
            log.error(
                "This process ends before its error mails are queued: mails=%d. They are lost,"
                " unless the database answers at once.",
                waiting,
            )
        with self._changed:
            self._pending.forget_settled()
            self._changed.notify_all()
        super().close()

    # --- forks and threads -----------------------------------------------------------------------

    def _begin(self) -> None:
        self._changed = threading.Condition()
        self._pending = Pending(self._period, self._capacity)
        self._thread: threading.Thread | None = None
        self._hurries = False

    def after_fork_in_child(self) -> None:
        """Begin anew: the records are the parent's, and so is the thread."""
        self._begin()

    @property
    def _is_busy(self) -> bool:
        """True while this thread writes a report or queues a mail: its records are our own."""
        return getattr(self._here, "is_busy", False)

    @contextmanager
    def _busy(self) -> Iterator[None]:
        self._here.is_busy = True
        try:
            yield
        finally:
            self._here.is_busy = False

    # --- the thread ------------------------------------------------------------------------------

    def _wake(self) -> None:
        """Let the thread look for due mail. The lock is held."""
        if self._thread is None or not self._thread.is_alive():
            self._thread = start_daemon(self._run, "mailer-logging")
        self._changed.notify_all()

    def _run(self) -> None:
        """Queue each mail that is due, until no error is known."""
        pause = 0.0
        with self._busy():
            while (mail := self._next(pause)) is not None:
                is_settled = self._queue(mail)
                with self._changed:
                    if is_settled:
                        self._pending.settle(mail, self._clock.monotonic())
                        pause = 0.0
                    else:
                        self._hurries = False  # `flush()` does not wait for the database
                        pause = min(max(_FIRST_PAUSE_SECONDS, 2 * pause), _LONGEST_PAUSE_SECONDS)

    def _next(self, pause: float) -> ErrorMail | None:
        """Wait for a mail that is due. Return None if no error is known any more."""
        with self._changed:
            if pause:
                self._changed.notify_all()
                self._changed.wait(pause)
            while self._pending:
                now = self._clock.monotonic()
                if mail := self._pending.take(now, early=self._hurries):
                    return mail
                self._hurries = False
                self._changed.notify_all()
                if self._pending:
                    left = self._pending.next_at() - now
                    self._changed.wait(min(max(0.0, left), threading.TIMEOUT_MAX))
            self._thread = None
            self._hurries = False
            self._changed.notify_all()
            return None

    def _queue_all(self) -> None:
        """Queue mail in the calling thread, until the first failure or the end of the time."""
        now = self._clock.monotonic()
        ends = now + _FLUSH_SECONDS
        while self._clock.monotonic() < ends and (mail := self._take_early(now)):
            if not self._queue(mail):
                return
            with self._changed:
                self._pending.settle(mail, now)

    def _take_early(self, now: float) -> ErrorMail | None:
        with self._changed:
            return self._pending.take(now, early=True)

    def _queue(self, mail: ErrorMail) -> bool:
        """Queue a mail. Return False if that may succeed later."""
        app = (self._app and self._app()) or mail.report.find_app() or newest_app()
        if app is None:
            return False  # it is not made yet
        try:
            with app.app_context():
                message = flask_mail.Message(
                    mail.subject,
                    self._to,
                    mail.text,
                    sender=self._sender,
                    extra_headers={"Auto-Submitted": "auto-generated"},
                )
                state_of(app).intake.enqueue(message, self._options)
        except StoreError as error:
            log.warning("Error mail waits for the database: error=%s", error)
            return False
        except Exception:
            log.exception("Error mail is lost: subject=%r", mail.subject)
        return True


def _is_of_mailer(record: logging.LogRecord) -> bool:
    """Return whether a record is about Mailer itself: a mail about it would fail too."""
    if record.name == _TASK_LOGGER and isinstance(record.args, Mapping):
        return str(record.args.get("name")).startswith("mailer.")
    # Receivers of signals are functions of the application. One that fails for an error mail would
    # fail for the mail about that as well.
    if record.name == SIGNALS_LOGGER:
        return _TAG in getattr(record, "mailer_tags", ())
    is_of_thread = is_own_thread(record.thread) and record.threadName != RECEIVERS_THREAD
    return is_of_thread or is_own_logger(record.name)


def _current_app() -> Flask | None:
    if not has_app_context() or "mailer" not in current_app.extensions:
        return None
    app: Flask = current_app._get_current_object()  # type: ignore[attr-defined]  # noqa: SLF001 -- of a proxy
    return app


# --- the end of a process -----------------------------------------------------------------------

_handlers: weakref.WeakSet[QueuedMailHandler] = weakref.WeakSet()


@atexit.register
def flush_handlers() -> None:
    """Queue the last mails, before the process ends. Python closes the handlers after that."""
    for handler in list(_handlers):
        handler.flush()
        handler.ends_process = True


@signals.worker_process_shutdown.connect
def close_handlers(**_signal: Any) -> None:
    """Queue the last mails of a process of a prefork pool, which ends without `atexit`."""
    for handler in list(_handlers):
        handler.ends_process = True
        handler.close()
