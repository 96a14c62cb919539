"""Time to serialise and sign a mail on one core: `python -m bench.mime`.

Each figure is the best of several rounds, since other work of the machine only makes it worse.
Compare figures of the same run.
"""

import timeit
from collections.abc import Callable
from functools import partial

import flask_mail
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from flask import Flask

from bench.mail import HTML, RECIPIENT, SENDER, SUBJECT, TEXT
from mailer.message import Address, Attachment, Message
from mailer.mime import Composed, WireMessage, compose, make_signer
from mailer.settings.dkim import DkimKey

ROUNDS = 7
SECONDS = 0.2  # per round


def a_mail(text: str = TEXT, html: str = HTML, *attachments: Attachment) -> Message:
    return Message(
        id="01a0c4506c00c123b665648374ce97c1",
        message_id="<01a0c4506c00c123b665648374ce97c1@example.com>",
        created_at=1_790_000_000.0,
        sender=Address(SENDER, "The shop"),
        subject=SUBJECT,
        text=text,
        html=html,
        to=(Address(RECIPIENT, "Ada"),),
        attachments=attachments,
    )


def main() -> None:
    print(f"{'':58}{'microseconds':>14}{'per second':>11}")
    plain, composed = a_mail(), compose(a_mail())
    german = a_mail(TEXT.replace("ou", "ü"), HTML.replace("ou", "ü"))
    japanese = a_mail("".join(map(chr, range(0x3041, 0x3091))) * 4, HTML)
    with Flask("bench").app_context() as context:
        flask_mail.Mail(context.app)
        wire = WireMessage(plain, RECIPIENT, composed)
        theirs = report("Flask-Mail: as_bytes()", lambda: flask_mail.Message.as_bytes(wire))
    ours = report("compose(): 1 KB of text, 1 KB of html", lambda: compose(plain))
    print(f"{'':4}{theirs / ours:.0f} times as fast as Flask-Mail")
    for language, mail in (("German", german), ("Japanese", japanese)):
        report(f"compose(): {language}, 8bit", partial(compose, mail))
        report(
            f"compose(): {language}, 8bit and 7bit",
            partial(in_both_forms, mail),
        )
    file = Attachment("report.pdf", bytes(range(256)) * 400)
    report("compose(): with a file of 100 KB", lambda: compose(a_mail(TEXT, HTML, file)))
    report("WireMessage()", lambda: WireMessage(plain, RECIPIENT, composed))
    report("WireMessage() and its properties", lambda: ask(plain, composed))
    for name, pem in (("RSA of 2048 bits", rsa_pem()), ("Ed25519", ed25519_pem())):
        signer = make_signer([DkimKey(domain="example.com", selector="bench", key=pem.decode())])
        report(f"compose() and sign with {name}", partial(compose, plain, signer))


def in_both_forms(message: Message) -> None:
    compose(message).form(eightbit=False)


def ask(message: Message, composed: Composed) -> None:
    mail = WireMessage(message, RECIPIENT, composed)
    mail.needs_smtputf8, mail.envelope_from, mail.size(True), mail.is_8bit(True), mail.wire(True)


def rsa_pem() -> bytes:
    return generate_private_key(65537, 2048).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    )


def ed25519_pem() -> bytes:
    return Ed25519PrivateKey.generate().private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    )


def report(title: str, work: Callable[[], object]) -> float:
    """Measure, print and return the seconds of a call."""
    times = max(1, int(SECONDS / timeit.timeit(work, number=10) * 10))
    seconds = min(timeit.repeat(work, number=times, repeat=ROUNDS)) / times
    print(f"{title:58}{1e6 * seconds:14.2f}{1 / seconds:11,.0f}")
    return seconds


if __name__ == "__main__":
    main()
