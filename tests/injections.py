"""What nobody may smuggle into a header or a command of SMTP, and every way by which it could be tried."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import flask_mail

from mailer import Address, Attachment

#: Each ends a line somewhere, hides what follows, or is no character at all.
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
    """Texts with one of them in the middle, and one each with a line break at its ends."""
    return [
        *(f"{before}{forbidden}{after}" for forbidden in FORBIDDEN),
        f"\n{before}",
        f"{before}\n",
    ]


# --- payloads -----------------------------------------------------------------------------------

_NEXT_MAIL = "MAIL FROM:<eve@example.com>\r\nRCPT TO:<bob@example.com>\r\nDATA\r\nSubject: smuggled\r\n\r\nsmuggled"
#: Each is the end of a mail to some server; what follows would be the next one.
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
#: No line break in any of them, as long as nobody decodes, normalises or cuts them.
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
#: What would end an address, or follow it.
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
#: What would end a name, a quoted word, a parameter or a line of its own length.
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


# --- ways in ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Way:
    """From an argument into a header or a command of SMTP: how a text gets in, and what the error begins with."""

    name: str
    door: Literal["send_email", "enqueue"]
    changes: Callable[[str], dict[str, Any]]
    refusal: str


def attached(**changes: Any) -> dict[str, Any]:
    return {
        "attachments": [flask_mail.Attachment(**{"filename": "a.pdf", "data": b"%PDF", **changes})]
    }


def _with_file(filename: str = "a", **said: Any) -> dict[str, Any]:
    return {"attachments": [Attachment(filename, b"", **said)]}


WAYS_IN = [
    Way("subject", "send_email", lambda text: {"subject": text}, "subject: "),
    Way("name in to", "send_email", lambda text: {"to": f"{text} <ada@example.com>"}, "to: "),
    Way("quoted name in to", "send_email", lambda text: {"to": [f'"{text}" <ada@example.com>']}, "to: "),
    Way("pair in to", "send_email", lambda text: {"to": [(text, "ada@example.com")]}, "to: "),
    Way("object in to", "send_email", lambda text: {"to": Address("ada@example.com", text)}, "to: "),
    Way("address in to", "send_email", lambda text: {"to": f"{text}@example.com"}, "to: "),
    Way("address of an object in to", "send_email", lambda text: {"to": Address(f"ada@example.com{text}")}, "to: "),
    Way("name in cc", "send_email", lambda text: {"cc": [(text, "ada@example.com")]}, "cc: "),
    Way("address in cc", "send_email", lambda text: {"cc": f"ada@example.com{text}"}, "cc: "),
    Way("name in bcc", "send_email", lambda text: {"bcc": [(text, "ada@example.com")]}, "bcc: "),
    Way("address in bcc", "send_email", lambda text: {"bcc": f"ada@example.com{text}"}, "bcc: "),
    Way("name in reply_to", "send_email", lambda text: {"reply_to": (text, "ada@example.com")}, "reply_to: "),
    Way("address in reply_to", "send_email", lambda text: {"reply_to": f"ada@example.com{text}"}, "reply_to: "),
    Way("name in sender", "send_email", lambda text: {"sender": (text, "ada@example.com")}, "sender: "),
    Way("address in sender", "send_email", lambda text: {"sender": f"ada@example.com{text}"}, "sender: "),
    Way("name of a header", "send_email", lambda text: {"headers": {text: "value"}}, "headers: "),
    Way("value of a header", "send_email", lambda text: {"headers": {"X-Campaign": text}}, "headers['X-Campaign']: "),
    Way("tag", "send_email", lambda text: {"tags": [text]}, "tags: "),
    Way("key", "send_email", lambda text: {"idempotency_key": text}, "idempotency_key: "),
    Way("name of a file", "send_email", _with_file, "attachment "),
    Way("type of a file", "send_email", lambda text: _with_file(content_type=f"text/plain{text}"), "attachment 'a': "),
    Way("content_id", "send_email", lambda text: _with_file(content_id=text), "attachment 'a': content_id "),
    Way("name of a file's header", "send_email", lambda text: _with_file(headers=((text, "b"),)), "attachment 'a': "),
    Way("header of a file", "send_email", lambda text: _with_file(headers=(("X", text),)), "attachment 'a': X"),
    Way("message's subject", "enqueue", lambda text: {"subject": text}, "subject: "),
    Way("message's recipient", "enqueue", lambda text: {"recipients": [f"{text} <ada@example.com>"]}, "recipients: "),
    Way("message's cc", "enqueue", lambda text: {"cc": [(text, "ada@example.com")]}, "cc: "),
    Way("message's bcc", "enqueue", lambda text: {"bcc": [f"ada@example.com{text}"]}, "bcc: "),
    Way("message's reply_to", "enqueue", lambda text: {"reply_to": f"{text} <ada@example.com>"}, "reply_to: "),
    Way("message's sender", "enqueue", lambda text: {"sender": f"{text} <ada@example.com>"}, "sender: "),
    Way("message's name of a header", "enqueue", lambda text: {"extra_headers": {text: "value"}}, "headers: "),
    Way("message's header", "enqueue", lambda text: {"extra_headers": {"X-Campaign": text}}, "headers['X-Campaign']: "),
    Way("msgId", "enqueue", lambda text: {"msgId": f"<1@example.com>{text}"}, "msgId: "),
    Way("mail_options", "enqueue", lambda text: {"mail_options": [f"SIZE=1{text}"]}, "mail_options: "),
    Way("rcpt_options", "enqueue", lambda text: {"rcpt_options": [f"NOTIFY=NEVER{text}"]}, "rcpt_options: "),
    Way("type of an alternative", "enqueue", lambda text: {"alts": {f"calendar{text}": "x"}}, "alts: "),
    Way("message's name of a file", "enqueue", lambda text: attached(filename=text), "attachment "),
    Way("message's type of a file", "enqueue", lambda text: attached(content_type=f"text/plain{text}"), "attachment 'a.pdf': "),
    Way("message's disposition", "enqueue", lambda text: attached(disposition=f"inline{text}"), "attachment 'a.pdf': dispo"),
    Way("message's name of a file's header", "enqueue", lambda text: attached(headers={text: "b"}), "attachment 'a.pdf': "),
    Way("message's header of a file", "enqueue", lambda text: attached(headers={"X-A": text}), "attachment 'a.pdf': X-A: "),
    Way("message's Content-ID", "enqueue", lambda text: attached(headers={"Content-Id": text}), "attachment 'a.pdf': content_id"),
]  # fmt: skip
