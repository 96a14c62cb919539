"""The state chart, on both databases: which method moves a delivery from where to where."""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Any

import pytest

from mailer import Calendar
from mailer.message import TRANSITIONS, Delivery, OnDoubt, Outcome, Status, Verdict
from mailer.message.bulk import BulkState
from mailer.policy import Quota, RetryPolicy, TenantRules, next_move
from mailer.store import Result, Store
from tests import bulk_sends
from tests.chart import drawn
from tests.mails import (
    LATER,
    LEASE,
    NOW,
    assert_moved,
    bring,
    claim,
    emptied,
    in_the_hands_of_a_worker,
    insert,
    mark,
    moved_by,
    record,
    row,
    set_aside,
    table,
)


@dataclass(frozen=True)
class Verb:
    """A method of the store that moves deliveries, its target states, and a call of it."""

    leads_to: Collection[Status]
    call: Callable[[Store, Delivery, Status], set[int]]
    bring: Callable[..., Delivery] = bring


RECORDED = (Status.SENT, Status.QUEUED, Status.FAILED, Status.DOUBTFUL)

WORKERS = {
    "mark_if_claimed": Verb(
        [Status.TRANSMITTING],
        lambda store, one, to: mark(store, one, token=one.token),
    ),
    "record_if_transmitting": Verb(
        RECORDED,
        lambda store, one, to: record(store, one, to=to),
    ),
    "release_if_in_hand": Verb(
        [Status.QUEUED],
        lambda store, one, to: store.release_if_in_hand({one.id: None}, token=one.token),
    ),
    "set_aside_if_claimed": Verb(
        [Status.QUEUED, Status.FAILED],
        lambda store, one, to: set_aside(store, one, to=to),
    ),
}
OTHERS = {
    "claim_due": Verb(
        [Status.CLAIMED],
        lambda store, one, to: {claimed.id for claimed in claim(store)},
    ),
    "requeue_lapsed_claims": Verb(
        [Status.QUEUED],
        lambda store, one, to: store.requeue_lapsed_claims(LATER),
    ),
    "doubt_lapsed_transmissions": Verb(
        [Status.DOUBTFUL],
        lambda store, one, to: store.doubt_lapsed_transmissions(LATER, resend_at=LATER),
    ),
    "resend_doubtful": Verb(
        [Status.QUEUED],
        lambda store, one, to: store.resend_doubtful(LATER),
    ),
    "expire_overdue": Verb(
        [Status.EXPIRED],
        lambda store, one, to: store.expire_overdue(LATER),
    ),
    "cancel_if_due_before": Verb(
        [Status.CANCELLED],
        lambda store, one, to: set().union(*store.cancel_if_due_before(LATER, now=NOW)),
    ),
    "settle_if_resting": Verb(
        list(Status),
        lambda store, one, to: store.settle_if_resting(one.mail_id, to, now=NOW),
    ),
}


def advance(
    state: BulkState, move: Callable[[Store, str], set[int] | None]
) -> Callable[[Store, Delivery, Status], set[int]]:
    """Return a call that makes a move of a bulk send which is in this state."""

    def call(store: Store, one: Delivery, _to: Status) -> set[int]:
        store.change_bulk_if(one.mail_id, list(BulkState), state)
        return move(store, one.mail_id) or set()

    return call


def bring_with_calendar(store: Store, status: Status, **options: Any) -> Delivery:
    return bulk_sends.bring(store, status, calendar=Calendar(time_zone="UTC"), **options)


