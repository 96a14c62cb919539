"""The arithmetic of limits: shares of a process, and due times of mail that has to wait."""

import json
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from limits import parse

from mailer import throttle as module
from mailer.clock import SystemClock
from mailer.errors import ConfigurationError
from mailer.message import Lane
from mailer.settings import Settings
from mailer.throttle import Grant, Throttle
from mailer.throttle.arithmetic import LONGEST_WAIT, LimitState, Share, Window

rates = st.builds(
    lambda amount, multiples, unit: parse(f"{amount}/{multiples} {unit}"),
    st.integers(1, 100_000),
    st.integers(1, 100),
    st.sampled_from(["second", "minute", "hour", "day"]),
)
processes = st.integers(1, 500)
jitter = st.floats(0, 1, exclude_max=True)
lanes = st.sampled_from(Lane)
paces = st.floats(1e-4, 1e4)
times = st.floats(0, 1e7)


class Clock(SystemClock):
    """The time that the throttle sees."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def settings(**config: Any) -> Settings:
    return Settings.load(
        {"MAIL_SERVER": "relay.example.com", **config},
        {},
        default_database_url="sqlite:////srv/mailer.sqlite3",
    )


RELAY = "relay.example.com:25"


def throttle(
    domains: Mapping[str, object] | None = None, *, clock: Clock | None = None, **config: Any
) -> Throttle:
    """Return a throttle without Redis."""
    limited = settings(MAILER_DOMAIN_LIMITS=json.dumps(domains or {}), **config)
    return Throttle(limited, None, clock or SystemClock())


def booked(one: Throttle, domain: str, count: int) -> list[float]:
    return one.book(RELAY, domain, count, Lane.NORMAL, seconds_per_mail=0.02)


# --- shares -------------------------------------------------------------------------------------


@given(rate=rates, processes=processes)
def test_all_shares_are_no_more_than_the_rate_and_not_much_less(rate: Any, processes: int) -> None:
    """All shares together are at most the rate and not much less, in a longer time if needed."""
    share = Share.of(rate, processes)

    assert share.amount >= 1
    assert share.period >= rate.get_expiry()
    assert (
        0.5
        < processes * share.amount / share.period / (rate.amount / rate.get_expiry())
        <= 1 + 1e-9
    )
    assert share.is_stretched == (processes > rate.amount)


def test_some_shares() -> None:
    """Shares of a rate are whole mails, in a longer time if there are more processes than mails."""
    assert Share.of(parse("14/second"), 1) == Share(14, 1.0, is_stretched=False)
    assert Share.of(parse("14/second"), 4) == Share(3, 1.0, is_stretched=False)
    assert Share.of(parse("14/second"), 28) == Share(1, 2.0, is_stretched=True)


shares = st.builds(Share, st.integers(1, 1000), st.floats(0.5, 1e5), st.booleans())


@given(
    share=shares,
    start=times,
    asked=st.lists(st.tuples(st.floats(0, 0.7), st.integers(1, 400)), max_size=60),
)
def test_no_window_lets_more_through_than_its_share(
    share: Share, start: float, asked: list[tuple[float, int]]
) -> None:
    """No span as long as the period lets more mails through than the share."""
    window, now, taken = Window(), start, []
    for part_of_period, wanted in asked:
        now += part_of_period * share.period
        granted = min(wanted, window.free(share, now))
        window.take(granted, share, now)
        taken.append((now, granted))

    for last, _granted in taken:
        assert (
            sum(granted for when, granted in taken if last - share.period < when <= last)
            <= share.amount
        )


@given(share=shares, start=times, asked=st.lists(st.floats(0, 0.7), max_size=60))
def test_a_window_opens_when_it_says(share: Share, start: float, asked: list[float]) -> None:
    """A window lets mail through at the time it named, at most little more than a period later."""
    window, now = Window(), start
    for part_of_period in asked:
        now += part_of_period * share.period
        window.take(window.free(share, now), share, now)

        wait = window.opens_in(share, now)
        assert 0 <= wait <= 1.02 * share.period
        now += wait + 1e-6 * max(share.period, now * 1e-6)
        assert window.free(share, now) > 0


@given(share=shares, start=times, count=st.integers(1, 2000))
def test_a_window_remembers_little(share: Share, start: float, count: int) -> None:
    """A window keeps about a hundred numbers, however many mails are sent."""
    window = Window()
    for number in range(count):
        window.take(1, share, start + number * share.period / count)

    assert len(window._used) <= 102


@given(rate=rates, processes=processes, used=st.floats(0, 1))
def test_what_is_left_is_shared_when_redis_goes_away(
    rate: Any, processes: int, used: float
) -> None:
    """When Redis goes away, all processes together start with no more than what was left."""
    share = Share.of(rate, processes)
    if share.is_stretched:
        return
    window = Window()
    window.learn(used, share, 0.0, 0.5)

    assert processes * window.free(share, 0.0) <= rate.amount * (1 - used) + 1e-3
    assert window.free(share, share.period) == share.amount


@given(jitter=jitter)
def test_those_with_less_than_a_mail_take_turns(jitter: float) -> None:
    """Processes that share less than one mail each start at different times."""
    share = Share.of(parse("1/second"), 100)
    window = Window()
    window.learn(1.0, share, 0.0, jitter)

    assert window.opens_in(share, 0.0) == pytest.approx(100 * (1 - jitter))


# --- due times ----------------------------------------------------------------------------------


@given(count=st.integers(1, 300), lane=lanes, pace=paces, now=times, full_for=st.floats(-1e4, 1e4))
def test_those_who_wait_come_back_one_after_the_other(
    count: int, lane: Lane, pace: float, now: float, full_for: float
) -> None:
    """Waiting mails come back at the limit's pace, within a quarter of an hour."""
    waits = LimitState().book(count, lane, pace, not_before=now + full_for, now=now)

    assert len(waits) == count
    assert min(waits) >= min(max(full_for, 1 / pace) * (1 - 1e-6) - 1e-6, LONGEST_WAIT)
    assert max(waits) <= LONGEST_WAIT
    for one, following in pairwise(waits):
        assert following - one >= 1 / pace - 1e-6 or following == LONGEST_WAIT


