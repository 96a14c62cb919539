"""The DKIM-Signature headers of a mail (RFC 6376). `keys` has the algorithms."""

import binascii
import hashlib
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from mailer.errors import SigningFailed
from mailer.policy import FAULTS_OF_A_MAIL

#: The headers to sign if they are present: those for readers, for decoding, and for programs.
_SIGNED = (
    "from sender to cc reply-to subject date message-id mime-version content-type"
    " content-transfer-encoding in-reply-to references list-id list-help list-owner list-post"
    " list-subscribe list-archive list-unsubscribe list-unsubscribe-post auto-submitted"
    " feedback-id precedence x-auto-response-suppress"
).split()
#: Headers signed once more than they occur, so that nobody can add another one.
_OVERSIGNED = frozenset("from to cc reply-to subject date".split())
_BLANKS = re.compile(rb"[ \t\r\n]+")


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A loaded private key. Its public key is in the DNS, at `<selector>._domainkey.<domain>`."""

    domain: str
    selector: str
    algorithm: str
    sign: Callable[[bytes], bytes] = field(repr=False)


def signature_lines(
    keys: Iterable[SigningKey], headers: Sequence[str], content: bytes, *, signed_at: float
) -> list[str]:
    """Return a DKIM-Signature of each key, always the same for the same mail."""
    names, signed = _selected(headers)
    body_hash = _base64(hashlib.sha256(relaxed_body(content)).digest())
    tags = f"t={int(signed_at)};\r\n h={_in_lines(names, ':', 4)};\r\n bh={body_hash};\r\n b="
    lines = []
    for key in keys:
        identity = f"d={key.domain};\r\n s={key.selector}"
        line = f"DKIM-Signature: v=1; a={key.algorithm}; c=relaxed/relaxed;\r\n {identity}; {tags}"
        signature = _signature(key, signed + relaxed_field(line.encode()))
        lines.append(line + _in_lines(_base64(signature), "", 72))
    return lines


def _signature(key: SigningKey, data: bytes) -> bytes:
    """Sign data. Raise SigningFailed for errors that would be taken for faults of the mail."""
    try:
        return key.sign(data)
    except FAULTS_OF_A_MAIL as error:
        name = f"{key.selector}._domainkey.{key.domain}"
        raise SigningFailed(f"the key {name} can't sign: {type(error).__name__}") from error


def _selected(headers: Sequence[str]) -> tuple[list[str], bytes]:
    """Return the names for h= and their canonical headers, the last of each name first."""
    present: dict[str, list[bytes]] = defaultdict(list)
    for line in headers:
        present[line.partition(":")[0].lower()].append(relaxed_field(line.encode()) + b"\r\n")
    names: list[str] = []
    signed: list[bytes] = []
    for name in _SIGNED:
        fields = present[name]
        names += [name] * (len(fields) + (name in _OVERSIGNED))
        signed += reversed(fields)
    return names, b"".join(signed)


def relaxed_field(line: bytes) -> bytes:
    """Canonicalise a header (RFC 6376, 3.4.2): lower-case name, one line, single blanks."""
    name, _, value = line.partition(b":")
    return name.rstrip().lower() + b":" + _BLANKS.sub(b" ", value).strip(b" ")


def relaxed_body(content: bytes) -> bytes:
    """Canonicalise a body (RFC 6376, 3.4.4): single blanks, none at the end of lines or body."""
    content = content.replace(b"\t", b" ")
    while b"  " in content:
        content = content.replace(b"  ", b" ")
    content = content.replace(b" \r\n", b"\r\n").rstrip(b"\r\n")
    return content + b"\r\n" if content else b""


def _base64(data: bytes) -> str:
    return binascii.b2a_base64(data, newline=False).decode()


def _in_lines(items: Sequence[str], between: str, each: int) -> str:
    """Join the items, with a line break after `each` of them."""
    return f"{between}\r\n ".join(
        [between.join(items[at : at + each]) for at in range(0, len(items), each)]
    )