BULKS = {
    "release_held": Verb(
        [Status.QUEUED],
        advance(BulkState.RUNNING, lambda store, bulk: store.release_held(bulk, now=NOW, most=1)),
        bulk_sends.bring,
    ),
    "expire_held": Verb(
        [Status.EXPIRED],
        advance(BulkState.RUNNING, lambda store, bulk: store.expire_held(bulk, now=NOW)),
        bulk_sends.bring,
    ),
    "hold_again": Verb(
        [Status.HELD],
        advance(BulkState.PAUSED, lambda store, bulk: store.hold_again(bulk)),
        bulk_sends.bring,
    ),
    "release_held_in_zone": Verb(
        [Status.QUEUED],
        lambda store, one, to: (
            store.release_held_in_zone(one.mail_id, "UTC", now=NOW, most=1) or set()
        ),
        bring_with_calendar,
    ),
    "hold_again_in_zone": Verb(
        [Status.HELD],
        lambda store, one, to: store.hold_again_in_zone(one.mail_id, "UTC"),
        bring_with_calendar,
    ),
    "cancel_held": Verb(
        [Status.CANCELLED],
        advance(BulkState.CANCELLED, lambda store, bulk: store.cancel_held(bulk, now=NOW)),
        bulk_sends.bring,
    ),
}


def bring_over_quota(store: Store, _status: Status, **options: Any) -> Delivery:
    """Bring a delivery into the state `held`, as its tenant has a quota."""
    return in_the_hands_of_a_worker(store, insert(store, tenant="shop", **options))


QUOTAS = {
    "release_within_quotas": Verb(
        [Status.QUEUED], lambda store, one, to: store.release_within_quotas(NOW)
    ),
}

# The moves of a worker with deliveries that it holds.
HELD = [
    pytest.param(WORKERS[name], source, target, id=f"{name}-{source}-{target}")
    for (source, target), names in sorted(drawn().items())
    for name in sorted(names & WORKERS.keys())
]


@pytest.fixture
def store(shared_store: Store) -> Iterator[Store]:
    shared_store._rules = TenantRules(quotas={"shop": (Quota(1, 60),)})
    yield emptied(shared_store)
    shared_store._rules = TenantRules()


# --- the chart ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("source", "target"), list(product(Status, Status)))
def test_every_pair(store: Store, source: Status, target: Status) -> None:
    """For each pair of states, exactly the methods that the chart names can make the move."""
    movers = set()
    ways = (bulk_sends.bring, bring_over_quota) if source is Status.HELD else (None,)
    verbs = {**WORKERS, **OTHERS, **BULKS, **QUOTAS}
    for (name, verb), way in product(verbs.items(), ways):
        if target in verb.leads_to:
            bring_bulk = bulk_sends.bring if name not in BULKS else verb.bring
            bring_here = bring_bulk if way is bulk_sends.bring else way or verb.bring
            delivery = bring_here(emptied(store), source, expires_at=NOW + 3600)
            moves = moved_by(store, partial(verb.call, store, delivery, target))
            assert moves in ({}, {delivery.id: (source, target)})
            movers |= {name} if moves else set()

    assert movers == drawn().get((source, target), set())
    assert bool(movers) == ((source, target) in TRANSITIONS)


# --- the token ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("verb", "source", "target"), HELD)
def test_a_worker_moves_its_own_only(
    store: Store, verb: Verb, source: Status, target: Status
) -> None:
    """A worker's method moves only the delivery it names, and only with the claim's token."""
    bring(store, source)
    delivery = bring(store, source)

    assert_moved(
        store, lambda: verb.call(store, replace(delivery, token="another's"), target), [], target
    )
    assert_moved(store, lambda: verb.call(store, delivery, target), [delivery], target)


