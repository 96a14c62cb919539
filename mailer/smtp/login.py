"""Who we are: AUTH with the best mechanism that the relay offers."""

import base64
import binascii
import hmac
import smtplib
from collections.abc import Callable
from dataclasses import dataclass

from mailer.smtp.oauth import Tokens
from mailer.smtp.session import Session

_LOGGED_IN = (235, 503)  # 503: it was done already
_CHALLENGE = 334
# A mechanism that is offered and does not work: unknown, too weak, only with TLS.
_NOT_THIS_WAY = (500, 501, 502, 503, 504, 534, 538)
# A command line without its end. What is longer goes after it (RFC 4954, 4).
_LONGEST_LINE = 510
_MOST_CHALLENGES = 5


@dataclass(frozen=True, slots=True)
class Mechanism:
    """How to say who we are."""

    name: str
    opening: str | None  #: what may be said at once
    respond: Callable[[bytes], str]


def log_in(session: Session, user: str, password: str) -> None:
    """With a password; raises what stopped it."""
    failure: smtplib.SMTPException | None = None
    for mechanism in _offered(session, _mechanisms(user, password, in_clear=not session.is_secure)):
        code, reply = _authenticate(session, mechanism)
        if code in _LOGGED_IN:
            return
        failure = smtplib.SMTPAuthenticationError(code, reply)
        # A wrong password is not said twice: who counts them would lock us out. But many relays offer CRAM-MD5 without having
        # a password that they could compare with.
        if code not in _NOT_THIS_WAY and not (code == 535 and mechanism.name == "CRAM-MD5"):
            break
    assert failure is not None
    raise failure


def log_in_with_token(session: Session, user: str, token: str, tokens: Tokens) -> None:
    """With a token, and when the relay refuses that, with a fresh one."""
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
        what = f"only {', '.join(offered)}" if offered else "none"
        raise smtplib.SMTPNotSupportedError(f"we can log in with AUTH {names}, the relay offers {what}")
    return usable


def _mechanisms(user: str, password: str, *, in_clear: bool) -> list[Mechanism]:
    """The best first. Where others can listen, that is the one that does not tell them the password."""
    known = [_plain(user, password), _login(user, password)]
    if not _knows_md5():
        return known
    return [_cram_md5(user, password), *known] if in_clear else [*known, _cram_md5(user, password)]


def _plain(user: str, password: str) -> Mechanism:
    said = f"\0{user}\0{password}"
    return Mechanism("PLAIN", said, lambda _: said)


def _login(user: str, password: str) -> Mechanism:
    lines = iter([user, password])
    return Mechanism("LOGIN", None, lambda _: next(lines, ""))


def _cram_md5(user: str, password: str) -> Mechanism:
    return Mechanism("CRAM-MD5", None, lambda challenge: f"{user} {hmac.new(password.encode(), challenge, 'md5').hexdigest()}")


def _xoauth2(user: str, token: str) -> Mechanism:
    # The challenge after it is an error in words; an empty line asks for the reply.
    return Mechanism("XOAUTH2", f"user={user}\x01auth=Bearer {token}\x01\x01", lambda _: "")


def _knows_md5() -> bool:
    try:
        hmac.new(b"", b"", "md5")
    except ValueError:  # where it is forbidden
        return False
    return True


def _authenticate(session: Session, mechanism: Mechanism) -> tuple[int, bytes]:
    """The dialogue of AUTH; the reply that ends it, without what was said, should the relay say that again."""
    opening = None if mechanism.opening is None else _encoded(mechanism.opening)
    line = f"AUTH {mechanism.name}"
    if opening is not None and len(line) + 1 + len(opening) <= _LONGEST_LINE:
        line, opening = f"{line} {opening}", None
    said = [line.partition(" ")[2].partition(" ")[2]]
    code, reply = session.docmd(line)
    for _ in range(_MOST_CHALLENGES):
        if code != _CHALLENGE:
            break
        said.append(_encoded(mechanism.respond(_decoded(reply))) if opening is None else opening)
        opening = None
        code, reply = session.docmd(said[-1])
    for word in filter(None, said):
        reply = reply.replace(word.encode(), b"***")
    return code, reply


def _encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def _decoded(challenge: bytes) -> bytes:
    try:
        return base64.b64decode(challenge)
    except binascii.Error:
        return b""
