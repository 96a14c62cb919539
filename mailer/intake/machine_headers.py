"""Machine headers: they tell other programs that a program sent the mail, and what for."""

import hashlib
import re
from collections.abc import Collection, Mapping
from dataclasses import replace

from mailer.message import Envelope, Lane, Message, is_bulk_id
from mailer.policy import NO_TENANT

# Google wants 5 to 15 characters.
_SHORTEST_SENDER_ID, _LONGEST_SENDER_ID = 5, 15
_KEPT, _HASH_DIGITS = 8, 7
_PLAIN = re.compile(r"[\w.-]{1,40}", re.ASCII)


class MachineHeaders:
    """The machine headers that an app wants, by their names."""

    def __init__(self, wanted: Collection[str]) -> None:
        self._wanted = wanted

    def add_to(
        self, message: Message, envelope: Envelope, given: Mapping[str, str | None] | None
    ) -> Message:
        """Add the headers to a mail, but for those that the caller has given, or set to None."""
        taken = {name.lower() for name in given or ()}
        added = [
            (name, value)
            for name, value in _headers_for(message, envelope.lane, envelope.tenant).items()
            if name in self._wanted and name.lower() not in taken
        ]
        return replace(message, headers=(*message.headers, *added)) if added else message


def _headers_for(message: Message, lane: Lane, tenant: str) -> dict[str, str]:
    is_bulk = is_bulk_id(message.id)
    headers = {}
    # A single mail whose replies go to somebody may be what a person wrote into a form: that person
    # wants to know of an absence. Of many mails at once, nobody wants to.
    if is_bulk or lane is Lane.BULK or not message.reply_to:
        headers["Auto-Submitted"] = "auto-generated"  # RFC 3834
        # Of Exchange. "All" would suppress bounces as well.
        headers["X-Auto-Response-Suppress"] = "OOF, AutoReply"
    if lane is Lane.BULK:
        headers["Precedence"] = "bulk"
    # For Google: send, kind of mail, customer, sender. No tags: they are the application's own, and
    # may be about the recipient.
    bulk_id = message.id if is_bulk else ""
    kind, sender = lane.name.lower(), _sender_id(message.sender.domain)
    headers["Feedback-ID"] = f"{bulk_id}:{kind}:{_tenant_id(tenant)}:{sender}"
    return headers


def _tenant_id(tenant: str) -> str:
    """Return the name of a tenant, or a hash of a name that would not fit into the header."""
    is_plain = tenant == NO_TENANT or _PLAIN.fullmatch(tenant)
    return tenant if is_plain else hashlib.sha256(tenant.encode()).hexdigest()[:_LONGEST_SENDER_ID]


def _sender_id(domain: str) -> str:
    """Return the domain, or if its length is not allowed, its beginning and a hash of it."""
    domain = domain.lower()
    if domain.isascii() and _SHORTEST_SENDER_ID <= len(domain) <= _LONGEST_SENDER_ID:
        return domain
    kept = "".join(letter for letter in domain if letter.isascii() and letter.isalnum())
    return kept[:_KEPT] + hashlib.sha256(domain.encode()).hexdigest()[:_HASH_DIGITS]
