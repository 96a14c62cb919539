"""The fuzzed functions, their corpus and a dictionary."""

from collections.abc import Callable, Mapping
from pathlib import Path

from tests.fuzz.configuration import configure
from tests.fuzz.replies import converse, hear
from tests.fuzz.serialiser import serialise

Target = Callable[[bytes], None]

#: Any exception is a find.
TARGETS: Mapping[str, Target] = {
    "serialise": serialise,
    "hear": hear,
    "converse": converse,
    "configure": configure,
}

#: Inputs that were interesting, in a folder for each target.
CORPUS = Path(__file__).with_name("corpus")

#: Words that random bytes hardly ever form.
WORDS = [
    *(
        b"\r\n",
        b"\n",
        b"\r",
        b"\r\n.\r\n",
        b"\n.\n",
        b"\r\n\r\n",
        b"\x00",
        b"\x1b[",
        b"\xe2\x80\xa8",
        b"\xc2\x85",
        b".",
    ),
    *(
        b"=?utf-8?q?",
        b"?=",
        b"=0D=0A",
        b'"',
        b"\\",
        b"<",
        b">",
        b"@",
        b"@example.com",
        b",",
        b";",
        b": ",
        b"Bcc: eve@example.com",
    ),
    *(
        b"multipart/mixed",
        b"message/rfc822",
        b"text/plain; charset=x",
        b'; boundary="=_mail"',
        b"--=_mail",
        b"BODY=8BITMIME",
    ),
    *(
        b"220 ",
        b"250-",
        b"250 ",
        b"334 ",
        b"354 ",
        b"421 ",
        b"450 4.7.1 ",
        b"550 5.1.1 ",
        b"PIPELINING",
        b"AUTH PLAIN",
        b"SIZE ",
    ),
    *(
        b"smtp://",
        b"socks5://",
        b"redis://",
        b"sqlite:///",
        b'{"name": ',
        b"[",
        b"]",
        b"True",
        b"-1",
        b"1e999",
        b"14/second",
    ),
]
