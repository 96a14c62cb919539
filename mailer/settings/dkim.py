"""MAILER_DKIM_KEYS: the private keys that sign mail."""

import re
from collections import Counter
from pathlib import Path
from typing import Annotated, Self

from pydantic import AfterValidator, BaseModel, Field, PrivateAttr, model_validator

from mailer.errors import InvalidAddress
from mailer.message import Address
from mailer.settings.structured import STRICT, FromJson, Text

_LABEL = "[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
_SELECTOR = re.compile(rf"{_LABEL}(\.{_LABEL})*")


def _checked_domain(value: str) -> str:
    try:
        return Address.parse(f"postmaster@{value}", field="domain").domain.lower()
    except InvalidAddress:
        raise ValueError(
            f"{value!r} is no domain of senders: give one such as 'example.com'"
        ) from None


def _checked_selector(value: str) -> str:
    selector = value.lower()
    if not _SELECTOR.fullmatch(selector):
        raise ValueError(
            f"the selector {selector!r} is no name in the DNS: give one such as '2026a'"
        )
    return selector


class DkimKey(BaseModel):
    """A private key. Its public key is in the DNS, at `<selector>._domainkey.<domain>`."""

    model_config = STRICT

    domain: Annotated[Text, AfterValidator(_checked_domain)]
    selector: Annotated[Text, AfterValidator(_checked_selector)]
    key_file: Text | None = None
    key: Text | None = Field(default=None, repr=False)

    _pem: bytes = PrivateAttr()

    @model_validator(mode="after")
    def _read(self) -> Self:
        if self.key is not None and self.key_file is None:
            # Environment variables often can't contain a line break, and have \n instead.
            self._pem = self.key.replace("\\n", "\n").encode()
        elif self.key_file is not None and self.key is None:
            self._pem = _contents(self.key_file)
        else:
            raise ValueError("give domain, selector, and either key_file or key")
        return self

    @property
    def pem(self) -> bytes:
        return self._pem

    def __str__(self) -> str:
        return f"{self.selector} of {self.domain}"


def _contents(file: str) -> bytes:
    try:
        return Path(file).read_bytes()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ValueError(f"the file {file!r} can't be read: {reason}") from None


def _without_duplicates(keys: tuple[DkimKey, ...]) -> tuple[DkimKey, ...]:
    for name, count in Counter(map(str, keys)).items():
        if count > 1:
            raise ValueError(f"the selector {name} is there twice: each key needs one of its own")
    return keys


DkimKeys = Annotated[tuple[DkimKey, ...], AfterValidator(_without_duplicates), FromJson]
