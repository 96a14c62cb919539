"""The choice of the keys that sign a mail."""

from collections.abc import Iterable
from importlib.util import find_spec

from mailer.errors import ConfigurationError
from mailer.mime.dkim import SigningKey
from mailer.settings.dkim import DkimKey


class Signer:
    """The keys of an app, by the domain they sign for."""

    def __init__(self, keys: Iterable[SigningKey]) -> None:
        self._keys: dict[str, tuple[SigningKey, ...]] = {}
        for key in keys:
            self._keys[key.domain] = (*self._keys.get(key.domain, ()), key)

    def keys_for(self, domain: str) -> tuple[SigningKey, ...]:
        """Return the keys of the domain, or else of the closest domain above it.

        DMARC takes a domain above for the same sender.
        """
        domain = domain.lower()
        while domain and domain not in self._keys:
            domain = domain.partition(".")[2]
        return self._keys.get(domain, ())


def make_signer(given: Iterable[DkimKey]) -> Signer | None:
    """Load the keys of the settings. Return None if there are none."""
    given = tuple(given)
    if not given:
        return None
    if find_spec("cryptography") is None:
        raise ConfigurationError(
            "MAILER_DKIM_KEYS: signing needs one more package: pip install"
            " 'flask-mailer-queue[dkim]'."
        )
    from mailer.mime.keys import load_key  # noqa: PLC0415 -- it imports cryptography

    return Signer(map(load_key, given))
