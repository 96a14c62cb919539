"""The fair order: the ranks of tenants' mails."""

import pytest

from mailer.policy import Quota, TenantRules, ranks

NOW = 1_800_000_000.0


def order(*, rules: TenantRules | None = None, **queues: int) -> str:
    """Return the tenants in the order of their mail, of which they queue so much, one by one."""
    found = [
        (rank, tenant)
        for tenant, number in queues.items()
        for rank in ranks(tenant * number, rules or TenantRules(), now=NOW, head=None, tails={})
    ]
    return "".join(tenant for _rank, tenant in sorted(found))


def test_tenants_take_turns() -> None:
    """Tenants take turns, however much mail each has."""
    assert order(a=6, b=2, c=3) == "abcabcacaaa"


def test_a_weight_is_a_share() -> None:
    """A tenant of weight 2 gets twice the mails of others; `*` is the weight of the others."""
    assert order(rules=TenantRules({"b": 2.0}), a=3, b=5).count("b") == 5
    assert order(rules=TenantRules({"b": 2.0}), a=30, b=30)[:30].count("b") == 20
    assert order(rules=TenantRules({"a": 1.0, "*": 3.0}), a=30, b=30)[:40].count("b") == 30


def test_mail_ranks_now_or_where_the_queue_has_got_to() -> None:
    """The first mail of a tenant ranks now, or beside the mail of others that is next."""
    rules = TenantRules()
    assert ranks("a", rules, now=NOW, head=None, tails={}) == [NOW]
    assert ranks("a", rules, now=NOW, head=NOW - 5, tails={}) == [NOW]
    assert ranks("a", rules, now=NOW, head=NOW + 500, tails={}) == [NOW + 500]


def test_mail_ranks_behind_that_of_its_tenant() -> None:
    """More mail ranks behind the tail of its tenant, and never before the head of the queue."""
    rules = TenantRules()
    spacing = rules.spacing("a")
    assert ranks("aa", rules, now=NOW, head=None, tails={"a": NOW + 90}) == [
        NOW + 90 + spacing,
        NOW + 90 + 2 * spacing,
    ]
    assert ranks("a", rules, now=NOW, head=NOW, tails={"a": NOW - 500}) == [NOW]


@pytest.mark.parametrize(
    ("tenant", "quotas"),
    [("a", (Quota(5, 60),)), ("b", (Quota(1, 3600),)), ("", ())],
)
def test_a_quota_is_that_of_the_tenant_or_of_all_others(
    tenant: str, quotas: tuple[Quota, ...]
) -> None:
    """The quota of a tenant is its own or that of `*`. Mail without a tenant has none."""
    rules = TenantRules(quotas={"a": (Quota(5, 60),), "*": (Quota(1, 3600),)})

    assert rules.quotas_of(tenant) == quotas


def test_without_an_entry_for_all_others_they_have_no_quota() -> None:
    """A tenant that is not named has no quota without `*`."""
    assert TenantRules(quotas={"a": (Quota(5, 60),)}).quotas_of("b") == ()