@pytest.mark.parametrize("target", RECORDED)
@pytest.mark.parametrize("lost_in", [Status.CLAIMED, Status.TRANSMITTING])
def test_a_worker_that_lost_its_lease(store: Store, lost_in: Status, target: Status) -> None:
    """A worker that lost its lease can no longer move the delivery."""
    mine = bring(store, lost_in, on_doubt=OnDoubt.RESEND)
    store.requeue_lapsed_claims(LATER)
    store.doubt_lapsed_transmissions(LATER, resend_at=LATER)
    store.resend_doubtful(LATER)
    [theirs] = claim(store, now=LATER, token="its successor's", lease_until=LATER + 300)
    assert theirs.id == mine.id
    steps: tuple[Callable[[], object], ...] = (
        lambda: None,
        lambda: store.mark_if_claimed(
            [theirs.id], token=theirs.token, now=LATER, lease_until=LATER + 300
        ),
        lambda: record(store, theirs, to=Status.DOUBTFUL),
    )
    for step, found_in in zip(
        steps, (Status.CLAIMED, Status.TRANSMITTING, Status.DOUBTFUL), strict=True
    ):
        step()
        assert row(store, mine)["status"] == found_in
        assert_moved(store, lambda: mark(store, mine), [], Status.TRANSMITTING)
        assert_moved(store, lambda: record(store, mine, to=target), [], target)
        assert_moved(
            store,
            lambda: store.release_if_in_hand({mine.id: None}, token=mine.token),
            [],
            Status.QUEUED,
        )
        assert not set_aside(store, mine)


def test_a_lease_that_is_over_can_not_be_begun(store: Store) -> None:
    """A delivery whose lease is over cannot be marked, even before the sweep has noticed."""
    delivery = bring(store, Status.CLAIMED)

    assert_moved(store, lambda: mark(store, delivery, now=LEASE), [], Status.TRANSMITTING)
    assert_moved(
        store, lambda: mark(store, delivery, now=LEASE - 1), [delivery], Status.TRANSMITTING
    )


def test_a_lease_that_holds_is_nobody_elses(store: Store) -> None:
    """The sweep leaves deliveries alone whose lease is not over."""
    bring(store, Status.TRANSMITTING)
    bring(store, Status.CLAIMED)

    assert_moved(store, lambda: store.requeue_lapsed_claims(LEASE - 1), [], Status.QUEUED)
    assert_moved(
        store,
        lambda: store.doubt_lapsed_transmissions(LEASE - 1, resend_at=LATER),
        [],
        Status.DOUBTFUL,
    )


def test_some_of_a_slice(store: Store) -> None:
    """A statement for many deliveries moves those that can be moved, and returns them."""
    insert(store, *(f"reader{number}@example.com" for number in range(600)))
    claimed = claim(store, 600)
    gone, held = claimed[:100], claimed[100:]
    store.release_if_in_hand(dict.fromkeys(one.id for one in gone), token=gone[0].token)

    assert_moved(store, lambda: mark(store, *claimed), held, Status.TRANSMITTING)
    assert_moved(store, lambda: mark(store), [], Status.TRANSMITTING)


# --- what a move writes -------------------------------------------------------------------------


@pytest.mark.parametrize("held", [Status.CLAIMED, Status.TRANSMITTING])
def test_what_is_released_was_never_claimed(store: Store, held: Status) -> None:
    """Releasing a delivery gives back its attempt and its due time."""
    delivery = bring(store, Status.QUEUED)
    queued = row(store, delivery)
    [claimed] = claim(store)
    assert row(store, claimed)["attempts"] == claimed.attempts == 1
    if held is Status.TRANSMITTING:
        mark(store, claimed)

    store.release_if_in_hand({claimed.id: None}, token=claimed.token)

    assert row(store, delivery) == queued


def test_what_is_released_may_have_to_wait(store: Store) -> None:
    """A delivery may be released with a later due time."""
    delivery = bring(store, Status.CLAIMED)

    store.release_if_in_hand({delivery.id: LATER}, token=delivery.token)

    assert row(store, delivery)["due_at"] == LATER
    assert claim(store, now=LATER - 1) == []


def test_a_lapsed_claim_costs_no_attempt(store: Store) -> None:
    """A lapsed claim goes back to the queue without costing an attempt."""
    delivery = bring(store, Status.QUEUED)
    queued = row(store, delivery)
    claim(store)

    store.requeue_lapsed_claims(LEASE)

    assert row(store, delivery) == queued


