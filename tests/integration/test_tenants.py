"""Tenants: the fair order of their mail, and their quotas, in the database."""

from collections import Counter
from collections.abc import Iterator

import pytest

from mailer.message import Delivery, Lane, Status
from mailer.message.bulk import BulkState
from mailer.policy import Quota, TenantRules
from mailer.store import Store
from tests import bulk_sends
from tests.mails import NOW, a_message, claim, emptied, insert, mark, record, table
from tests.plans import executed

DAY = 86_400


@pytest.fixture
def store(shared_store: Store) -> Iterator[Store]:
    store = emptied(shared_store)
    yield store
    store._rules = TenantRules()


def queue(
    store: Store, tenant: str, number: int = 1, *, at: float = NOW, **options: object
) -> None:
    """Queue mail of a tenant, to addresses in its domain."""
    for place in range(number):
        message = a_message(created_at=at)
        to = f"{place}@{tenant or 'none'}.example"
        given = {"tenant": tenant, "due_at": at, **options}
        insert(store, to, message=message, **given)


def owners(deliveries: list[Delivery]) -> str:
    """Return whose mail this is, in its order: the first letter of each tenant."""
    return "".join(one.domain[0] for one in deliveries)


def statuses(store: Store) -> Counter[str]:
    return Counter(row["status"] for row in table(store).values())


# --- the fair order ------------------------------------------------------------------------------


def test_a_small_tenant_does_not_wait_for_a_large_one(store: Store) -> None:
    """Mail of a small tenant goes beside that of a large one, also if it comes much later."""
    queue(store, "large", 50)
    assert owners(claim(store, 10)) == "l" * 10
    queue(store, "small", 3, at=NOW + 5)

    assert Counter(owners(claim(store, 6, now=NOW + 5))) == {"s": 3, "l": 3}
    assert owners(claim(store, 4, now=NOW + 5)) == "llll"


def test_a_tenant_that_was_alone_is_not_put_back(store: Store) -> None:
    """A tenant that has sent a lot while nobody else did shares evenly with one that comes."""
    for _ in range(5):
        queue(store, "first", 10)
        claim(store, 10)
    queue(store, "first", 10)
    queue(store, "second", 10)

    assert Counter(owners(claim(store, 10))) == {"f": 5, "s": 5}


def test_a_weight_is_a_share_of_a_lane(store: Store) -> None:
    """A tenant of weight 3 gets three times the mails of another one."""
    store._rules = TenantRules(weights={"heavy": 3.0})
    queue(store, "heavy", 20)
    queue(store, "light", 20)

    assert Counter(owners(claim(store, 12))) == {"h": 9, "l": 3}


def test_mail_without_a_tenant_does_not_wait_for_tenants(store: Store) -> None:
    """Mail without a tenant goes before the backlog of tenants, and older mail of theirs first."""
    queue(store, "tenant", 5)
    queue(store, "", 2, at=NOW + 1)

    assert owners(claim(store, now=NOW + 1)) == "tnntttt"


def test_lanes_come_before_tenants(store: Store) -> None:
    """A critical mail of the largest tenant goes before all normal mail."""
    queue(store, "large", 5)
    queue(store, "small", 2)
    queue(store, "large", 1, lane=Lane.CRITICAL)

    assert [one.lane for one in claim(store, 3)] == [Lane.CRITICAL, Lane.NORMAL, Lane.NORMAL]


def test_what_becomes_due_at_once_is_spread(store: Store) -> None:
    """Scheduled mail of a large tenant that becomes due leaves room for others."""
    due_at = NOW + 60
    queue(store, "large", 40, due_at=due_at)
    queue(store, "small", 2, due_at=due_at)
    queue(store, "", 1, at=due_at)

    assert claim(store, now=due_at - 0.001) == []
    store.rank_due(due_at)
    assert Counter(owners(claim(store, 5, now=due_at)))["l"] == 2


def test_a_retry_does_not_delay_first_tries(store: Store) -> None:
    """Of many retries that are due at once, all but the first let fresh mail pass."""
    queue(store, "", 20)
    tried = claim(store)
    mark(store, *tried)
    record(store, *tried, to=Status.QUEUED, due_at=NOW + 60)
    for place in range(3):
        insert(
            store, f"{place}@fresh.example", message=a_message(created_at=NOW + 90), due_at=NOW + 90
        )

    assert owners(claim(store, 4, now=NOW + 90)) == "nfff"
    assert len(claim(store, now=NOW + 90)) == 19


def test_a_retry_ranks_behind_its_tenant(store: Store) -> None:
    """A retry of a tenant's mail comes after the mail of that tenant that was not tried yet."""
    queue(store, "tenant", 1)
    tried = claim(store)
    mark(store, *tried)
    queue(store, "tenant", 2)
    record(store, *tried, to=Status.QUEUED, due_at=NOW + 60)

    last = claim(store, now=NOW + 60)[-1]

    assert last.id == tried[0].id


