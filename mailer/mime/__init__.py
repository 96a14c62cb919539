"""A mail becomes bytes: headers are encoded once, bodies by the encoders of the standard library, and DKIM signs both.

`Message.as_bytes()` of Flask-Mail parses and folds every header a second time, which takes longer than delivering the mail.
"""

from mailer.mime.composed import Composed, compose
from mailer.mime.signer import Signer, make_signer
from mailer.mime.wire import WireMessage

__all__ = ["Composed", "Signer", "WireMessage", "compose", "make_signer"]
