"""The mails of all contenders: about 1 KB of text and 1 KB of html, to one recipient.

Only the standard library is imported, since programs of other virtual environments use this module
too.
"""

from collections.abc import Iterator
from email.message import EmailMessage
from email.policy import SMTP

SENDER = "shop@example.com"
RECIPIENT = "ada@example.com"
SUBJECT = "Your order 42 is on its way"

_LINE = "Thank you for your order. It left our house this morning and will be with you soon.\n"
_ITEM = "<li>One teapot of blue china, wrapped with care and insured on its way to you</li>\n"

TEXT = "Dear Ada,\n\n" + 11 * _LINE + "\nYours, the shop\n"
HTML = (
    f"<!doctype html>\n<html><body>\n<h1>Dear Ada</h1>\n<ul>\n{11 * _ITEM}</ul>\n</body></html>\n"
)

#: The personalised mail: its templates, and what all recipients have in common.
TEMPLATE = "mail/order"
ITEMS = ["One teapot of blue china, wrapped with care"] * 11


def recipients(count: int) -> Iterator[tuple[str, dict[str, object]]]:
    """Yield the recipients of personalised mails, each with a context of its own."""
    for number in range(count):
        link = f"https://shop.example.com/readers/{number}"
        context = {"name": f"Reader {number}", "number": number, "link": link}
        yield f"reader{number}@mail{number % 50}.example.com", context


def as_bytes() -> bytes:
    """Return the mail with its headers, for programs that take only bytes."""
    mail = EmailMessage(policy=SMTP)
    mail["Subject"], mail["From"], mail["To"] = SUBJECT, SENDER, RECIPIENT
    mail.set_content(TEXT)
    mail.add_alternative(HTML, subtype="html")
    return mail.as_bytes()
