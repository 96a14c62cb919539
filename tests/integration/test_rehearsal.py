"""Rehearsals of bulk sends: each mail is rendered, and nothing is stored or sent."""

import math
import tracemalloc
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest
from flask import Flask
from limits import parse_many

from mailer import Attachment, BulkProgress, InvalidMail, Mailer, Rehearsal, send_bulk
from mailer.intake.duration import seconds_for
from mailer.intake.rehearsal import SeenAddresses
from mailer.testing import FakeRelay
from tests.shop import close, create_shop, rows, store_of

TEMPLATES = {
    "mail/news.txt": "Hello {{ name }}!",
    "mail/news.html": "<p>Hello <b>{{ name }}</b>!</p>",
    "mail/news.de.txt": "Hallo {{ name }}!",
}
CONFIG = {"MAIL_DEFAULT_SENDER": "shop@example.com"}
ADA, BOB = ("ada@example.com", {"name": "Ada"}), ("bob@example.com", {"name": "Bob"})

Rehearse = Callable[..., Rehearsal]


@pytest.fixture
def open_app() -> Iterator[Callable[..., Flask]]:
    """Return `open_app(**config)`, which makes an app whose mail is kept in memory."""
    apps = list[Flask]()

    def open_app(**config: Any) -> Flask:
        given = {"TESTING": True, "MAILER_DATABASE_URL": "sqlite://", **CONFIG, **config}
        apps.append(create_shop(given, TEMPLATES))
        return apps[-1]

    yield open_app
    for app in apps:
        close(app)


@pytest.fixture
def app(open_app: Callable[..., Flask]) -> Iterator[Flask]:
    app = open_app()
    with app.app_context():
        yield app


def rehearse(recipients: Any, subject: str = "News for {{ name }}", **options: Any) -> Rehearsal:
    return send_bulk(subject, "mail/news", recipients, dry_run=True, **options)


def test_nothing_is_stored(app: Flask) -> None:
    """A rehearsal leaves no row and rings no bell."""
    store_of(app).check_schema()
    before = rows(app)

    found = rehearse([ADA, BOB], idempotency_key="news")

    assert (found.imported, found.accepted, found.failed) == (2, 2, 0)
    assert rows(app) == before


def test_each_row_is_counted(app: Flask) -> None:
    """Duplicates, refused rows and failed mails are counted, and the two latter are named."""
    found = rehearse([ADA, "bob@", ADA, ("cleo@example.com", {"nam": "Cleo"})])

    assert (found.imported, found.accepted, found.duplicates) == (4, 2, 1)
    assert (found.refused, found.failed) == (1, 1)
    assert [(one.row, one.address) for one in found.errors] == [
        (2, "bob@"),
        (4, "cleo@example.com"),
    ]
    assert "'name' is undefined" in found.errors[1].reason


def test_the_counts_are_those_of_the_send(app: Flask) -> None:
    """The send accepts and refuses the rows that its rehearsal does, with the same reasons."""
    recipients = [ADA, "bob@", ADA, {"name": "Cleo"}, ("dan@example.com", {"name": object()})]

    found = rehearse(recipients)
    bulk = send_bulk("News for {{ name }}", "mail/news", recipients)
    progress = bulk.progress()

    assert (found.accepted, found.duplicates, found.refused) == (
        progress.accepted,
        progress.duplicates,
        progress.refused,
    )
    assert list(found.errors) == list(bulk.errors())


def test_a_hundred_errors_are_named(app: Flask) -> None:
    """Memory stays flat however many rows are wrong."""
    found = rehearse("bad" for _ in range(250))

    assert found.refused == 250
    assert [one.row for one in found.errors] == [*range(1, 101)]


def test_an_address_takes_a_few_bytes() -> None:
    """A million recipients take some megabytes, since each may be a duplicate of any other."""
    seen, count = SeenAddresses(), 300_000
    tracemalloc.start()
    assert all(seen.add(f"user{n}@example.com") for n in range(count))
    size, _peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert size < 60 * count  # the buckets, once, and 8 bytes of each address
    assert not seen.add("user7@example.com")


def test_the_samples_are_the_mails(app: Flask) -> None:
    """The first and the largest mail are samples, as the relay gets them."""
    recipients = [(f"{n}@example.com", {"name": "A" * (500 if n == 7 else 1)}) for n in range(20)]

    samples = rehearse(recipients).samples
    with FakeRelay(app) as relay:
        bulk = send_bulk("News for {{ name }}", "mail/news", recipients)
        app.extensions["mailer"].inline.deliver([bulk.id], at_most=math.inf)

    assert {1, 8} <= {one.row for one in samples}
    assert len(samples) in (2, 3)
    mails = {mail.recipients[0]: mail for mail in relay.mails}
    for sample in samples:
        mail = mails[sample.address]
        parsed = mail.parsed
        bodies = [parsed.get_body([kind]) for kind in ("plain", "html")]
        contents = [body.get_content().strip() for body in bodies if body is not None]
        assert [sample.subject, sample.text, sample.html] == [parsed["Subject"], *contents]
        # A delivery has another number than its row, and the trace of the relay is not ours.
        assert abs(sample.size - len(mail.raw)) < 40


def test_a_recipient_gets_its_locale(app: Flask) -> None:
    """The locale of a row chooses its templates."""
    [sample] = rehearse([{"email": "ada@example.com", "name": "Ada", "locale": "de"}]).samples

    assert (sample.text, sample.html) == ("Hallo Ada!", None)


