"""OpenSMTPD, Exim and Postfix: their limits for a connection cost no mail an attempt."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from mailer.message import Status, Verdict
from mailer.mime import WireMessage
from mailer.store import Store
from tests.mails import table
from tests.services.dispatchers import OpenDispatcher, deliver_all, entry, queue
from tests.services.mail_servers import MailServer, running_exim, running_opensmtpd, running_postfix
from tests.services.relay import make_letter, make_relay, supply
from tests.services.waiting import wait_until

Running = Callable[[Path], AbstractContextManager[MailServer]]


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Iterator[MailServer]:
    """Yield the running server that the test names."""
    with (
        TemporaryDirectory(prefix="mailer-server-") as folder,
        request.param(Path(folder)) as server,
    ):
        yield server


@pytest.mark.parametrize("server", [running_opensmtpd], indirect=True)
def test_more_mails_than_a_session_carries(
    server: MailServer, store: Store, open_dispatcher: OpenDispatcher
) -> None:
    """OpenSMTPD takes 100 mails in a session; 250 are sent at their first attempt."""
    recipients = [f"reader{number}@example.com" for number in range(250)]
    queue(store, *recipients)
    dispatcher = open_dispatcher(entry(server), MAILER_RETRY_ATTEMPTS=4)

    deliver_all(dispatcher)

    rows = table(store).values()
    assert {(row["status"], row["attempts"]) for row in rows} == {(Status.SENT, 1)}
    assert taken_by(server, 250) == sorted(recipients)
    assert not store.relay_pauses()


@pytest.mark.parametrize(
    ("server", "mails"),
    [(running_exim, 1010), (running_postfix, 120)],
    indirect=["server"],
    ids=["exim", "postfix"],
)
def test_more_mails_than_a_connection_carries(server: MailServer, mails: int) -> None:
    """More mails than a server takes over one connection go on over the next one."""
    relay, going = make_relay(server.host, server.port), letters(mails, lambda _number: False)
    with relay.connection() as connection:
        verdicts = {outcome.verdict for outcome in connection.exchange(supply(going))}
    relay.hang_up()

    assert verdicts == {Verdict.SENT}
    assert taken_by(server, mails) == sorted(mail.recipient for mail in going)


def taken_by(server: MailServer, count: int) -> list[str]:
    """Return the recipients in the server's log once there are so many."""
    wait_until(lambda: len(server.recipients()) >= count)
    return sorted(server.recipients())


def letters(count: int, refused: Callable[[int], bool]) -> list[WireMessage]:
    names = ["nobody" if refused(number) else "reader" for number in range(count)]
    return [make_letter(f"{name}{number}@example.com") for number, name in enumerate(names)]


@pytest.mark.parametrize(
    "refused",
    [lambda _number: True, lambda number: number % 20 != 19],
    ids=["all", "all but a few"],
)
@pytest.mark.parametrize(
    "server", [running_opensmtpd, running_exim, running_postfix], indirect=True
)
def test_many_refused_recipients(server: MailServer, refused: Callable[[int], bool]) -> None:
    """Each refused recipient gets a reply of its own, despite the server's limit of errors."""
    mails = letters(60, refused)
    relay = make_relay(server.host, server.port)
    with relay.connection() as connection:
        outcomes = [*connection.exchange(supply(mails))]
    relay.hang_up()

    verdicts = [Verdict.REFUSED if refused(number) else Verdict.SENT for number in range(60)]
    assert [outcome.verdict for outcome in outcomes] == verdicts
    assert all(
        outcome.reply.startswith("550")
        for outcome in outcomes
        if outcome.verdict is Verdict.REFUSED
    )


@pytest.mark.parametrize("server", [running_postfix], indirect=True)
def test_a_refused_recipient_is_one_error(server: MailServer) -> None:
    """A refused recipient counts as one error of the client, since DATA waits for RCPT's reply.

    Postfix hangs up on a client after 20 errors.
    """
    relay = make_relay(server.host, server.port)
    with relay.connection() as connection:
        outcomes = [*connection.exchange(supply(letters(18, lambda _number: True)))]
        [sent] = connection.exchange(supply(letters(1, lambda _number: False)))
    relay.hang_up()

    assert {outcome.verdict for outcome in outcomes} == {Verdict.REFUSED}
    assert sent.verdict is Verdict.SENT
    assert len(taken_by(server, 1)) == 1
    assert "too many errors" not in server.log()
