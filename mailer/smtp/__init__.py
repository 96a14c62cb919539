"""Mail goes to a relay: Flask-Mail's `Connection`, with what it lacks.

`Relay` lends warm connections to the threads of a process, `RelayConnection.transmit()` sends mails over one of them. Each phase
has its time-out, TLS is verified, mails follow each other without a pause where the relay can do that, the relay's words are
kept, and a QUIT that fails never turns an accepted mail into a failed one. What went wrong is a value (`Outcome`): exceptions
end in this room.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import flask_mail
from flask import Flask

from mailer.forks import notice_fork, survive_forks
from mailer.settings import RelaySettings
from mailer.smtp.connection import RelayConnection
from mailer.smtp.entrance import Entrance
from mailer.smtp.limits import ConnectionLimit

__all__ = ["Relay", "RelayConnection"]


class Relay:
    """One relay in one process: its warm connections, shared by the threads."""

    def __init__(self, settings: RelaySettings, app: Flask, mail: flask_mail._Mail) -> None:
        self.name = settings.name
        self.settings = settings
        self._app = app
        self._mail = mail
        self._entrance = Entrance(settings)
        self._limit = ConnectionLimit(settings.name)
        self._idle: list[RelayConnection] = []  # the longest unused first
        self._parents: list[RelayConnection] = []
        self._changed = threading.Condition()
        self._clock: threading.Thread | None = None
        survive_forks(self)

    @contextmanager
    def connection(self) -> Iterator[RelayConnection]:
        """A warm connection if there is one; it is kept for the next mail."""
        notice_fork()
        connection = self._take() or RelayConnection(self._mail, self.settings, self._app, self._entrance, self._limit)
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
            if self._clock is None:
                self._clock = threading.Thread(target=self._close_in_time, name=f"idle connections to {self.name}", daemon=True)
                self._clock.start()

    def _close_in_time(self) -> None:
        """Hang up on connections nobody used for a while, as long as there are any. It runs in a thread of its own."""
        while True:
            with self._changed:
                old = [one for one in self._idle if one.idle_seconds >= self.settings.idle_timeout]
                self._idle = [one for one in self._idle if one not in old]
                if not old and not self._idle:
                    self._clock = None
                    return
                if not old:
                    self._changed.wait(self.settings.idle_timeout - self._idle[0].idle_seconds)
            for connection in old:
                connection.close()

    def after_fork_in_child(self) -> None:
        """In a child: the sessions are the parent's. Kept, so that no collector closes a TLS session that is not ours."""
        self._entrance = Entrance(self.settings)  # another thread of the parent may have held its lock
        self._limit = ConnectionLimit(self.name)
        self._parents, self._idle = self._parents + self._idle, []
        self._changed = threading.Condition()
        self._clock = None
