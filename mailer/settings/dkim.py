"""The keys that sign mail: whose they are, and where they come from. No text of an error holds any of a key."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mailer.errors import InvalidAddress
from mailer.message import Address

_EXAMPLE = '{"domain": "example.com", "selector": "2026a", "key_file": "/path/to/2026a.pem"}'
_KNOWN = frozenset({"domain", "selector", "key_file", "key"})
_LABEL = "[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
_SELECTOR = re.compile(rf"{_LABEL}(\.{_LABEL})*")


@dataclass(frozen=True, slots=True)
class DkimKey:
    """The public half of it is in the DNS, at `<selector>._domainkey.<domain>`."""

    domain: str
    selector: str
    pem: bytes = field(repr=False)

    def __str__(self) -> str:
        return f"{self.selector} of {self.domain}"


def read_keys(given: object) -> tuple[DkimKey, ...]:
    """Take a list of entries, or the JSON of one; a ValueError says what is wrong with which."""
    entries = _parsed(given) if isinstance(given, str) else given
    if not isinstance(entries, (list, tuple)):
        raise ValueError(f"allowed: a list of entries such as {_EXAMPLE}")  # noqa: TRY004 -- what pydantic takes for an answer
    keys = tuple(_read(entry, f"entry {number}") for number, entry in enumerate(entries, 1))
    names = [str(key) for key in keys]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"the selector {twice[0]} is there twice: each key needs one of its own")
    return keys


def _parsed(text: str) -> Any:
    try:
        return json.loads(text, strict=False)  # a PEM may have its line ends in it
    except ValueError as error:
        raise ValueError(f"this is no JSON ({error}): allowed: a list of entries such as {_EXAMPLE}") from None


def _read(entry: object, where: str) -> DkimKey:
    if not isinstance(entry, Mapping):
        raise ValueError(f"{where} is no object: give one such as {_EXAMPLE}")  # noqa: TRY004 -- the same
    if unknown := sorted(map(str, entry.keys() - _KNOWN)):
        raise ValueError(f"{where} has {unknown[0]!r}: allowed: {', '.join(sorted(_KNOWN))}")
    for name in entry:
        if not isinstance(entry[name], str) or not entry[name]:
            raise ValueError(f"{where}: {name}: give a text that is not empty")
    if not {"domain", "selector"} <= entry.keys() or len(entry) != 3:
        raise ValueError(f"{where}: give domain, selector, and either key_file or key")
    domain = _domain(entry["domain"], where)
    selector = entry["selector"].lower()
    if not _SELECTOR.fullmatch(selector):
        raise ValueError(f"{where}: the selector {selector!r} is no name in the DNS: give one such as '2026a'")
    return DkimKey(domain, selector, _pem(entry, where))


def _domain(given: str, where: str) -> str:
    try:
        return Address.parse(f"postmaster@{given}", field=where).domain.lower()
    except InvalidAddress:
        raise ValueError(f"{where}: {given!r} is no domain of senders: give one such as 'example.com'") from None


def _pem(entry: Mapping[str, str], where: str) -> bytes:
    if "key" in entry:
        # Variables of an environment often can't hold a line end, and have \n for it.
        return entry["key"].replace("\\n", "\n").encode()
    try:
        return Path(entry["key_file"]).read_bytes()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ValueError(f"{where}: the file {entry['key_file']!r} can't be read: {reason}") from None
