"""Outside production the recipient is decided at delivery, whatever was queued before."""

from email import message_from_bytes

import pytest

from mailer.message import Address, Status
from mailer.smtpd.faults import Fault
from mailer.store import Store
from tests.mails import a_message
from tests.services.dispatchers import MakeDispatcher, copy_of, deliver_all, queue, received
from tests.services.sink import Sink


def test_only_those_on_the_list(make_dispatcher: MakeDispatcher, store: Store, sink: Sink) -> None:
    """Mail to others than MAILER_ALLOWED_RECIPIENTS fails, and its reply names the setting."""
    ada, bob = queue(store, "ada@example.com"), queue(store, "bob@example.org")
    deliver_all(make_dispatcher(MAILER_ALLOWED_RECIPIENTS=["example.com"]))

    assert received(sink) == ["ada@example.com"]
    assert copy_of(store, ada).status is Status.SENT
    assert (copy_of(store, bob).status, copy_of(store, bob).reply) == (
        Status.FAILED,
        "its recipient is not among MAILER_ALLOWED_RECIPIENTS: nothing was sent",
    )


def test_the_log_names_mail_and_delivery(
    make_dispatcher: MakeDispatcher, store: Store, sink: Sink, caplog: pytest.LogCaptureFixture
) -> None:
    """A log line on a delivery has its number and the mail id that `flask mail status` takes."""
    stranger, refused = queue(store, "bob@example.org"), queue(store, "eve@example.com")
    sink.faults.add(Fault("rcpt", "550 5.1.1 nobody", recipient="eve@example.com"))
    deliver_all(make_dispatcher(MAILER_ALLOWED_RECIPIENTS=["example.com"]))

    lines = [record.getMessage() for record in caplog.records if "delivery=" in record.getMessage()]
    named = [
        f"mail_id={mail_id} delivery={copy_of(store, mail_id).id}"
        for mail_id in (stranger, refused)
    ]
    not_allowed = "its recipient is not among MAILER_ALLOWED_RECIPIENTS: nothing was sent"
    assert lines == [
        f"Delivery refused: {named[0]} status=failed phase=connect reply={not_allowed}",
        f"Delivery refused: {named[1]} status=failed phase=rcpt reply=550 5.1.1 nobody",
    ]


def test_everything_to_me(make_dispatcher: MakeDispatcher, store: Store, sink: Sink) -> None:
    """MAILER_REDIRECT_TO gets each copy unchanged, with its own recipient in a header."""
    message = a_message(to=(Address("ada@example.com"),), cc=(Address("bob@example.com"),))
    queue(store, "ada@example.com", "bob@example.com", "hidden@example.com", message=message)
    deliver_all(make_dispatcher(MAILER_REDIRECT_TO="me@example.net"))

    assert received(sink) == ["me@example.net"] * 3
    mails = [message_from_bytes(mail.raw) for mail in sink.messages]
    assert sorted(mail["X-Original-Recipient"] for mail in mails) == [
        "ada@example.com",
        "bob@example.com",
        "hidden@example.com",
    ]
    assert {(mail["To"], mail["Cc"]) for mail in mails} == {("ada@example.com", "bob@example.com")}
    assert {one.status for one in store.status(message.id)} == {Status.SENT}


def test_everything_but_theirs_to_me(
    make_dispatcher: MakeDispatcher, store: Store, sink: Sink
) -> None:
    """With both settings, recipients on the list get their own mail unchanged."""
    queue(store, "ada@example.com", "bob@example.org")
    deliver_all(
        make_dispatcher(
            MAILER_REDIRECT_TO="me@example.net", MAILER_ALLOWED_RECIPIENTS="example.com"
        )
    )

    assert sorted(received(sink)) == ["ada@example.com", "me@example.net"]
    assert [b"X-Original-Recipient" in mail.raw for mail in sink.messages].count(True) == 1
