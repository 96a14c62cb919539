"""The policy's decisions about a mail, with the clock and the jitter passed in."""

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailer.message import TRANSITIONS, Delivery, Lane, OnDoubt, Outcome, Status, Verdict
from mailer.policy import (
    LEAST_ASKED,
    MAX_BATCH,
    MAX_WINDOW,
    MOST_ASKED,
    Move,
    RetryPolicy,
    backoff,
    batch_size,
    next_move,
    rest,
    smoothed,
    window_size,
)

NOW = 1_800_000_000.0
RETRY = RetryPolicy()

jitters = st.floats(min_value=0, max_value=1, exclude_max=True)
policies = st.builds(
    RetryPolicy,
    first=st.floats(1, 3600),
    factor=st.floats(1, 10),
    longest=st.floats(1, 86_400),
    jitter=st.floats(0, 0.9),
    max_attempts=st.integers(1, 50),
    max_age=st.floats(1, 1e6),
    doubt_resend_after=st.floats(1, 1e5),
    relay_rest=st.floats(1, 600),
    relay_rest_longest=st.floats(1, 3600),
)


def a_delivery(
    attempts: int = 1, doubts: int = 0, queued_at: float = NOW, on_doubt: OnDoubt = OnDoubt.RESEND
) -> Delivery:
    return Delivery(
        id=1,
        mail_id="mail",
        recipient="ada@example.com",
        domain="example.com",
        lane=Lane.NORMAL,
        attempts=attempts,
        doubts=doubts,
        queued_at=queued_at,
        on_doubt=on_doubt,
        token="this worker's",
    )


deliveries = st.builds(
    a_delivery,
    attempts=st.integers(1, 100),
    doubts=st.integers(0, 2),
    queued_at=st.floats(NOW - 1e6, NOW),
    on_doubt=st.sampled_from(OnDoubt),
)


def move(
    verdict: Verdict,
    delivery: Delivery | None = None,
    retry: RetryPolicy = RETRY,
    jitter: float = 0.5,
    retry_after: float | None = None,
) -> Move:
    outcome = Outcome(verdict, "as the relay said", retry_after=retry_after)
    return next_move(delivery or a_delivery(), outcome, retry, now=NOW, jitter=jitter)


# --- the next move ------------------------------------------------------------------------------


def test_sent_is_sent() -> None:
    """A sent delivery is final."""
    assert move(Verdict.SENT) == Move(to=Status.SENT)


def test_refused_is_final() -> None:
    """A refused delivery has failed, however few attempts were made."""
    assert move(Verdict.REFUSED) == Move(to=Status.FAILED)


def test_deferred_comes_back_later() -> None:
    """A deferred delivery is queued again after the back-off."""
    assert move(Verdict.DEFERRED, a_delivery(attempts=1)) == Move(to=Status.QUEUED, due_at=NOW + 60)
    assert move(Verdict.DEFERRED, a_delivery(attempts=2)) == Move(
        to=Status.QUEUED, due_at=NOW + 180
    )


def test_deferred_has_failed_when_its_attempts_are_used_up() -> None:
    """A delivery deferred at its last attempt has failed, and the reason names the setting."""
    last = move(Verdict.DEFERRED, a_delivery(attempts=RETRY.max_attempts))

    assert move(Verdict.DEFERRED, a_delivery(attempts=RETRY.max_attempts - 1)).to is Status.QUEUED
    assert last == Move(
        to=Status.FAILED, reason="given up after 12 tries, see MAILER_RETRY_ATTEMPTS"
    )
    assert "1 try," in move(Verdict.DEFERRED, retry=RetryPolicy(max_attempts=1)).reason


def test_deferred_has_failed_when_its_next_try_would_be_too_late() -> None:
    """A deferred delivery whose next attempt would exceed its maximum age has failed."""
    oldest = NOW + 60 - RETRY.max_age
    too_old = move(Verdict.DEFERRED, a_delivery(queued_at=oldest - 1))

    assert move(Verdict.DEFERRED, a_delivery(queued_at=oldest)).to is Status.QUEUED
    assert too_old == Move(
        to=Status.FAILED, reason="given up, too old for another try, see MAILER_RETRY_AGE"
    )


