"""Keys of DKIM, what the DNS says of them, and dkimpy, which looks that up and checks a mail."""

import base64
from collections.abc import Mapping

import dkim
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, generate_private_key
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from mailer.settings.dkim import DkimKey

Records = Mapping[str, str]  # by name, as in the DNS


def rsa_pem(bits: int = 2048, form: PrivateFormat = PrivateFormat.PKCS8) -> bytes:
    return generate_private_key(65537, bits).private_bytes(Encoding.PEM, form, NoEncryption())


def ed25519_pem() -> bytes:
    return Ed25519PrivateKey.generate().private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    )


def dkim_key(domain: str, selector: str, pem: bytes) -> DkimKey:
    return DkimKey(domain=domain, selector=selector, key=pem.decode())


#: Made once: that of RSA takes a while. Both sign for the same domain.
RSA = dkim_key("example.com", "rsa", rsa_pem())
ED25519 = dkim_key("example.com", "ed", ed25519_pem())


def records(*keys: DkimKey) -> Records:
    """What has to be in the DNS."""
    return {f"{key.selector}._domainkey.{key.domain}": _record(key.pem) for key in keys}


def _record(pem: bytes) -> str:
    private = load_pem_private_key(pem, None)
    if isinstance(private, Ed25519PrivateKey):
        public = private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        return f"v=DKIM1; k=ed25519; p={base64.b64encode(public).decode()}"
    assert isinstance(private, RSAPrivateKey)
    public = private.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return f"v=DKIM1; k=rsa; p={base64.b64encode(public).decode()}"


def verified_by_dkimpy(mail: bytes, in_dns: Records) -> list[bool]:
    """Whether each signature of a mail is good."""

    def look_up(name: bytes, **_patience: int) -> bytes:
        return in_dns.get(name.decode().rstrip("."), "").encode()

    signatures = mail.partition(b"\r\n\r\n")[0].count(b"DKIM-Signature:")
    return [_is_good(dkim.DKIM(mail), number, look_up) for number in range(signatures)]


def _is_good(checker: "dkim.DKIM", number: int, look_up: object) -> bool:
    try:
        return bool(checker.verify(number, look_up))
    except dkim.DKIMException:
        return False