def test_what_was_said_is_kept(store: Store) -> None:
    """An outcome stores the reply, the relay and the time; a failed attempt enters the history."""
    refused, accepted = bring(store, Status.TRANSMITTING), bring(store, Status.TRANSMITTING)

    record(store, refused, to=Status.QUEUED, reply="451 später 🐌")
    record(store, accepted, to=Status.SENT, reply="250 queued as 7")

    [status] = store.status(accepted.mail_id).deliveries
    assert (status.reply, status.relay, status.history) == (
        "250 queued as 7",
        "relay.example.com",
        (),
    )
    assert status.finished_at is not None
    assert status.finished_at.timestamp() == NOW
    [status] = store.status(refused.mail_id).deliveries
    assert [(tried.verdict, tried.reply, tried.relay) for tried in status.history] == [
        (Verdict.DEFERRED, "451 später 🐌", "relay.example.com")
    ]
    assert status.due_at is not None
    assert status.due_at.timestamp() == LATER
    assert status.finished_at is None


def test_a_try_that_does_not_count(store: Store) -> None:
    """A relay that could not be reached costs no attempt."""
    delivery = bring(store, Status.TRANSMITTING)

    record(store, delivery, to=Status.QUEUED, counts=False)

    assert row(store, delivery)["attempts"] == 0


def test_any_words_can_be_recorded(store: Store) -> None:
    """Replies with characters that the database cannot store are recorded in a cleaned form."""
    sent, failed = bring(store, Status.TRANSMITTING), bring(store, Status.TRANSMITTING)
    broken = bring(store, Status.CLAIMED)

    record(store, sent, to=Status.SENT, reply="250 \x00\udcff ok")
    record(store, failed, to=Status.FAILED, reply="550 \x00\udcff no")
    set_aside(store, broken, reply="\x00\udcff")

    assert {one["id"]: one["reply"] for one in table(store).values()} == {
        sent.id: "250 \ufffd? ok",
        failed.id: "550 \ufffd? no",
        broken.id: "\ufffd?",
    }


def test_a_second_report_changes_nothing(store: Store) -> None:
    """Recording an outcome a second time changes nothing."""
    delivery = bring(store, Status.TRANSMITTING)
    record(store, delivery, to=Status.FAILED)

    assert_moved(store, lambda: record(store, delivery, to=Status.FAILED), [], Status.FAILED)
    [status] = store.status(delivery.mail_id).deliveries
    assert len(status.history) == 1


def test_a_requeued_mail_begins_anew(store: Store) -> None:
    """A requeued mail has all its attempts and its full time again."""
    delivery = bring(store, Status.FAILED)

    store.settle_if_resting(delivery.mail_id, Status.QUEUED, now=LATER)

    after = row(store, delivery)
    assert (after["attempts"], after["queued_at"], after["due_at"], after["finished_at"]) == (
        0,
        LATER,
        LATER,
        None,
    )


def test_a_person_moves_all_copies_of_a_mail_that_rest(store: Store) -> None:
    """A decision moves all deliveries of the mail that no worker holds, and no other mail's."""
    insert(store, "eve@example.com")
    mail_id = insert(store, "ada@example.com", "bob@example.com", "cy@example.com")
    [eve, ada, *rest] = claim(store)
    store.release_if_in_hand(dict.fromkeys(one.id for one in (eve, *rest)), token=ada.token)

    assert_moved(
        store,
        lambda: store.settle_if_resting(mail_id, Status.CANCELLED, now=NOW),
        rest,
        Status.CANCELLED,
    )


# --- doubt --------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [Status.SENT, Status.FAILED, Status.QUEUED])
@pytest.mark.parametrize("noticed_by", ["its worker", "the sweep"])
def test_a_late_reply_settles_a_doubt(store: Store, noticed_by: str, target: Status) -> None:
    """A doubt is settled by a late reply that its own worker records."""
    delivery = bring(store, Status.TRANSMITTING)
    if noticed_by == "the sweep":
        store.doubt_lapsed_transmissions(LATER, resend_at=LATER)
    else:
        record(store, delivery, to=Status.DOUBTFUL)

    assert_moved(store, lambda: record(store, delivery, to=target), [delivery], target)


