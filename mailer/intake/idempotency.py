"""Idempotency keys: one mail for each, recognised by a fingerprint of its first call.

The fingerprint of a sensitive mail is an HMAC, so that it may stay when the mail is erased: without
the key, nobody can find out by trying which code was in it.
"""

import hashlib
import hmac
import json
import re
from collections.abc import Sequence

from mailer.errors import InvalidMail, KeyReused
from mailer.message import Fingerprint, Key, Keyed, Message, Receipt, check_text

_LONGEST_KEY = 255
# The end of f"order-{order.id}" before the order is in the database: two orders would have the same
# key.
_NONE_AS_A_PART = re.compile(r"(?<![^\W_])None(?![^\W_])")


class Fingerprints:
    """Fingerprints of mails. Those of sensitive mail are keyed: the first key signs, all verify."""

    def __init__(self, secret_keys: Sequence[bytes]) -> None:
        self._keys = {_id_of(key): key for key in reversed(secret_keys)}
        self._signs_with = _id_of(secret_keys[0]) if secret_keys else None

    def key(self, name: str | None, message: Message, recipients: tuple[str, ...]) -> Key | None:
        """Check an idempotency key, and return it with the fingerprint of its mail."""
        if name is None:
            return None
        return Key(
            _checked(name),
            self._of(message, recipients, self._signs_with if message.sensitive else None),
        )

    def receipt(
        self, earlier: Keyed, key: Key | None, message: Message, recipients: tuple[str, ...]
    ) -> Receipt:
        """Return the receipt of the first call, if this call says the same to the same people."""
        self.check_same(key, message, earlier, recipients)
        # The recipients are part of the fingerprint.
        return Receipt(earlier.id, earlier.message_id, recipients, is_new=False)

    def check_same(
        self, key: Key | None, message: Message, earlier: Keyed, recipients: tuple[str, ...] = ()
    ) -> None:
        """Raise KeyReused unless this call certainly says the same to the same people."""
        assert key is not None  # the earlier mail was found by it
        taken = f"idempotency_key: {key.name!r} belongs to mail {earlier.id}"
        if earlier.fingerprint is None:
            raise KeyReused(
                f"{taken}, whose content is erased, so that nobody can tell whether this call says"
                " the same. Look at the status of that mail, and use another key for another"
                " mail. Set MAILER_SECRET_KEYS (or Flask's SECRET_KEY) before init_app(): then"
                " sensitive mail that is queued from now on can be recognised after it is erased."
            )
        if earlier.fingerprint.key_id not in (None, *self._keys):
            raise KeyReused(
                f"{taken}, a sensitive mail whose fingerprint was made with a secret key that is"
                " not configured here, so that nobody can tell whether this call says the same."
                " Add the former key to the end of MAILER_SECRET_KEYS (or to Flask's"
                " SECRET_KEY_FALLBACKS), and give the same keys to all applications that share"
                " this database."
            )
        if not _are_equal(
            earlier.fingerprint, self._of(message, recipients, earlier.fingerprint.key_id)
        ):
            raise KeyReused(
                f"{taken}, which says something else: give each mail a key of its own. If it is to"
                " be the same, look for what differs from call to call: a time or a token in a"
                " template."
            )

    def _of(self, message: Message, recipients: tuple[str, ...], key_id: str | None) -> Fingerprint:
        said = _said(message, recipients)
        if key_id is None:
            return Fingerprint(hashlib.sha256(said).hexdigest())
        return Fingerprint(
            hmac.new(self._keys[key_id], b"mailer: fingerprint of " + said, "sha256").hexdigest(),
            key_id,
        )


def _id_of(key: bytes) -> str:
    """Name a key without telling it."""
    return hmac.new(key, b"mailer: id of this key", "sha256").hexdigest()[:16]


def _are_equal(one: Fingerprint, other: Fingerprint) -> bool:
    return one.key_id == other.key_id and hmac.compare_digest(
        one.digest.encode(), other.digest.encode()
    )


def _checked(name: str) -> str:
    name = check_text(name, field="idempotency_key", error=InvalidMail)
    if not 0 < len(name) <= _LONGEST_KEY:
        raise InvalidMail(
            f"idempotency_key: it has {len(name)} characters: give 1 to {_LONGEST_KEY}."
        )
    if _NONE_AS_A_PART.search(name):
        raise InvalidMail(
            f"idempotency_key: {name!r} has the part None, which other mails would share. If it is"
            " the id of a new object, call db.session.flush() first, which gives the object its"
            " id."
        )
    return name


def _said(message: Message, recipients: tuple[str, ...]) -> bytes:
    """Serialise a mail and its recipients, without the fields that each call makes anew.

    Empty fields are left out, so that a field can be added.
    """
    said = {
        "recipients": recipients,
        "sender": str(message.sender),
        "envelope_from": message.envelope_from,
        "subject": message.subject,
        "text": message.text,
        "html": message.html,
        "alternatives": message.alternatives,
        "to": [str(address) for address in message.to],
        "cc": [str(address) for address in message.cc],
        "reply_to": [str(address) for address in message.reply_to],
        "headers": message.headers,
        "attachments": [
            (
                one.filename,
                hashlib.sha256(one.data).hexdigest(),
                one.content_type,
                one.content_id,
                one.disposition,
                one.headers,
            )
            for one in message.attachments
        ],
        "tags": message.tags,
        "metadata": message.metadata,
        "mail_options": message.mail_options,
        "rcpt_options": message.rcpt_options,
    }
    return json.dumps({name: value for name, value in said.items() if value}).encode()