@given(counts=st.lists(st.integers(1, 100), min_size=2, max_size=5), pace=paces, now=times)
def test_bites_do_not_land_on_each_other(counts: list[int], pace: float, now: float) -> None:
    """Several bookings get the same times as one booking of all mails."""
    line, at_once = LimitState(), LimitState()
    bites = [
        wait
        for count in counts
        for wait in line.book(count, Lane.NORMAL, pace, not_before=0.0, now=now)
    ]

    assert bites == pytest.approx(
        at_once.book(sum(counts), Lane.NORMAL, pace, not_before=0.0, now=now), abs=1e-3
    )


def test_the_row_is_behind_those_who_still_wait() -> None:
    """A later booking takes the time that has passed into account."""
    line = LimitState()
    line.book(100, Lane.NORMAL, 10.0, not_before=0.0, now=0.0)

    assert line.book(1, Lane.NORMAL, 10.0, not_before=0.0, now=4.0) == pytest.approx([6.1])
    assert line.book(1, Lane.NORMAL, 10.0, not_before=0.0, now=60.0) == pytest.approx([0.1])


def test_urgent_mail_is_not_booked_behind_bulk_mail() -> None:
    """Each lane is booked separately, so urgent mail does not wait behind bulk mail."""
    line = LimitState()
    line.book(100_000, Lane.BULK, 20.0, not_before=0.0, now=0.0)

    assert line.book(1, Lane.CRITICAL, 20.0, not_before=0.0, now=0.0) == pytest.approx([0.05])


def test_who_came_at_its_time_is_not_put_behind_newer_mail() -> None:
    """Mail that waited once comes back before newer mail."""
    line = LimitState()
    line.book(10, Lane.NORMAL, 5.0, not_before=0.0, now=0.0)

    assert line.rebook(2, Lane.NORMAL, 5.0, not_before=0.3, now=0.2) == pytest.approx([0.1, 0.3])
    assert line.rebook(1, Lane.NORMAL, 5.0, not_before=0.3, now=0.2) == pytest.approx([0.5])
    assert line.book(1, Lane.NORMAL, 5.0, not_before=0.0, now=0.2) == pytest.approx([2.0])
    assert line.behind(Lane.NORMAL, 0.2) == pytest.approx(2.0)