def test_mail_that_is_given_back_keeps_its_place(store: Store) -> None:
    """Mail that a worker gives back, and mail of a dead worker, is as far ahead as before."""
    queue(store, "tenant", 9)
    given_back, lapsed = claim(store, 2), claim(store, 2, lease_until=NOW + 1, token="dead")
    store.release_if_in_hand(
        dict.fromkeys((one.id for one in given_back), None), token="this worker's"
    )
    store.requeue_lapsed_claims(NOW + 1)

    assert [one.id for one in claim(store, 4)] == [one.id for one in (*given_back, *lapsed)]


def test_mail_that_waited_at_a_limit_does_not_queue_up_again(store: Store) -> None:
    """Mail that waited for a relay or at a limit comes beside the first mail of its tenant."""
    queue(store, "tenant", 9)
    waited = claim(store, 2)
    store.release_if_in_hand({one.id: NOW + 5 for one in waited}, token="this worker's")

    assert {one.id for one in waited} <= {one.id for one in claim(store, 4, now=NOW + 5)}


def test_ranked_mail_is_due_whatever_the_clock_says(store: Store) -> None:
    """After the clock was set back, ranked mail is claimed, and scheduled mail can be recalled."""
    queue(store, "tenant", 1)
    queue(store, "tenant", 1, due_at=NOW + 50)

    assert len(claim(store, now=NOW - 3600)) == 1
    assert store.recall_queued(NOW - 3600, was=NOW + 60) == 1
    assert len(claim(store, now=NOW - 3600)) == 1


def test_bulk_sends_of_tenants_take_turns(store: Store) -> None:
    """Portions of a large bulk send leave room for the bulk send of another tenant."""
    large = bulk_sends.make(store, 100, tenant="large")
    small = bulk_sends.make(store, 3, tenant="small")
    store.release_held(large.id, now=NOW, most=80)
    store.release_held(small.id, now=NOW, most=80)

    claimed = Counter(one.mail_id for one in claim(store, 6))

    assert claimed == {large.id: 3, small.id: 3}


# --- quotas --------------------------------------------------------------------------------------


def quota(store: Store, **tenants: tuple[int, int]) -> None:
    """Give tenants quotas: (amount, seconds)."""
    quotas = {tenant: (Quota(*one),) for tenant, one in tenants.items()}
    store._rules = TenantRules(quotas=quotas)


def test_a_quota_holds_mail_until_the_next_period(store: Store) -> None:
    """What is over the quota of a day is held, and goes on by itself on the next day."""
    quota(store, tenant=(3, DAY))
    queue(store, "tenant", 5)
    queue(store, "other", 2)

    assert len(store.release_within_quotas(NOW)) == 3
    assert statuses(store) == {"queued": 5, "held": 2}
    assert len(store.release_within_quotas(NOW + 60)) == 0
    tomorrow = NOW - NOW % DAY + DAY
    assert len(store.release_within_quotas(tomorrow - 1)) == 0
    assert len(store.release_within_quotas(tomorrow)) == 2
    assert len(claim(store, now=tomorrow)) == 7


def test_the_tightest_of_several_quotas_counts(store: Store) -> None:
    """Of a quota of a minute and one of an hour, the one that has less left counts."""
    store._rules = TenantRules(quotas={"tenant": (Quota(10, 3600), Quota(2, 60))})
    queue(store, "tenant", 12)
    hour = NOW - NOW % 3600

    released = [len(store.release_within_quotas(hour + 60 * minute)) for minute in range(7)]

    assert released == [2, 2, 2, 2, 2, 0, 0]


def test_a_quota_goes_to_urgent_mail_first(store: Store) -> None:
    """Of the mail of one tenant, a quota is used for the most urgent lane first."""
    quota(store, tenant=(2, DAY))
    queue(store, "tenant", 5, lane=Lane.BULK)
    queue(store, "tenant", 1, lane=Lane.CRITICAL)

    store.release_within_quotas(NOW)

    assert [one.lane for one in claim(store)] == [Lane.CRITICAL, Lane.BULK]


def test_scheduled_mail_counts_when_it_is_due(store: Store) -> None:
    """Scheduled mail of a tenant with a quota is held until it is due, and counts then."""
    quota(store, tenant=(1, 60))
    queue(store, "tenant", 1, due_at=NOW + 100)

    assert len(store.release_within_quotas(NOW + 99)) == 0
    assert len(store.release_within_quotas(NOW + 100)) == 1


def test_a_retry_does_not_count_again(store: Store) -> None:
    """A mail counts once, however often it is tried."""
    quota(store, tenant=(1, DAY))
    queue(store, "tenant", 1)
    store.release_within_quotas(NOW)
    tried = claim(store)
    mark(store, *tried)
    record(store, *tried, to=Status.QUEUED, due_at=NOW + 60)

    assert len(claim(store, now=NOW + 60)) == 1


