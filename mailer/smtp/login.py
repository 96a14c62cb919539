"""AUTH, with the best mechanism that the relay offers."""

import base64
import binascii
import hmac
import smtplib
from collections.abc import Callable
from dataclasses import dataclass

from mailer.smtp.oauth import Tokens
from mailer.smtp.session import Session

_LOGGED_IN = (235, 503)  # 503: already logged in
_CHALLENGE = 334
# An offered mechanism does not work: unknown, too weak, only with TLS.
_UNUSABLE = (500, 501, 502, 503, 504, 534, 538)
# The maximum of a command line without its end. Longer data follows separately (RFC 4954, 4).
_MAX_LINE = 510
_MAX_CHALLENGES = 5


@dataclass(frozen=True, slots=True)
class Mechanism:
    """A mechanism of AUTH."""

    name: str
    opening: str | None  #: the initial response
    respond: Callable[[bytes], str]


def log_in(session: Session, user: str, password: str) -> None:
    """Log in with a password. Raise SMTPException if that fails."""
    failure: smtplib.SMTPException | None = None
    for mechanism in _offered(session, _mechanisms(user, password, in_clear=not session.is_secure)):
        code, reply = _authenticate(session, mechanism)
        if code in _LOGGED_IN:
            return
        failure = smtplib.SMTPAuthenticationError(code, reply)
        # Never repeat a wrong password: relays that count them would lock us out. But many relays
        # offer CRAM-MD5 without a plain password to compare with.
        if code not in _UNUSABLE and not (code == 535 and mechanism.name == "CRAM-MD5"):
            break
    assert failure is not None
    raise failure


def log_in_with_token(session: Session, user: str, token: str, tokens: Tokens) -> None:
    """Log in with a token, or with a fresh one if the relay refuses the first."""
    code, reply = _authenticate(session, *_offered(session, [_xoauth2(user, token)]))
    if 500 <= code < 600 and code not in _LOGGED_IN:
        fresh = tokens.get(refused=token)
        if fresh != token:
            code, reply = _authenticate(session, _xoauth2(user, fresh))
    if code not in _LOGGED_IN:
        raise smtplib.SMTPAuthenticationError(code, reply)


def _offered(session: Session, known: list[Mechanism]) -> list[Mechanism]:
    offered = session.esmtp_features.get("auth", "").upper().split()
    usable = [mechanism for mechanism in known if mechanism.name in offered]
    if not usable:
        names = ", ".join(mechanism.name for mechanism in known)
        offers = f"only {', '.join(offered)}" if offered else "none"
        raise smtplib.SMTPNotSupportedError(
            f"we can log in with AUTH {names}, the relay offers {offers}"
        )
    return usable


def _mechanisms(user: str, password: str, *, in_clear: bool) -> list[Mechanism]:
    """Return the mechanisms, the best first: without TLS, one that hides the password."""
    known = [_plain(user, password), _login(user, password)]
    if not _knows_md5():
        return known
    return [_cram_md5(user, password), *known] if in_clear else [*known, _cram_md5(user, password)]


def _plain(user: str, password: str) -> Mechanism:
    response = f"\0{user}\0{password}"
    return Mechanism("PLAIN", response, lambda _: response)


def _login(user: str, password: str) -> Mechanism:
    lines = iter([user, password])
    return Mechanism("LOGIN", None, lambda _: next(lines, ""))


def _cram_md5(user: str, password: str) -> Mechanism:
    return Mechanism(
        "CRAM-MD5",
        None,
        lambda challenge: f"{user} {hmac.new(password.encode(), challenge, 'md5').hexdigest()}",
    )


def _xoauth2(user: str, token: str) -> Mechanism:
    # A challenge contains the error; the reply follows after an empty line.
    return Mechanism("XOAUTH2", f"user={user}\x01auth=Bearer {token}\x01\x01", lambda _: "")


def _knows_md5() -> bool:
    try:
        hmac.new(b"", b"", "md5")
    except ValueError:  # MD5 is forbidden, as by FIPS
        return False
    return True


def _authenticate(session: Session, mechanism: Mechanism) -> tuple[int, bytes]:
    """Run AUTH. Return the last reply, with our responses masked if the relay repeats them."""
    opening = None if mechanism.opening is None else _encoded(mechanism.opening)
    line = f"AUTH {mechanism.name}"
    if opening is not None and len(line) + 1 + len(opening) <= _MAX_LINE:
        line, opening = f"{line} {opening}", None
    sent = [line.partition(" ")[2].partition(" ")[2]]
    code, reply = session.docmd(line)
    for _ in range(_MAX_CHALLENGES):
        if code != _CHALLENGE:
            break
        sent.append(_encoded(mechanism.respond(_decoded(reply))) if opening is None else opening)
        opening = None
        code, reply = session.docmd(sent[-1])
    for word in filter(None, sent):
        reply = reply.replace(word.encode(), b"***")
    return code, reply


def _encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def _decoded(challenge: bytes) -> bytes:
    try:
        return base64.b64decode(challenge)
    except binascii.Error:
        return b""
