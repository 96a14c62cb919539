"""Mailboxes, checked, so that they can be written into a header or said to a relay."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import Any, Self

from email_validator import EmailNotValidError, validate_email

from mailer.errors import InvalidAddress, OverLimit
from mailer.message.text import check_text, evaluate, shown

_PRIVATE_DOMAIN = re.compile(r"[@.](?:localhost|local|test)\Z", re.IGNORECASE)
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"')
# Addresses that are valid, and normalised, if their domain is. Most are of this kind, and it takes
# far longer to check a domain than to look it up.
_PLAIN = re.compile(r"([a-z0-9_+-]+(?:\.[a-z0-9_+-]+)*)@([A-Za-z0-9.-]+)")
_LONGEST_PLAIN, _LONGEST_LOCAL = 200, 64


@dataclass(frozen=True, slots=True)
class Address:
    """A mailbox: an address, and the name to show beside it.

    It is checked where a mail is queued, and its domain becomes ASCII there.

    >>> str(Address("ada@example.com", "Ada"))
    '"Ada" <ada@example.com>'
    >>> receipt = mailer.send_email(
    ...     Address("ada@example.com", "Ada"), "Welcome", "mail/welcome", name="Ada"
    ... )

    Args:
        email: The address, such as `ada@example.com`.
        name: The name, which may be empty.
    """

    email: str
    name: str = ""

    @classmethod
    def parse(cls, given: "AddressLike", *, field: str) -> Self:
        """Return a checked address, made of an address with or without a name.

        Raises:
            InvalidAddress: No mail server would accept the address. The error names the `field`.
        """
        match texts := _evaluated(given):
            case Address(email, name):
                pass
            case str():
                name, email = _split(texts)
            case (None | str(), str()) if isinstance(texts, tuple):
                name, email = texts[0] or "", texts[1]
            case _:
                raise _no_address(given, field)
        name = check_text(name, field=field, error=InvalidAddress)
        email = check_text(email, field=field, error=InvalidAddress)
        return cls(_checked(email, field), name)

    @classmethod
    def stored(cls, text: str) -> Self:
        """Return a stored address, as `str()` wrote it, without checking it again."""
        name, email = _split(text)
        return cls(email, name)

    @property
    def domain(self) -> str:
        """Return the part after the @."""
        return self.email.rpartition("@")[2]

    def __str__(self) -> str:
        if not self.name:
            return self.email
        escaped = self.name.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{escaped}" <{self.email}>'


AddressLike = str | tuple[str | None, str] | Address


def _evaluated(given: Any) -> Any:
    """Return an address, or the parts of one, with the texts of lazy strings."""
    return tuple(map(evaluate, given)) if isinstance(given, tuple) else evaluate(given)


def _split(given: str) -> tuple[str, str]:
    """Return the name and the address of "Ada <ada@example.com>", or a bare address."""
    given = given.strip(" ")
    before, bracket, inside = given.rpartition("<")
    if not bracket or not inside.endswith(">"):
        return "", given
    name, email = before.strip(" "), inside[:-1].strip(" ")
    if quoted := _QUOTED.fullmatch(name):
        return re.sub(r"\\(.)", r"\1", quoted[1]), email
    if set("<>") & set(name) or ("@" in name and set(",;") & set(name)):
        return "", given  # several mailboxes: the first must not become the name of the last
    return name, email


def _checked(email: str, field: str) -> str:
    try:
        return _normalised(email)
    except EmailNotValidError as error:
        hint = " Give several recipients as a list." if "," in email or ";" in email else ""
        raise InvalidAddress(
            f"{field}: {shown(email)} is not a usable address: {error}{hint}"
        ) from None


def _normalised(email: str) -> str:
    """Return an address as email-validator normalises it. Raise its error otherwise."""
    # "--": a domain in Punycode, whose length as Unicode is limited as well.
    if len(email) <= _LONGEST_PLAIN and "--" not in email:
        plain = _PLAIN.fullmatch(email)
        if plain and len(plain[1]) <= _LONGEST_LOCAL:
            return f"{plain[1]}@{_normalised_domain(plain[2])}"
    return _validated(email)


@lru_cache(maxsize=4096)
def _normalised_domain(domain: str) -> str:
    return _validated(f"a@{domain}").removeprefix("a@")


@lru_cache(maxsize=4096)
def _validated(email: str) -> str:
    # Whether the domain has a mail server is the relay's business: ada@office.local is fine inside
    # a network, and only there.
    suffix = ".example.com" if _PRIVATE_DOMAIN.search(email) else ""
    valid = validate_email(email + suffix, check_deliverability=False, strict=True)
    return f"{valid.local_part}@{valid.ascii_domain.removesuffix(suffix)}"


def parse_addresses(
    given: AddressLike | Iterable[AddressLike] | None, *, field: str, most: int | None = None
) -> tuple[Address, ...]:
    """Parse one address or many. Stop after as many as are allowed."""
    if given is None or (type(given) is list and not given):
        return ()
    given = _evaluated(given)
    # One mailbox, as in Flask-Mail: ("Ada", "ada@example.com"). Two are ("ada@example.com",
    # "bob@example.com").
    if isinstance(given, tuple) and len(given) == 2 and "@" not in str(given[0] or ""):
        return (Address.parse(given, field=field),)  # type: ignore[arg-type]  # parse() refuses anything but a mailbox
    if isinstance(given, (str, Address)):
        return (Address.parse(given, field=field),)
    if isinstance(given, bytes) or not isinstance(given, Iterable):
        raise _no_address(given, field)
    several = given if most is None else islice(given, most + 1)
    parsed = tuple(Address.parse(one, field=field) for one in several)  # type: ignore[arg-type]  # the same
    if most is not None and len(parsed) > most:
        raise OverLimit(
            f"{field}: more than {most} addresses, the most that MAILER_MAX_RECIPIENTS allows in"
            " one mail."
        )
    return parsed


#: The attributes in which objects of an application, such as users, have their address.
_ATTRIBUTES = ("email", "email_address", "mail")


def _no_address(given: object, field: str) -> InvalidAddress:
    # Looked up in the class: reading an attribute of an ORM object may ask the database.
    names = {*dir(type(given)), *getattr(given, "__dict__", {})}
    found = next((name for name in _ATTRIBUTES if name in names), None)
    remedy = (
        f"give its .{found} instead."
        if found
        else "give 'ada@example.com' or 'Ada <ada@example.com>'."
    )
    return InvalidAddress(f"{field}: {given!r} is no address: {remedy}")