def test_new_mail_is_behind_what_is_as_urgent_or_more() -> None:
    """New mail waits behind mail of its own lane and of more urgent ones only."""
    line = LimitState()
    line.book(10, Lane.NORMAL, 5.0, not_before=0.0, now=0.0)

    assert [line.behind(lane, 0.0) > 0 for lane in (Lane.CRITICAL, Lane.NORMAL, Lane.BULK)] == [
        False,
        True,
        True,
    ]
    line.forget(Lane.BULK)
    assert line.behind(Lane.BULK, 0.0) == 0.0


def test_the_rate_that_is_full_says_how_fast_a_line_is(clock: Clock) -> None:
    """The pace is that of the rate that is used up, not of the others."""
    one = throttle(clock=clock, MAILER_RELAY_RATE="10/second; 100/day")
    assert one.admit(RELAY, "", 12).granted == 10

    assert booked(one, "", 3) == pytest.approx([1.0, 1.1, 1.2], abs=0.1)


def test_what_is_too_far_away_comes_back_for_a_new_look() -> None:
    """Mail that would wait too long is booked at the longest wait, and takes no place."""
    line = LimitState()
    waits = line.book(100_000, Lane.BULK, 1.0, not_before=0.0, now=0.0)

    assert waits[:900] == pytest.approx(range(1, 901))
    assert set(waits[900:]) == {LONGEST_WAIT}
    assert line.book(2, Lane.BULK, 1.0, not_before=0.0, now=1.0) == pytest.approx(
        [LONGEST_WAIT, LONGEST_WAIT]
    )


def test_the_tighter_limit_says_when(clock: Clock) -> None:
    """The tighter limit sets the pace, be it the relay's or the domain's."""
    both = throttle(
        {"gmail.com": {"rate": "2/second"}, "example.com": {"rate": "20/second"}},
        clock=clock,
        MAILER_RELAY_RATE="10/second",
    )

    assert booked(both, "gmail.com", 3) == pytest.approx([0.5, 1.0, 1.5])
    assert booked(both, "example.com", 3) == pytest.approx([0.1, 0.2, 0.3])
    assert booked(both, "example.org", 3) == pytest.approx([0.4, 0.5, 0.6])
    assert both.book("other", "example.org", 3, Lane.NORMAL, seconds_per_mail=0.02) == [0.0] * 3


def test_a_limit_of_connections_has_the_pace_they_have(clock: Clock) -> None:
    """A limit of connections sets a pace by their number and the seconds per mail."""
    slots = throttle({"gmail.com": {"concurrency": 2}}, clock=clock)

    assert slots.book(RELAY, "gmail.com", 3, Lane.NORMAL, seconds_per_mail=0.1) == pytest.approx(
        [0.05, 0.1, 0.15]
    )


def test_nobody_is_booked_before_the_limit_opens(clock: Clock) -> None:
    """No mail is booked before the time that was named to the refused one."""
    one = throttle(clock=clock, MAILER_RELAY_RATE="60/minute")
    grant = one.admit(RELAY, "example.com", 100)

    assert grant.granted == 60
    assert grant.wait == pytest.approx(60.0)
    assert booked(one, "example.com", 2) == pytest.approx([60.0, 61.0])


# --- which limits -------------------------------------------------------------------------------


def test_without_limits_nothing_is_counted() -> None:
    """Without limits, all mail is admitted and nothing is counted."""
    free = throttle()

    assert not free.limits_anything
    assert free.admit(RELAY, "example.com", 10_000) == Grant(10_000)
    with free.slots() as slots:
        assert slots.take_relay(RELAY)
        assert slots.take_domain("example.com")