def test_what_was_never_begun_is_not_in_doubt(store: Store) -> None:
    """A doubtful delivery is requeued if its worker reports that it was never begun."""
    delivery = bring(store, Status.TRANSMITTING, on_doubt=OnDoubt.HOLD)
    store.doubt_lapsed_transmissions(LATER, resend_at=LATER)

    assert_moved(
        store,
        lambda: store.release_if_in_hand({delivery.id: None}, token=delivery.token),
        [delivery],
        Status.QUEUED,
    )

    [again] = claim(store, now=LATER)
    assert (again.id, again.attempts, again.doubts) == (delivery.id, 1, 0)
    assert row(store, delivery)["reply"] is None


def test_a_doubt_that_was_resent_is_settled_by_nobody_late(store: Store) -> None:
    """A late reply is ignored once the delivery has been queued again."""
    delivery = bring(store, Status.DOUBTFUL)
    store.resend_doubtful(LATER)

    assert_moved(store, lambda: record(store, delivery, to=Status.SENT), [], Status.SENT)


def doubt_by_worker(store: Store, delivery: Delivery) -> set[int]:
    outcome = Outcome(Verdict.DOUBTFUL, "no reply after the end of the mail")
    move = next_move(delivery, outcome, RetryPolicy(doubt_resend_after=900), now=NOW, jitter=0.5)
    return store.record_if_transmitting(
        [Result(delivery, outcome, move)], now=NOW, relay="relay.example.com"
    )


def doubt_by_sweep(store: Store, delivery: Delivery) -> set[int]:
    return store.doubt_lapsed_transmissions(LATER, resend_at=NOW + 900)


@pytest.mark.parametrize("doubt", [doubt_by_worker, doubt_by_sweep])
def test_resend_means_once(store: Store, doubt: Callable[[Store, Delivery], set[int]]) -> None:
    """With `on_doubt="resend"`, a mail is sent once more; a second doubt waits for a person."""
    delivery = bring(store, Status.TRANSMITTING, on_doubt=OnDoubt.RESEND)
    assert_moved(store, lambda: doubt(store, delivery), [delivery], Status.DOUBTFUL)
    assert_moved(store, lambda: store.resend_doubtful(NOW + 899), [], Status.QUEUED)
    assert_moved(store, lambda: store.resend_doubtful(NOW + 900), [delivery], Status.QUEUED)

    [again] = claim(store, now=NOW + 900, lease_until=NOW + 1000)
    store.mark_if_claimed([again.id], token=again.token, now=NOW + 900, lease_until=NOW + 1000)
    assert (again.id, again.attempts, again.doubts) == (delivery.id, 2, 1)
    assert_moved(store, lambda: doubt(store, again), [again], Status.DOUBTFUL)
    assert row(store, again)["due_at"] is None
    assert_moved(store, lambda: store.resend_doubtful(LATER * 2), [], Status.QUEUED)


@pytest.mark.parametrize("doubt", [doubt_by_worker, doubt_by_sweep])
def test_hold_means_never(store: Store, doubt: Callable[[Store, Delivery], set[int]]) -> None:
    """With `on_doubt="hold"`, a mail in doubt waits for a person."""
    delivery = bring(store, Status.TRANSMITTING, on_doubt=OnDoubt.HOLD)
    assert_moved(store, lambda: doubt(store, delivery), [delivery], Status.DOUBTFUL)
    assert_moved(store, lambda: store.resend_doubtful(LATER * 2), [], Status.QUEUED)

    resend = partial(store.settle_if_resting, delivery.mail_id, Status.QUEUED, now=NOW)
    assert_moved(store, resend, [delivery], Status.QUEUED)
    assert [one.id for one in claim(store)] == [delivery.id]
