"""Recognisable secrets that tests put into settings and mails and then search for in outputs."""

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
#: A line of the private key.
DKIM = RSA.pem.decode().splitlines()[3]
SECRETS = (PASSWORD, TOKEN, CLIENT_SECRET, DATABASE, REDIS, PROXY, SECRET_KEY, DKIM)

#: The contents and the recipient of a mail.
BODY = "kanarienvogel-im-text"
SUBJECT = "kanarienvogel-im-betreff"
PERSON = "ada.kanarie"


def token() -> str:
    """Return the token, as the function that MAILER_OAUTH names."""
    return TOKEN


def forms(secret: str) -> set[str]:
    """Return the secret plain, URL-quoted, as a Python literal and in base64 at each offset."""
    octets = secret.encode()
    encoded = {
        _core(base64.b64encode(b"\0" * shift + octets).decode(), shift, len(octets))
        for shift in range(3)
    }
    return {secret, quote(secret, safe=""), repr(secret)[1:-1], *encoded}


def _core(encoded: str, shift: int, length: int) -> str:
    """Return the characters that depend on the secret only."""
    first = -(-shift * 8 // 6)
    last = (shift + length) * 8 // 6
    return encoded[first:last]


def heard(text: str, *secrets: str) -> list[str]:
    """Return the secrets that the text contains in any form."""
    return [secret for secret in secrets if any(form in text for form in forms(secret))]
