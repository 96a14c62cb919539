"""Tenants: those on whose behalf an application sends."""

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class QuotaStatus:
    """A quota of a tenant in the present period."""

    amount: int
    used: int
    ends_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantStatus:
    """The mail of a tenant that waits, and its quotas."""

    name: str
    queued: int
    held: int
    quotas: tuple[QuotaStatus, ...]
