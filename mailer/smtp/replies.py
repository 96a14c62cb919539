"""Replies of a relay: their codes, and their text in a form that can be stored and printed."""

from mailer.message.text import printable

YES, GO_ON = ord("2"), ord("3")  # RFC 5321, 4.3.2: the first digit decides


def is_reply(line: bytes) -> bool:
    """Return whether a line begins with a reply code of RFC 5321."""
    return line[:3].isdigit() and b"2" <= line[:1] <= b"5"


def code_of(reply: bytes) -> int:
    return int(reply[:3])


def text_of(reply: bytes) -> str:
    return reply.decode("utf-8", "replace")


def words_of(reply: bytes) -> str:
    return printable(text_of(reply))
