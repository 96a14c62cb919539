"""MAILER_SECRET_KEYS, or the secret keys of Flask."""

from collections.abc import Mapping
from typing import Any


def flask_keys(config: Mapping[str, Any]) -> list[str | bytes]:
    """Return the keys with which Flask signs cookies, the current key first."""
    fallbacks = config.get("SECRET_KEY_FALLBACKS") or ()
    former = fallbacks if isinstance(fallbacks, (list, tuple)) else [fallbacks]
    return [
        one for one in (config.get("SECRET_KEY"), *former) if isinstance(one, (str, bytes)) and one
    ]


def read_secret_keys(given: object) -> tuple[bytes, ...]:
    """Return the keys as bytes. A single text may hold several, separated by commas."""
    if isinstance(given, str):
        given = [one.strip() for one in given.split(",")]
    elif isinstance(given, bytes):
        given = [given]
    if not isinstance(given, (list, tuple)) or not all(
        isinstance(one, (str, bytes)) and one for one in given
    ):
        raise ValueError(
            "allowed: a list of texts that are not empty, in the environment separated by commas"
        )
    return tuple(one.encode() if isinstance(one, str) else one for one in given)
