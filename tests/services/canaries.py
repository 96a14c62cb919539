"""Secrets that sing: each is set somewhere, and then looked for in whatever somebody might get to see."""

import base64
from urllib.parse import quote

from tests.signing import RSA

PASSWORD = "kanarie/p@ssw:rd"
TOKEN = "kanarie.token.0123456789"
CLIENT_SECRET = "kanarie~client~secret"
DATABASE = "kanarie-database"
REDIS = "kanarie-redis"
PROXY = "kanarie-proxy"
SECRET_KEY = "kanarie-secret-key"
#: A line of the key.
DKIM = RSA.pem.decode().splitlines()[3]
SECRETS = (PASSWORD, TOKEN, CLIENT_SECRET, DATABASE, REDIS, PROXY, SECRET_KEY, DKIM)

#: What a mail says, and to whom.
BODY = "kanarienvogel-im-text"
SUBJECT = "kanarienvogel-im-betreff"
PERSON = "ada.kanarie"


def token() -> str:
    """What MAILER_OAUTH names."""
    return TOKEN


def forms(secret: str) -> set[str]:
    """As it is, as in a URL, as in a literal, and as base64 has it, wherever in the encoded text it begins."""
    octets = secret.encode()
    encoded = {
        _core(base64.b64encode(b"\0" * shift + octets).decode(), shift, len(octets))
        for shift in range(3)
    }
    return {secret, quote(secret, safe=""), repr(secret)[1:-1], *encoded}


def _core(encoded: str, shift: int, length: int) -> str:
    """The letters that depend on nothing but the secret."""
    first = -(-shift * 8 // 6)
    last = (shift + length) * 8 // 6
    return encoded[first:last]


def heard(text: str, *secrets: str) -> list[str]:
    """Which of the secrets can be found in there, in any form."""
    return [secret for secret in secrets if any(form in text for form in forms(secret))]