def test_who_names_a_time_is_asked_at_that_time() -> None:
    """If the relay names a time, the next attempt is then or a little later, never earlier."""
    assert move(Verdict.DEFERRED, retry_after=300, jitter=0) == Move(
        to=Status.QUEUED, due_at=NOW + 300
    )
    assert move(Verdict.DEFERRED, retry_after=300, jitter=0.5) == Move(
        to=Status.QUEUED, due_at=NOW + 330
    )


def test_a_short_time_does_not_shorten_the_wait() -> None:
    """A time named by the relay never shortens the back-off."""
    assert move(Verdict.DEFERRED, a_delivery(attempts=3), retry_after=5) == Move(
        to=Status.QUEUED, due_at=NOW + 540
    )


def test_a_time_beyond_the_mails_age_is_not_waited_for() -> None:
    """A delivery told to wait beyond its maximum age has failed at once."""
    assert (
        move(
            Verdict.DEFERRED, a_delivery(queued_at=NOW - RETRY.max_age + 3000), retry_after=3600
        ).to
        is Status.FAILED
    )


@given(
    delivery=deliveries,
    retry=policies,
    jitter=jitters,
    retry_after=st.floats(LEAST_ASKED, MOST_ASKED),
)
def test_no_time_that_was_asked_for_is_cut_short(
    delivery: Delivery, retry: RetryPolicy, jitter: float, retry_after: float
) -> None:
    """With any configuration, a named time is respected and the maximum age is kept."""
    made = move(Verdict.DEFERRED, delivery, retry, jitter, retry_after)

    if made.to is Status.QUEUED:
        assert made.due_at is not None
        assert made.due_at >= NOW + retry_after
        assert made.due_at - delivery.queued_at <= retry.max_age
        assert delivery.attempts < retry.max_attempts
    else:
        assert made.to is Status.FAILED
        assert made.reason


def test_unreached_costs_no_attempt() -> None:
    """A relay that cannot be reached costs no attempt, and the waits are spread."""
    tired = a_delivery(attempts=100)

    assert move(Verdict.UNREACHED, tired, jitter=0) == Move(
        to=Status.QUEUED, due_at=NOW + 10, counts=False
    )
    assert move(Verdict.UNREACHED, tired, jitter=0.5) == Move(
        to=Status.QUEUED, due_at=NOW + 15, counts=False
    )


def test_unreached_ends_at_its_age() -> None:
    """A mail that reaches no relay has failed at its maximum age, which outlasts a long weekend."""
    since_friday = a_delivery(queued_at=NOW - 4 * 86_400)
    since_last_week = a_delivery(queued_at=NOW - 6 * 86_400)

    assert move(Verdict.UNREACHED, since_friday).to is Status.QUEUED
    assert move(Verdict.UNREACHED, since_last_week) == Move(
        to=Status.FAILED,
        counts=False,
        reason="given up, too old for another try, see MAILER_RETRY_AGE",
    )


@pytest.mark.parametrize(
    ("on_doubt", "doubts", "due_at"),
    [
        (OnDoubt.RESEND, 0, NOW + RETRY.doubt_resend_after),
        (OnDoubt.RESEND, 1, None),
        (OnDoubt.HOLD, 0, None),
        (OnDoubt.HOLD, 1, None),
    ],
)
def test_doubt_is_resent_once_if_the_mail_wants_it(
    on_doubt: OnDoubt, doubts: int, due_at: float | None
) -> None:
    """A delivery in doubt is resent once with `on_doubt="resend"`, else it waits for a person."""
    assert move(Verdict.DOUBTFUL, a_delivery(doubts=doubts, on_doubt=on_doubt)) == Move(
        to=Status.DOUBTFUL, due_at=due_at
    )


@given(delivery=deliveries, verdict=st.sampled_from(Verdict), retry=policies, jitter=jitters)
def test_every_move_is_one_of_the_chart(
    delivery: Delivery, verdict: Verdict, retry: RetryPolicy, jitter: float
) -> None:
    """Each decision is a transition of the state chart; only queued mail has a due time."""
    to, due_at = (made := move(verdict, delivery, retry, jitter)).to, made.due_at

    assert (Status.TRANSMITTING, to) in TRANSITIONS
    if to is Status.QUEUED:
        assert due_at is not None
        assert due_at > NOW
    if to.is_final:
        assert due_at is None


# --- back-off -----------------------------------------------------------------------------------


