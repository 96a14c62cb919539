"""The SMTP client: a subclass of Flask-Mail's `Connection`.

`Relay` lends warm connections to the threads of a process, and `RelayConnection.exchange()` sends
mails over one of them. Each phase has its time-out, TLS is verified, mails are pipelined if the
relay offers that, replies are kept, and a failed QUIT never fails an accepted mail. Failures are
values (`Outcome`): no exception leaves this package.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import flask_mail
from flask import Flask

from mailer.forks import notice_fork, survive_forks
from mailer.settings import RelaySettings
from mailer.smtp.connection import RelayConnection
from mailer.smtp.limits import ConnectionLimit
from mailer.smtp.opening import SessionOpener
from mailer.threads import start_daemon

__all__ = ["Relay", "RelayConnection"]


class Relay:
    """A relay and its warm connections in this process. Threads share it."""

    def __init__(self, settings: RelaySettings, app: Flask, mail: flask_mail._Mail) -> None:
        self.name: str = settings.name
        self.settings = settings
        self._app = app
        self._mail = mail
        self._opener = SessionOpener(settings)
        self._limit = ConnectionLimit(settings.name)
        self._idle: list[RelayConnection] = []  # the longest idle first
        self._parents: list[RelayConnection] = []
        self._changed = threading.Condition()
        self._closer: threading.Thread | None = None
        survive_forks(self)

    @contextmanager
    def connection(self) -> Iterator[RelayConnection]:
        """Lend a connection, warm if there is one. Keep it for the next mail."""
        notice_fork()
        connection = self._take() or RelayConnection(
            self._mail, self.settings, self._app, self._opener, self._limit
        )
        try:
            yield connection
        except BaseException:
            connection.drop()
            raise
        self._keep(connection)

    def hang_up(self) -> None:
        """Close every connection that is not in use."""
        notice_fork()
        with self._changed:
            idle, self._idle = self._idle, []
            self._changed.notify_all()
        for connection in idle:
            connection.close()

    def _take(self) -> RelayConnection | None:
        while True:
            with self._changed:
                if not self._idle:
                    return None
                connection = self._idle.pop()
            if connection.is_alive():
                return connection
            connection.drop()

    def _keep(self, connection: RelayConnection) -> None:
        if not connection.is_reusable:
            connection.drop()
            return
        with self._changed:
            self._idle.append(connection)
            if self._closer is None:
                self._closer = start_daemon(self._close_idle, f"mailer-idle-{self.name}")

    def _close_idle(self) -> None:
        """Close connections after their idle time, in a thread that ends with the last of them."""
        while True:
            with self._changed:
                old = [one for one in self._idle if one.idle_seconds >= self.settings.idle_timeout]
                self._idle = [one for one in self._idle if one not in old]
                if not old and not self._idle:
                    self._closer = None
                    return
                if not old:
                    self._changed.wait(self.settings.idle_timeout - self._idle[0].idle_seconds)
            for connection in old:
                connection.close()

    def after_fork_in_child(self) -> None:
        """Keep the sessions of the parent, unused, so that the collector never closes them."""
        self._opener = SessionOpener(self.settings)  # a thread of the parent may hold its lock
        self._limit = ConnectionLimit(self.name)
        self._parents, self._idle = self._parents + self._idle, []
        self._changed = threading.Condition()
        self._closer = None