def test_mail_that_is_delivered_to_nobody_is_not_limited() -> None:
    """With MAIL_SUPPRESS_SEND, no limits apply."""
    assert not throttle({"*": {"rate": "1/day"}}, MAIL_SUPPRESS_SEND=True).limits_anything


def test_exactly_the_domain_that_is_named() -> None:
    """A domain's limit applies in any case, and not to its subdomains."""
    one = throttle({"Gmail.com": {"rate": "1/day"}})

    assert one.admit(RELAY, "gmail.COM", 5).granted == 1
    assert one.admit(RELAY, "gmail.com", 5).granted == 0
    assert one.admit(RELAY, "mail.gmail.com", 5).granted == 5


def test_each_domain_that_is_not_named_counts_for_itself() -> None:
    """The limit of `*` applies to each other domain by itself; an empty entry lifts it."""
    one = throttle({"*": {"rate": "2/day"}, "example.com": {}})

    assert one.admit(RELAY, "example.org", 5).granted == 2
    assert one.admit(RELAY, "example.net", 5).granted == 2
    assert one.admit(RELAY, "example.com", 5).granted == 5
    assert one.of_domain("example.com") is None


def test_a_domain_at_its_limit_takes_nothing_of_the_relay() -> None:
    """A domain at its limit uses up none of the relay's limit."""
    one = throttle({"gmail.com": {"rate": "1/day"}}, MAILER_RELAY_RATE="10/day")

    assert [one.admit(RELAY, "gmail.com", 100).granted for _ in range(100)] == [1] + 99 * [0]
    assert one.admit(RELAY, "example.com", 100).granted == 9


def test_several_rates_all_count(clock: Clock) -> None:
    """All rates of a limit apply."""
    one = throttle(clock=clock, MAILER_RELAY_RATE="2/second; 5/day")
    granted = []
    for _ in range(5):
        granted.append(one.admit(RELAY, "example.com", 10).granted)
        clock.now += 1.1

    assert granted == [2, 2, 1, 0, 0]


def test_each_relay_has_its_own_limits() -> None:
    """A relay's limits are those of its entry, else those of the app."""
    relays = [{"name": "first", "MAILER_RELAY_RATE": "1/day"}, {"name": "second"}]
    one = throttle(MAILER_RELAY_RATE="3/day", MAILER_RELAYS=relays)

    assert one.admit("first", "example.com", 10).granted == 1
    assert one.admit("second", "example.com", 10).granted == 3


def test_seats_are_held_and_given_back() -> None:
    """A holder takes one slot of each limit, however often it asks, and releases it."""
    one = throttle({"gmail.com": {"concurrency": 2}}, MAILER_RELAY_CONCURRENCY=1)
    with one.slots() as slots, one.slots() as others, one.slots() as more:
        assert slots.take_relay(RELAY)
        assert not others.take_relay(RELAY)
        assert all(slots.take_domain("gmail.com") for _ in range(3))
        assert others.take_domain("gmail.com")
        assert not more.take_domain("gmail.com")
        assert more.take_domain("example.com")

    with one.slots() as later:
        assert later.take_relay(RELAY)
        assert later.take_domain("gmail.com")


def test_domains_are_forgotten(clock: Clock) -> None:
    """The number of remembered domains is bounded."""
    one = throttle({"*": {"rate": "1/second"}}, clock=clock)
    for number in range(10_000):
        one.admit(RELAY, f"example{number}.com", 2)
        booked(one, f"example{number}.com", 2)
        clock.now += 0.1

    assert len(one._local._states) <= 2 * module._MANY_STATES


# --- how they are written -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "rate", ["14/second", "100 per 5 minutes", "1/day", "14/second; 50000/day", "1000000/month"]
)
def test_a_rate(rate: str) -> None:
    """A rate is written as in the library `limits`."""
    assert settings(MAILER_RELAY_RATE=rate).relay_rate == rate
    assert (
        settings(MAILER_DOMAIN_LIMITS={"example.com": {"rate": rate}})
        .domain_limits["example.com"]
        .rate
        == rate
    )


RATE = (
    "a rate such as '14/second' or '100/5 minutes',"
    " or several that all count: '14/second; 50000/day'"
)


