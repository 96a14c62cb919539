"""MAILER_RELAY_RATE and MAILER_DOMAIN_LIMITS: how much mail relays and domains get at most."""

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, BeforeValidator, Field, ValidatorFunctionWrapHandler, WrapValidator

from mailer.errors import InvalidAddress
from mailer.message import Address
from mailer.settings.structured import STRICT, FromJson

if TYPE_CHECKING:
    from limits import RateLimitItem

#: The key of MAILER_DOMAIN_LIMITS for each domain that is not named.
OTHERS = "*"
_RATE = (
    "a rate such as '14/second' or '100/5 minutes', or several that all count: '14/second;"
    " 50000/day'"
)
# Redis remembers each mail within the period of a rate, with 20 bytes.
_MAX_AMOUNT = 1_000_000


def read_rates(text: str | None) -> "tuple[RateLimitItem, ...]":
    """Return the rates in a text. Raise ValueError if it contains anything else."""
    if text is None:
        return ()
    from limits import parse_many  # noqa: PLC0415 -- 4 MB, for those that have limits

    try:
        rates = parse_many(text)
    except ValueError:
        raise ValueError(f"allowed: {_RATE}") from None
    for rate in rates:
        if not 0 < rate.amount <= _MAX_AMOUNT:
            raise ValueError(
                f"{rate.amount} mails: allowed: from 1 to {_MAX_AMOUNT}, in a second or a longer"
                " time"
            )
    return tuple(rates)


def _checked_rate(value: object) -> object:
    if not isinstance(value, str):
        raise ValueError(f"allowed: {_RATE}")  # noqa: TRY004 -- pydantic expects a ValueError
    read_rates(value)
    return value


Rate = Annotated[str, BeforeValidator(_checked_rate)]


class DomainLimit(BaseModel):
    """The limits of a recipient domain, for all workers together."""

    model_config = STRICT

    rate: Rate | None = None
    concurrency: Annotated[int, Field(strict=True, ge=1)] | None = None


def _checked_domain(value: Any) -> str:
    if value == OTHERS:
        return OTHERS
    try:
        return Address.parse(f"postmaster@{value}", field="domain").domain.lower()
    except InvalidAddress:
        raise ValueError(
            f"{value!r} is no domain: give one such as 'gmail.com', or '*' for each that is not"
            " named"
        ) from None


def _without_duplicates(
    value: Any, validate: ValidatorFunctionWrapHandler
) -> dict[str, DomainLimit]:
    limits: dict[str, DomainLimit] = validate(value)
    if isinstance(value, Mapping) and len(limits) < len(value):
        [(domain, _count)] = Counter(map(_checked_domain, value)).most_common(1)
        raise ValueError(f"{domain} is there twice: remove one of them")
    return limits


DomainLimits = Annotated[
    dict[Annotated[str, BeforeValidator(_checked_domain)], DomainLimit],
    WrapValidator(_without_duplicates),
    FromJson,
]
