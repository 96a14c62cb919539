"""The private keys of DKIM. Only apps that sign mail import this module and `cryptography`."""

import hashlib
from collections.abc import Callable

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from mailer.errors import ConfigurationError
from mailer.mime.dkim import SigningKey
from mailer.settings.dkim import DkimKey

_MIN_BITS, _MAX_BITS = 1024, 4096  # RFC 8301: verifiers need not accept others


def load_key(given: DkimKey) -> SigningKey:
    """Load a key and try it. Raise ConfigurationError, without any part of the key."""
    try:
        algorithm, sign = _algorithm(load_pem_private_key(given.pem, password=None))
        sign(b"")  # a key that can't sign is noticed here
    except _Unusable as problem:
        reason = str(problem)
    except TypeError:
        reason = (
            "it is encrypted: write it without a passphrase, readable for the worker only (openssl"
            " pkey -in … -out …)"
        )
    except (ValueError, UnsupportedAlgorithm):
        reason = "it is no private key in PEM, which begins with -----BEGIN PRIVATE KEY-----"
    else:
        return SigningKey(given.domain, given.selector, algorithm, sign)
    raise ConfigurationError(
        f"MAILER_DKIM_KEYS=<hidden>: the key {given} can't be used: {reason}."
    ) from None


class _Unusable(Exception):
    """The key is not usable for DKIM."""


def _algorithm(key: object) -> tuple[str, Callable[[bytes], bytes]]:
    match key:
        case RSAPrivateKey():
            if not _MIN_BITS <= key.key_size <= _MAX_BITS:
                raise _Unusable(
                    f"RSA of {key.key_size} bits: take 2048, from {_MIN_BITS} to {_MAX_BITS} are"
                    " possible"
                )
            padding, digest = PKCS1v15(), hashes.SHA256()
            return "rsa-sha256", lambda data: key.sign(data, padding, digest)
        case Ed25519PrivateKey():
            return "ed25519-sha256", lambda data: key.sign(hashlib.sha256(data).digest())
        case _:
            raise _Unusable("DKIM knows RSA and Ed25519 only")