@pytest.mark.parametrize(
    ("rate", "words"),
    [
        ("fast", f"allowed: {RATE}."),
        ("14", f"allowed: {RATE}."),
        ("14/s", f"allowed: {RATE}."),
        ("-1/second", f"allowed: {RATE}."),
        ("1.5/second", f"allowed: {RATE}."),
        ("0/second", "0 mails: allowed: from 1 to 1000000, in a second or a longer time."),
        (
            "14/second; 1000001/day",
            "1000001 mails: allowed: from 1 to 1000000, in a second or a longer time.",
        ),
    ],
)
def test_a_rate_nobody_can_keep_is_refused(rate: str, words: str) -> None:
    """A bad rate is refused at start-up."""
    assert refusal(MAILER_RELAY_RATE=rate) == f"MAILER_RELAY_RATE={rate!r}: {words}"
    place = "MAILER_DOMAIN_LIMITS['example.com']['rate']"
    assert (
        refusal(MAILER_DOMAIN_LIMITS={"example.com": {"rate": rate}})
        == f"{place}={rate!r}: {words}"
    )


def refusal(**config: Any) -> str:
    with pytest.raises(ConfigurationError) as error:
        settings(**config)
    return str(error.value)


def test_the_rate_of_an_entry_is_checked_too() -> None:
    """The error for a bad rate of a relay names its entry."""
    relays = [{"name": "first"}, {"name": "second", "MAILER_RELAY_RATE": "fast"}]

    assert (
        refusal(MAILER_RELAYS=relays)
        == f"MAILER_RELAYS[1]['MAILER_RELAY_RATE']='fast': allowed: {RATE}."
    )


OBJECT = (
    "allowed: an object, in the environment as JSON, such as"
    ' {"gmail.com": {"rate": "20/second", "concurrency": 5}, "*": {"rate": "100/minute"}}'
)
DOMAIN = "give one such as 'gmail.com', or '*' for each that is not named"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("5", f"='5': {OBJECT}"),
        (["gmail.com"], f"=['gmail.com']: {OBJECT}"),
        ("gmail.com", f"='gmail.com': not JSON (line 1, column 1); {OBJECT}"),
        ({"gmail": {}}, f"['gmail']={{}}: 'gmail' is no domain: {DOMAIN}"),
        ({"ada@gmail.com": {}}, f"['ada@gmail.com']={{}}: 'ada@gmail.com' is no domain: {DOMAIN}"),
        ({5: {}}, f"[5]={{}}: 5 is no domain: {DOMAIN}"),
        (
            {"a.com": {}, "A.com": {}},
            "={'a.com': {}, 'A.com': {}}: a.com is there twice: remove one of them",
        ),
        ({"a.com": "1/day"}, "['a.com']='1/day': allowed: an object"),
        ({"a.com": {"rates": "1/day"}}, "['a.com']['rates']: unknown key; did you mean rate?"),
        (
            {"a.com": {"speed": "1/day"}},
            "['a.com']['speed']: unknown key; allowed: concurrency, rate",
        ),
        ({"a.com": {"rate": 5}}, f"['a.com']['rate']=5: allowed: {RATE}"),
        *(
            (
                {"a.com": {"concurrency": wrong}},
                f"['a.com']['concurrency']={wrong!r}: allowed: a whole number, 1 or more",
            )
            for wrong in (0, -1, True, "5", 1.5)
        ),
    ],
)
def test_limits_of_domains_that_make_no_sense_are_refused(given: object, words: str) -> None:
    """The error for a bad limit of a domain names the domain and what is allowed."""
    assert refusal(MAILER_DOMAIN_LIMITS=given) == f"MAILER_DOMAIN_LIMITS{words}."


def test_a_domain_is_kept_as_deliveries_have_it() -> None:
    """Domains are kept in lower case and ASCII, as in deliveries."""
    assert set(settings(MAILER_DOMAIN_LIMITS='{"BÜCHER.example": {}, "*": {}}').domain_limits) == {
        "xn--bcher-kva.example",
        "*",
    }
