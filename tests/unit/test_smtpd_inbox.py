"""The inbox's files."""

from pathlib import Path

import pytest

from mailer.smtpd.inbox import Inbox

RAW = b"Subject: =?utf-8?q?Gr=C3=BC=C3=9Fe?=\r\nMessage-ID: <1@example.com>\r\n\r\n{not json}\r\n"


@pytest.fixture
def inbox(tmp_path: Path) -> Inbox:
    return Inbox(tmp_path / "inbox")


def test_what_goes_in_comes_out(inbox: Inbox) -> None:
    """A mail is read with the same envelope and bytes, and with its decoded subject."""
    mail_id = inbox.add("ada@example.com", ["bob@example.com", "eve@example.com"], RAW)

    received = inbox.get(mail_id)

    assert received is not None
    assert (received.envelope_from, received.recipients) == (
        "ada@example.com",
        ("bob@example.com", "eve@example.com"),
    )
    assert received.raw == RAW
    assert (received.subject, received.message_id) == ("Grüße", "<1@example.com>")
    assert received.parsed is received.parsed


def test_a_mail_without_headers_has_no_subject(inbox: Inbox) -> None:
    """A mail without headers can be shown."""
    received = inbox.get(inbox.add("", ["bob@example.com"], b"\r\nhello\r\n"))

    assert received is not None
    assert (received.subject, received.message_id) == ("", "")


def test_the_newest_come_first(inbox: Inbox) -> None:
    """`latest()` returns the newest mails first."""
    ids = [inbox.add("ada@example.com", ["bob@example.com"], RAW) for _ in range(3)]

    assert [mail.id for mail in inbox.latest(2)] == [ids[2], ids[1]]


def test_an_empty_inbox(inbox: Inbox) -> None:
    """An inbox without mail, or without a folder, is empty and no error."""
    assert (inbox.latest(), inbox.count()) == ([], 0)
    inbox.clear()


def test_clear(inbox: Inbox) -> None:
    """`clear()` removes all mails."""
    mail_id = inbox.add("ada@example.com", ["bob@example.com"], RAW)
    inbox.clear()

    assert (inbox.count(), inbox.get(mail_id)) == (0, None)


def test_a_mail_that_is_being_written_is_not_there_yet(inbox: Inbox) -> None:
    """A mail that is only partly written is not listed."""
    inbox.add("ada@example.com", ["bob@example.com"], RAW)
    (inbox.directory / "20261120T120000000000-00000000.part").write_bytes(b"{")

    assert inbox.count() == len(inbox.latest()) == 1


@pytest.mark.parametrize(
    "mail_id", ["", "nonsense", "../secret", "20261120T120000000000-00000000/../../secret"]
)
def test_an_id_is_no_path(inbox: Inbox, mail_id: str) -> None:
    """An id that is none, even one with a path, finds nothing."""
    inbox.directory.mkdir()
    (inbox.directory.parent / "secret.mail").write_bytes(b"{}\n")

    assert inbox.get(mail_id) is None
