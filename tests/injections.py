"""Payloads that must not get into a header or an SMTP command, and all arguments to try."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import flask_mail

from mailer import Address, Attachment

#: Characters that end a line for some program, hide the text after them, or are surrogates.
FORBIDDEN = [
    "\r",
    "\n",
    "\r\n",
    "\r\n ",
    "\x00",
    "\t",
    "\x0b",
    "\x0c",
    "\x1b",
    "\x1c",
    "\x7f",
    "\x85",
    "\x9b",
    "\u2028",
    "\u2029",
    "\ud800",
]


def injected(before: str = "a", after: str = "Bcc: eve@example.com") -> list[str]:
    """Return texts with a forbidden character in the middle, or a line break at an end."""
    return [
        *(f"{before}{forbidden}{after}" for forbidden in FORBIDDEN),
        f"\n{before}",
        f"{before}\n",
    ]


# --- payloads -----------------------------------------------------------------------------------

_NEXT_MAIL = (
    "MAIL FROM:<eve@example.com>\r\nRCPT TO:<bob@example.com>\r\nDATA\r\n"
    "Subject: smuggled\r\n\r\nsmuggled"
)
#: Sequences that end a mail for some server, which would take the rest for the next mail.
SMUGGLING = [
    f"a{end}{_NEXT_MAIL}{end}"
    for end in (
        *(
            "\r\n.\r\n",
            "\n.\n",
            "\r.\r",
            "\n.\r\n",
            "\r\n.\n",
            "\r\n.\r",
            "\r.\r\n",
            "\r\n.\r\r\n",
            "\r\r\n.\r\n",
        ),
        *("\n\n.\r\n", "\r\n\x0b.\r\n", "\x85.\x85", "\u2028.\u2028"),
    )
]
#: Texts that have a line break only after decoding, normalising or truncating.
DISGUISES = [
    "=?utf-8?q?a=0D=0ABcc:_eve@example.com?=",
    "=?utf-8?b?YQ0KQmNjOiBldmVAZXhhbXBsZS5jb20=?=",
    "=?us-ascii?q?=00?=",
    "a%0d%0aBcc:%20eve@example.com",
    "a\\r\\nBcc: eve@example.com",
    "a\u560d\u560aBcc: eve@example.com",  # CR and LF in their lower octets
    "a\uff0a\u010d\u010aBcc: eve@example.com",
    "a\ufeff\u200b\u202e\u2066Bcc: eve@example.com",
    "\uff1ceve\uff20example.com\uff1e",  # < @ > by normalisation
    "\ufe64eve\ufe6bexample.com\ufe65",
    "eve\u2025example.com",
]
#: Texts that end an address, or continue after it.
BREAKOUTS = [
    "ada@example.com> SIZE=1",
    "ada@example.com> NOTIFY=NEVER ORCPT=rfc822;eve@example.com",
    "ada@example.com>,<eve@example.com",
    "ada@example.com, eve@example.com",
    "ada@example.com;eve@example.com",
    "<ada@example.com> <eve@example.com>",
    "@relay.example,@relay.example:ada@example.com",
    '"ada eve"@example.com',
    '"ada>eve"@example.com',
    '"ada\\\r\neve"@example.com',
    '"ada@example.com"@example.org',
    "ada(comment)@example.com",
    "ada@[127.0.0.1]",
    "ada@[IPv6:::1]",
    "ada@b\u00fccher.example",
    "ada@example\u3002com",
    "ada@example.com\uff1e",
    "\u00e4da@example.com",
    "ada@xn--bcher-kva.example",
    "\u2100da@example.com",
    "a" * 400 + "@example.com",
    "ada@" + "a." * 200 + "com",
]
#: Texts that end a name, a quoted word or a parameter, or that exceed a line.
CLUTTER = [
    *(
        '"',
        "\\",
        '\\"',
        '";',
        '"; Bcc: eve@example.com',
        "(",
        ")",
        "<",
        ">",
        "<>",
        ",",
        ";",
        ":",
        "a:b",
        "Bcc: eve@example.com",
        ".",
    ),
    *(
        "..",
        "--",
        "=_",
        "\t",
        " ",
        "  a  ",
        "",
        "''",
        "utf-8''%0D%0A",
        'a"; filename="b',
        "a; name=b",
        "a*0=b",
        "x" * 3000,
        "x " * 1500,
    ),
    *("ä" * 1500, "🦊" * 700, "e\u0301" * 500, " " * 2000),
]
PAYLOADS = [*injected(), *SMUGGLING, *DISGUISES, *BREAKOUTS, *CLUTTER]


# --- arguments ----------------------------------------------------------------------------------

Changes = Callable[[str], dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Way:
    """An argument that ends up in a header or an SMTP command, and the beginning of its error."""

    name: str
    door: Literal["send_email", "enqueue"]
    changes: Changes
    refusal: str
    folds: bool = False  # a line break before a blank is a fold, and no second line


def attached(**changes: Any) -> dict[str, Any]:
    return {
        "attachments": [flask_mail.Attachment(**{"filename": "a.pdf", "data": b"%PDF", **changes})]
    }


def _with_file(filename: str = "a", **said: Any) -> dict[str, Any]:
    return {"attachments": [Attachment(filename, b"", **said)]}


_OF_SEND_EMAIL: list[tuple[str, Changes, str]] = [
    ("subject", lambda text: {"subject": text}, "subject: "),
    ("name in to", lambda text: {"to": f"{text} <ada@example.com>"}, "to: "),
    ("quoted name in to", lambda text: {"to": [f'"{text}" <ada@example.com>']}, "to: "),
    ("pair in to", lambda text: {"to": [(text, "ada@example.com")]}, "to: "),
    ("object in to", lambda text: {"to": Address("ada@example.com", text)}, "to: "),
    ("address in to", lambda text: {"to": f"{text}@example.com"}, "to: "),
    ("address of an object in to", lambda text: {"to": Address(f"ada@example.com{text}")}, "to: "),
    ("name in cc", lambda text: {"cc": [(text, "ada@example.com")]}, "cc: "),
    ("address in cc", lambda text: {"cc": f"ada@example.com{text}"}, "cc: "),
    ("name in bcc", lambda text: {"bcc": [(text, "ada@example.com")]}, "bcc: "),
    ("address in bcc", lambda text: {"bcc": f"ada@example.com{text}"}, "bcc: "),
    ("name in reply_to", lambda text: {"reply_to": (text, "ada@example.com")}, "reply_to: "),
    ("address in reply_to", lambda text: {"reply_to": f"ada@example.com{text}"}, "reply_to: "),
    ("name in sender", lambda text: {"sender": (text, "ada@example.com")}, "sender: "),
    ("address in sender", lambda text: {"sender": f"ada@example.com{text}"}, "sender: "),
    ("name of a header", lambda text: {"headers": {text: "value"}}, "headers: "),
    (
        "value of a header",
        lambda text: {"headers": {"X-Campaign": text}},
        "headers['X-Campaign']: ",
    ),
    (
        "mailbox in Sender",
        lambda text: {"headers": {"Sender": f"{text} <ada@example.com>"}},
        "headers['Sender']: ",
    ),
    ("tag", lambda text: {"tags": [text]}, "tags: "),
    ("key", lambda text: {"idempotency_key": text}, "idempotency_key: "),
    ("name of a file", _with_file, "attachment "),
    (
        "type of a file",
        lambda text: _with_file(content_type=f"text/plain{text}"),
        "attachment 'a': ",
    ),
    ("content_id", lambda text: _with_file(content_id=text), "attachment 'a': content_id "),
    (
        "name of a file's header",
        lambda text: _with_file(headers=((text, "b"),)),
        "attachment 'a': ",
    ),
    ("header of a file", lambda text: _with_file(headers=(("X", text),)), "attachment 'a': X"),
]
_OF_A_MESSAGE: list[tuple[str, Changes, str]] = [
    ("subject", lambda text: {"subject": text}, "subject: "),
    ("recipient", lambda text: {"recipients": [f"{text} <ada@example.com>"]}, "recipients: "),
    ("cc", lambda text: {"cc": [(text, "ada@example.com")]}, "cc: "),
    ("bcc", lambda text: {"bcc": [f"ada@example.com{text}"]}, "bcc: "),
    ("reply_to", lambda text: {"reply_to": f"{text} <ada@example.com>"}, "reply_to: "),
    ("sender", lambda text: {"sender": f"{text} <ada@example.com>"}, "sender: "),
    ("name of a header", lambda text: {"extra_headers": {text: "value"}}, "headers: "),
    ("header", lambda text: {"extra_headers": {"X-Campaign": text}}, "headers['X-Campaign']: "),
    (
        "Sender",
        lambda text: {"extra_headers": {"Sender": f"ada@example.com{text}"}},
        "headers['Sender']: ",
    ),
    ("msgId", lambda text: {"msgId": f"<1@example.com>{text}"}, "msgId: "),
    ("mail_options", lambda text: {"mail_options": [f"SIZE=1{text}"]}, "mail_options: "),
    ("rcpt_options", lambda text: {"rcpt_options": [f"NOTIFY=NEVER{text}"]}, "rcpt_options: "),
    ("type of an alternative", lambda text: {"alts": {f"calendar{text}": "x"}}, "alts: "),
    ("name of a file", lambda text: attached(filename=text), "attachment "),
    (
        "type of a file",
        lambda text: attached(content_type=f"text/plain{text}"),
        "attachment 'a.pdf': ",
    ),
    (
        "disposition",
        lambda text: attached(disposition=f"inline{text}"),
        "attachment 'a.pdf': dispo",
    ),
    ("name of a file's header", lambda text: attached(headers={text: "b"}), "attachment 'a.pdf': "),
    ("header of a file", lambda text: attached(headers={"X-A": text}), "attachment 'a.pdf': X-A: "),
    (
        "Content-ID",
        lambda text: attached(headers={"Content-Id": text}),
        "attachment 'a.pdf': content_id",
    ),
]
WAYS_IN = [
    *(Way(name, "send_email", changes, refusal) for name, changes, refusal in _OF_SEND_EMAIL),
    *(
        Way(f"message's {name}", "enqueue", changes, refusal, folds=name == "subject")
        for name, changes, refusal in _OF_A_MESSAGE
    ),
]
