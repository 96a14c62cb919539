"""Parts of a `flask_mail.Message`, checked and made into those of a mail of ours."""

import re
from collections.abc import Iterable, Mapping

import flask_mail

from mailer.content import text_from_html
from mailer.errors import InvalidAttachment, InvalidHeader, InvalidMail
from mailer.intake.arguments import check_iterable, check_year
from mailer.message import Attachment, check_body, check_text, evaluate, is_file_type

_MESSAGE_ID = re.compile(r"<[!-;=?-~]{1,400}@[!-;=?-~]{1,400}>")
# A line break before the blanks of the next line (RFC 5322), with the blanks before it.
_FOLD = re.compile(r"(?<![ \t])[ \t]*\r\n[ \t]+")
_SMTP_OPTION = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]*(=[!-<>-~]+)?")


def read_subject(mail: flask_mail.Message) -> str:
    """Return the subject, with the lines of a folded one joined. Refuse other line breaks."""
    subject = evaluate(mail.subject) or ""
    if isinstance(subject, str) and all(line.strip() for line in subject.split("\r\n")):
        subject = _FOLD.sub(" ", subject)
    return check_text(subject, field="subject", quoted=False)


def read_bodies(mail: flask_mail.Message) -> tuple[str, str | None, tuple[tuple[str, str], ...]]:
    """Return text, html, and the alternatives beside them."""
    alternatives = dict(mail.alts or {})
    html = alternatives.pop("html", None)
    if html is not None:
        html = check_body(html, field="html")
    text = (
        check_body(mail.body, field="body")
        if mail.body is not None
        else text_from_html(html)
        if html
        else ""
    )
    return text, html, tuple(_alternative(kind, content) for kind, content in alternatives.items())


def _alternative(kind: str, content: str) -> tuple[str, str]:
    if not isinstance(kind, str) or not is_file_type(kind if "/" in kind else f"text/{kind}"):
        raise InvalidMail(
            f"alts: {kind!r} is no type of text: give one such as 'calendar' or 'text/calendar'."
        )
    return kind, check_body(content, field=f"alts[{kind!r}]")


def check_message_id(given: str) -> str:
    if not isinstance(given, str) or not _MESSAGE_ID.fullmatch(given):
        raise InvalidHeader(
            f"msgId: {given!r} is no Message-ID: keep Flask-Mail's, or give one such as"
            " '<unique@example.com>'."
        )
    return given


def check_date(given: float | None) -> float | None:
    if given is None:
        return None
    if not isinstance(given, (int, float)):
        raise InvalidMail(f"date: {given!r}: give seconds since 1970, as time.time() does.")
    return check_year(given, field="date")


def check_smtp_options(given: Iterable[str] | None, *, field: str) -> tuple[str, ...]:
    options = tuple(check_iterable(given, field=field, of="options such as 'BODY=8BITMIME'"))
    for option in options:
        if not isinstance(option, str) or not _SMTP_OPTION.fullmatch(option):
            raise InvalidMail(
                f"{field}: {option!r} is no option of SMTP: give one such as 'BODY=8BITMIME'."
            )
    return options


def convert_attachment(given: Attachment | flask_mail.Attachment) -> Attachment:
    if isinstance(given, Attachment):
        return given
    if not isinstance(given, flask_mail.Attachment):
        raise InvalidAttachment(
            "attachments: give Attachment(filename, data, content_type), not"
            f" {type(given).__name__}: `from mailer import Attachment`."
        )
    where = f"attachment {given.filename!r}"
    if not isinstance(given.headers or {}, Mapping):
        raise InvalidAttachment(
            f"{where}: headers: give a dict, not {type(given.headers).__name__}."
        )
    headers = {str(name): value for name, value in (given.headers or {}).items()}
    content_id = next(
        (
            str(headers.pop(name)).strip("<>")
            for name in list(headers)
            if name.lower() == "content-id"
        ),
        None,
    )
    data = (
        check_body(given.data, field=where, error=InvalidAttachment).encode()
        if isinstance(given.data, str)
        else given.data
    )
    return Attachment(
        given.filename,
        data,
        given.content_type,
        content_id,
        given.disposition,
        tuple(headers.items()),
    )