def test_held_mail_can_be_cancelled_and_expires(store: Store) -> None:
    """Mail over a quota can be cancelled and rescheduled like queued mail, and expires like it."""
    quota(store, tenant=(1, DAY))
    ids = [insert(store, tenant="tenant", expires_at=NOW + 60) for _ in range(3)]
    insert(store, tenant="tenant", due_at=NOW + 30)

    assert len(store.settle_if_resting(ids[0], Status.CANCELLED, now=NOW)) == 1
    assert len(store.reschedule_if_queued(ids[1], NOW + 50)) == 1
    assert store.settle_if_resting(ids[1], Status.QUEUED, now=NOW) == set()
    assert len(store.expire_overdue(NOW + 60)) == 2
    assert sum(map(len, store.cancel_if_due_before(NOW + 40, now=NOW))) == 1
    assert statuses(store) == {"cancelled": 2, "expired": 2}


def test_without_its_quota_mail_that_was_held_goes(store: Store) -> None:
    """Mail that was held for a quota is released once the setting is gone."""
    quota(store, tenant=(1, DAY))
    queue(store, "tenant", 3)
    store._rules = TenantRules()

    assert len(store.release_within_quotas(NOW)) == 3


def test_a_bulk_send_is_released_within_the_quota(store: Store) -> None:
    """A bulk send of a tenant gets what its quota leaves, and the rest stays held."""
    quota(store, tenant=(5, DAY))
    queue(store, "tenant", 2)
    store.release_within_quotas(NOW)
    bulk = bulk_sends.make(store, 10, tenant="tenant")

    released = [store.release_held(bulk.id, now=NOW, most=10) for _ in range(2)]

    assert [len(one or ()) for one in released] == [3, 0]
    tomorrow = NOW + DAY
    assert len(store.release_held(bulk.id, now=tomorrow, most=10) or ()) == 5
    assert store.load_bulk(bulk.id).state is BulkState.RUNNING


def test_a_clock_that_was_set_back_opens_no_new_period(store: Store) -> None:
    """A quota stays used up if the clock is set back into an earlier period."""
    quota(store, tenant=(2, 60))
    queue(store, "tenant", 4)
    store.release_within_quotas(NOW)

    assert len(store.release_within_quotas(NOW - 600)) == 0


def test_a_period_that_a_wrong_clock_has_begun_ends(store: Store) -> None:
    """A clock that was a year ahead does not use up the quotas of that year."""
    quota(store, tenant=(2, DAY))
    year = 365 * DAY
    queue(store, "tenant", 2, at=NOW + year)
    store.release_within_quotas(NOW + year)
    queue(store, "tenant", 3)

    assert len(store.release_within_quotas(NOW)) == 2


def test_mail_over_a_quota_is_recalled_as_well(store: Store) -> None:
    """After the clock was set back, mail that was held for a quota gets due like other mail."""
    quota(store, tenant=(2, 60))
    queue(store, "tenant", 1, at=NOW + 7200)

    assert store.recall_queued(NOW, was=NOW + 7201) == 1
    assert len(store.release_within_quotas(NOW)) == 1


def test_an_expired_bulk_send_uses_no_quota(store: Store) -> None:
    """Mail of a bulk send that has expired is expired at once, and leaves the quota to others."""
    quota(store, tenant=(2, DAY))
    bulk = bulk_sends.make(store, 10, tenant="tenant", expires_at=NOW + 60)
    queue(store, "tenant", 2)

    assert len(store.expire_held(bulk.id, now=NOW + 60) or ()) == 10
    assert store.bulk_progress(bulk.id, now=NOW + 60).expired == 10
    assert len(store.release_within_quotas(NOW + 60)) == 2


def test_single_mail_uses_a_quota_before_bulk_sends(store: Store) -> None:
    """In a new period, a code that was held goes before the bulk send that used up the quota."""
    quota(store, tenant=(2, DAY))
    bulk = bulk_sends.make(store, 10, tenant="tenant")
    store.release_held(bulk.id, now=NOW, most=10)
    queue(store, "tenant", 1, lane=Lane.CRITICAL)
    tomorrow = NOW + DAY

    store.release_within_quotas(tomorrow)
    store.release_held(bulk.id, now=tomorrow, most=10)

    assert Counter(one.lane for one in claim(store, now=tomorrow)) == {
        Lane.CRITICAL: 1,
        Lane.BULK: 3,
    }


def test_scheduled_mail_of_many_tenants_costs_no_transaction(store: Store) -> None:
    """Tenants whose mail is due later are not looked at one by one."""
    store._rules = TenantRules(quotas={"*": (Quota(5, 60),)})
    for number in range(20):
        queue(store, f"tenant{number}", due_at=NOW + DAY)

    statements = executed(store, lambda store: store.release_within_quotas(NOW))

    assert not any("mailer_quota (" in statement for statement, _values in statements)


def test_the_tenants_and_their_quotas_are_shown(store: Store) -> None:
    """An operator sees whose mail waits, and how much of each quota is used until when."""
    quota(store, tenant=(3, DAY))
    queue(store, "tenant", 5)
    queue(store, "other", 1)
    store.release_within_quotas(NOW)

    other, tenant = store.tenants(NOW)

    assert (other.name, other.queued, other.held, other.quotas) == ("other", 1, 0, ())
    [used] = tenant.quotas
    assert (tenant.queued, tenant.held, used.used, used.amount) == (3, 2, 3, 3)
    assert used.ends_at.timestamp() == NOW - NOW % DAY + DAY
