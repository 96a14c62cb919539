"""Flask-Mail without a queue."""

from collections.abc import Sequence

from bench.contenders import Direct, python

_PROGRAM = "bench.programs.flask_mail_alone"


class FlaskMailLoop(Direct):
    key = "flask-mail"
    title = "Flask-Mail in a loop"
    share = 0.05

    def producer(self) -> Sequence[str]:
        return python(_PROGRAM, "loop")


class FlaskMailKept(Direct):
    key = "flask-mail-kept"
    title = "Flask-Mail in a loop, one connection"
    share = 0.05

    def producer(self) -> Sequence[str]:
        return python(_PROGRAM, "kept")


class FlaskMailThreads(Direct):
    key = "flask-mail-threads"
    title = "Flask-Mail, a thread per mail"
    share = 0.025

    def producer(self) -> Sequence[str]:
        return python(_PROGRAM, "threads")