@given(attempts=st.integers(1, 10_000), retry=policies, jitter=jitters)
def test_the_wait_has_bounds(attempts: int, retry: RetryPolicy, jitter: float) -> None:
    """A wait lies between the first and the longest one, spread by the jitter."""
    wait = backoff(attempts, retry, jitter)
    middle = backoff(attempts, replace(retry, jitter=0.0), jitter)

    assert min(retry.first, retry.longest) <= middle <= retry.longest
    assert (1 - retry.jitter) * middle * 0.999 <= wait <= (1 + retry.jitter) * middle * 1.001


@given(retry=policies, jitter=jitters)
def test_no_wait_is_shorter_than_the_one_before(retry: RetryPolicy, jitter: float) -> None:
    """With the same jitter, no wait is shorter than the one before."""
    waits = [backoff(attempts, retry, jitter) for attempts in range(1, 60)]

    assert all(one <= next_one for one, next_one in pairwise(waits))


@given(attempts=st.integers(1, 50), jitter=st.lists(jitters, min_size=2, max_size=2, unique=True))
def test_jitter_spreads_the_waits(attempts: int, jitter: list[float]) -> None:
    """Jitter spreads the waits of mails that were deferred together."""
    low, high = (backoff(attempts, RETRY, one) for one in sorted(jitter))
    still = RetryPolicy(jitter=0.0)

    assert low <= high <= low * 1.5 + 1e-9
    assert backoff(attempts, still, jitter[0]) == backoff(attempts, still, jitter[1])


def test_the_waits_by_default() -> None:
    """The default waits grow from a minute to four hours, and span about a day."""
    waits = [round(backoff(attempts, RETRY, 0.5)) for attempts in range(1, RETRY.max_attempts)]

    assert waits[:6] == [60, 180, 540, 1620, 4860, 14400]
    assert set(waits[6:]) == {14400}
    assert 86_400 <= sum(waits) <= RETRY.max_age


@given(retry=policies, jitter=jitters)
def test_a_relay_that_fails_again_is_left_alone_longer(retry: RetryPolicy, jitter: float) -> None:
    """The pause of a relay doubles with each failure, up to a limit."""
    rests = [rest(failures, retry, jitter) for failures in range(60)]

    assert rests[0] >= min(retry.relay_rest, retry.relay_rest_longest)
    assert all(one <= longer <= 2 * one for one, longer in pairwise(rests))
    assert rests[-1] <= (1 + retry.jitter) * retry.relay_rest_longest


# --- sizes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds_per_mail", "size"),
    [(10, 1), (0.06, 1), (0.05, 1), (0.01, 5), (0.0025, 20), (1e-5, 20)],
)
def test_a_window_is_twenty_mails_or_fifty_milliseconds(seconds_per_mail: float, size: int) -> None:
    """A window holds at most 20 mails or 50 milliseconds of work, and at least one mail."""
    assert window_size(seconds_per_mail) == size


@pytest.mark.parametrize(
    ("seconds_per_mail", "size"), [(10, 1), (1, 1), (0.5, 2), (0.02, 50), (0.001, 500), (1e-5, 500)]
)
def test_a_slice_is_what_its_time_allows(seconds_per_mail: float, size: int) -> None:
    """A batch is as large as its time allows, from 1 to 500 mails."""
    assert batch_size(seconds_per_mail, batch_seconds=1.0) == size


@given(seconds_per_mail=st.floats(1e-5, 1e4), batch_seconds=st.floats(1e-3, 1e4))
def test_sizes_have_bounds(seconds_per_mail: float, batch_seconds: float) -> None:
    """Windows and batches stay within their bounds for any measured or configured values."""
    assert 1 <= window_size(seconds_per_mail) <= MAX_WINDOW
    assert 1 <= batch_size(seconds_per_mail, batch_seconds) <= MAX_BATCH


@given(before=st.floats(1e-5, 1e3), measured=st.floats(0, 1e3))
def test_the_average_follows_what_is_measured(before: float, measured: float) -> None:
    """The average lies between its old value and the measured one, and never reaches zero."""
    after = smoothed(before, measured)

    assert after >= 1e-5
    assert min(before, measured) * 0.999 <= after <= max(before, measured, 1e-5) * 1.001


def test_a_relay_that_became_slow_is_noticed_soon() -> None:
    """Three windows after a relay became slow, its windows are small."""
    seconds_per_mail = 0.001
    for _ in range(3):
        seconds_per_mail = smoothed(seconds_per_mail, 0.1)

    assert window_size(seconds_per_mail) == 1
