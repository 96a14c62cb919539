"""A warning, in debug mode and in tests, about a Message that was changed after it was queued.

The mail is as the message was at the call. Code that was written for Flask-Mail may change it
afterwards, up to the commit of its transaction for example, and would notice nothing.
"""

from logging import Logger
from typing import Any

import flask_mail
from flask import Flask, appcontext_tearing_down, current_app, g, has_app_context

from mailer.logs import get_logger

#: The name in `flask.g` of the queued messages, each with its contents at the call.
_QUEUED = "_mailer_queued"
#: Flask-Mail writes these while it sends.
_NOT_COMPARED = frozenset({"date", "msgId"})
# The messages that one app context remembers: one in development may send for hours.
_MOST = 1000

log: Logger = get_logger(__name__)


def note_queued(message: flask_mail.Message) -> None:
    """Remember the contents of a message until the end of the app context."""
    if not has_app_context() or not (current_app.debug or current_app.testing):
        return
    appcontext_tearing_down.connect(_warn_of_changes)
    queued = g.setdefault(_QUEUED, {})
    if len(queued) < _MOST or id(message) in queued:
        queued[id(message)] = message, _contents(message)


def _warn_of_changes(app: Flask, **_signal: Any) -> None:
    """Warn of messages that were changed, and not sent again, before the end of the context."""
    for message, queued in g.pop(_QUEUED, {}).values():
        now = _contents(message)
        if changed := sorted(name for name in now if _differ(now[name], queued.get(name))):
            log.warning(
                "A Message was changed after it was queued: fields=%s. The mail is as the message"
                " was at the call: change it before send() or enqueue().",
                ",".join(changed),
            )


def _differ(now: object, queued: object) -> bool:
    # A lazy string may be no text any more, after its request.
    return now is not queued and now != queued


def _contents(message: flask_mail.Message) -> dict[str, Any]:
    return {
        name: value.copy() if isinstance(value, (list, dict, set)) else value
        for name, value in vars(message).items()
        if name not in _NOT_COMPARED
    }
