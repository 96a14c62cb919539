"""The settings of tenants: their weights and quotas."""

from collections.abc import Mapping
from typing import Annotated

from pydantic import BeforeValidator, Field

from mailer.policy import Quota
from mailer.settings.rates import Rate, read_rates
from mailer.settings.structured import FromJson

# The last mail of a tenant that is a thousand times slower still comes within the day.
Weight = Annotated[float, Field(ge=0.001, le=1000)]


def _checked_name(value: object) -> object:
    if not isinstance(value, str) or not value:
        raise ValueError(f"{value!r} is no tenant: give its name, or '*' for each other one")
    return value


Name = Annotated[str, BeforeValidator(_checked_name)]
Weights = Annotated[dict[Name, Weight], FromJson]
TenantQuotas = Annotated[dict[Name, Rate], FromJson]


def read_quotas(rates: Mapping[str, str]) -> dict[str, tuple[Quota, ...]]:
    """Return the quotas in the rates of tenants."""
    return {
        tenant: tuple(Quota(rate.amount, rate.get_expiry()) for rate in read_rates(text))
        for tenant, text in rates.items()
    }
