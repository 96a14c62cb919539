"""The serialiser of mails: headers, bodies and DKIM signatures.

`Message.as_bytes()` of Flask-Mail parses and folds every header a second time, which takes longer
than the delivery of the mail.
"""

from mailer.mime.composed import Composed, compose
from mailer.mime.signer import Signer, make_signer
from mailer.mime.wire import WireMessage

__all__ = ["Composed", "Signer", "WireMessage", "compose", "make_signer"]