def test_the_sizes(app: Flask) -> None:
    """The largest size and the sum are exact, with the attachments; the median has three digits."""
    data = b"x" * 5000
    sizes = [rehearse([one]).total_size for one in (ADA, BOB)]

    found = rehearse([ADA, BOB], attachments=[Attachment("a.bin", data)])

    assert found.total_size > sum(sizes) + 2 * len(data) * 4 // 3
    assert found.largest_size == max(one.size for one in found.samples)
    assert abs(found.median_size - found.total_size / 2) < 0.01 * found.total_size


def test_the_progress_is_told(app: Flask) -> None:
    """The function is called after each thousand rows."""
    told = list[BulkProgress]()
    rehearse(
        ((f"{n}@example.com", {"name": "A"}) for n in range(2100)),
        progress=told.append,
    )

    assert [one.imported for one in told] == [1000, 2000]


def test_without_limits_the_rendering_counts(app: Flask) -> None:
    """Without a limit, the time is that of the rendering on this machine."""
    found = rehearse([ADA, BOB])

    assert 0 < found.seconds < 60
    assert "renders" in found.limit


@pytest.mark.parametrize(
    ("config", "seconds", "words"),
    [
        ({"MAILER_RELAY_RATE": "2/minute"}, 120, "MAILER_RELAY_RATE: 127.0.0.1:25 takes 2/minute"),
        (
            {"MAILER_DOMAIN_LIMITS": {"example.com": {"rate": "1/hour"}}},
            3600 * 4,
            "MAILER_DOMAIN_LIMITS lets example.com have 1/hour",
        ),
        (
            {"MAILER_DOMAIN_LIMITS": {"*": {"rate": "1/hour"}}, "MAILER_RELAY_RATE": "2/minute"},
            3600 * 4,
            "MAILER_DOMAIN_LIMITS lets example.com have 1/hour",
        ),
    ],
)
def test_the_limit_that_counts(
    open_app: Callable[..., Flask], config: dict[str, Any], seconds: float, words: str
) -> None:
    """The slowest limit of the settings gives the time, and is named."""
    with open_app(**config).app_context():
        found = rehearse([(f"{n}@example.com", {"name": "A"}) for n in range(5)])

    assert found.seconds == pytest.approx(seconds, rel=0.01)
    assert found.limit == words


def test_relays_share_the_mail(open_app: Callable[..., Flask]) -> None:
    """Relays of one preference add up; one without a rate, or another lane, does not limit."""
    one = {"name": "one", "MAIL_SERVER": "127.0.0.1", "MAILER_RELAY_RATE": "1/minute"}
    two = {**one, "name": "two"}
    recipients = [(f"{n}@example.com", {"name": "A"}) for n in range(6)]

    def limit(*relays: dict[str, Any]) -> tuple[int, str]:
        with open_app(MAILER_RELAYS=list(relays)).app_context():
            found = rehearse(recipients)
            return round(found.seconds / 60), found.limit

    assert limit(one, two) == (
        2,
        "MAILER_RELAY_RATE: one takes 1/minute and two takes 1/minute",
    )
    assert limit(one, {**two, "preference": 1})[0] == 5
    assert limit(one, {**two, "lanes": ["critical"]})[0] == 5
    assert limit(one, {"name": "two", "MAIL_SERVER": "127.0.0.1"})[0] == 0


@pytest.mark.parametrize(
    ("rates", "count", "seconds"),
    [
        ("14/second", 14, 0),
        ("14/second", 15, 1),
        ("14/second; 20/day", 20, 1),
        ("14/second; 20/day", 21, 86400),
        ("1000000/second", 0, 0),
    ],
)
def test_the_seconds_of_a_rate(rates: str, count: int, seconds: float) -> None:
    """A period begins with all that it allows."""
    assert seconds_for(count, [parse_many(rates)]) == pytest.approx(seconds, abs=1, rel=0.002)


def test_more_mail_takes_longer() -> None:
    """The time never falls with the number of mails."""
    rates = [parse_many("7/10 seconds; 100/hour"), parse_many("3/minute")]
    times = [seconds_for(count, rates) for count in range(0, 500, 7)]

    assert all(one <= other for one, other in pairwise(times))


def test_a_wrong_call_is_refused(app: Flask) -> None:
    """Options and templates are checked as for a send."""
    for recipients, options in [
        ("ada@example.com", {}),
        ([ADA], {"on_error": "ignore"}),
        ([ADA], {"lane": "slow"}),
        ([ADA], {"subject": "{{"}),
    ]:
        with pytest.raises(InvalidMail):
            rehearse(recipients, **options)


def test_outside_of_an_app_context(open_app: Callable[..., Flask]) -> None:
    """`Mailer(app)` rehearses without an app context, as it sends."""
    app = open_app()
    app.extensions.pop("mailer.owner")
    found = Mailer(app).send_bulk("News", "mail/news", [ADA], dry_run=True)

    assert found.accepted == 1


def test_an_error_of_the_app_is_told(app: Flask) -> None:
    """An error in a filter of the app is the reason of its row, and the others are rendered."""

    @app.template_filter("loud")
    def loud(value: str) -> str:
        return value[100]

    found = rehearse([ADA, BOB], subject="{{ name|loud if name == 'Bob' else name }}")

    assert (found.accepted, found.failed) == (2, 1)
    [error] = found.errors
    assert error.row == 2
    assert "index out of range" in error.reason
