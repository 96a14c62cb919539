"""Replies that may be about a connection's limit, by their words."""

import pytest

from mailer.message import Phase
from mailer.policy import is_session_limit


@pytest.mark.parametrize(
    "reply",
    [
        "452 4.5.3 Too many recipients: Too many messages sent",  # OpenSMTPD
        "421 too many messages in this connection",  # Exim
        "421 4.7.0 relay.example.net Error: too many errors",  # Postfix
        "451 4.5.3 something of ours",
        "503 5.5.1 Too many transactions",
        "554 5.7.0 Message limit per session exceeded",
        "450 Session limit reached",
        "451 4.7.1 Please open a new connection",
    ],
)
def test_words_about_the_connection(reply: str) -> None:
    """A reply about a connection's limit is worth a new connection, even a 5xx."""
    assert is_session_limit(Phase.MAIL, reply)


@pytest.mark.parametrize(
    "reply",
    [
        "451 4.1.8 Domain of sender address ada@example.com does not resolve",
        "550 5.1.1 User unknown",
        "550 5.1.1 <too many messages per session@example.com> User unknown",
        "450 4.2.0 Greylisted, see http://postgrey.example.net",
        "421 4.7.0 Too many connections from your address",
        "552 5.3.4 Message size exceeds fixed limit",
        "452 4.3.1 Insufficient system storage",
        "no reply at all",
    ],
)
def test_words_about_the_mail(reply: str) -> None:
    """A reply about the mail is no connection limit, even if an address contains such words."""
    assert not is_session_limit(Phase.RCPT, reply)
