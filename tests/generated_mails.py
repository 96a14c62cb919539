"""Mails that can be said: in many scripts, and as strange as only programs write them."""

from typing import Any

from hypothesis import strategies as st

from mailer.message import Address, Attachment, Message

NOW = 1_790_000_000.0

SCRIPTS = (
    "äßñœŁ ΑΩ Жя אב نص हिन्दी ไทย"
    " 漢字 かな 한국 ქართ አማ 😀👩‍🚀🇺🇳 e\u0301 \u00a0\u00ad\u200b\u200f\ufeff"
)
ASCII = "ab YZ 09 ()<>[]{}:;@\\,.\"'=?_%#&+-/*~|^$!` "
CONTROLS = "\x01\x07\x08\x0b\x0c\x1b\x1c\x1e\x7f\x85\u2028\u2029"
CALENDARS = [
    "calendar",
    "text/calendar; method=REQUEST",
    'text/calendar;method=CANCEL; charset="us-ascii";name="a; b.ics"',
]
NAMES = [
    "CON.pdf",
    "a/b\\c.txt",
    ".",
    "..",
    '"',
    "'",
    "%41.txt",
    "a%",
    "=?utf-8?q?x?=.txt",
    "a;b=c.csv",
    " a ",
    "ü",
    "報告" * 30,
]


def texts(signs: str, **letters: Any) -> st.SearchStrategy[str]:
    """In many scripts, and some of them as long as only a program makes them."""
    plain, any_script = st.sampled_from(ASCII + signs), st.sampled_from(ASCII + SCRIPTS + signs)
    short = st.text(plain) | st.text(any_script) | st.text(st.characters(codec="utf-8", **letters))
    return short | st.builds(lambda text, times: (text * times)[:3000], short, st.integers(2, 1000))


headers = texts("", exclude_categories=["Cc", "Zl", "Zp"])
bodies = texts("\r\n\n\n.\t", exclude_characters="\x00") | texts(
    "\r\n\n\n" + CONTROLS, exclude_characters="\x00"
)
emails = st.from_regex(
    r"[a-z0-9]([a-z0-9+_-]{0,20}[a-z0-9])?@[a-z][a-z0-9]{0,20}\.example", fullmatch=True
)
addresses = st.builds(Address, emails, headers)
several = st.lists(addresses, max_size=4).map(tuple)
files = st.builds(
    Attachment,
    filename=st.none() | headers | st.sampled_from(NAMES),
    data=st.binary(max_size=200),
    content_type=st.sampled_from(
        ["image/png", "application/pdf", "text/csv", "text/calendar; method=REQUEST"]
    ),
    content_id=st.none() | st.from_regex(r"[A-Za-z0-9._@+-]{1,30}", fullmatch=True),
    headers=st.lists(st.tuples(st.just("X-Origin"), headers), max_size=1).map(tuple),
)
mails = st.builds(
    Message,
    id=st.just("01a0c4506c00c123b665648374ce97c1"),
    message_id=st.just("<01a0c4506c00c123b665648374ce97c1@example.com>"),
    created_at=st.just(NOW),
    sender=addresses,
    subject=headers,
    text=bodies,
    html=st.none() | bodies,
    to=several,
    cc=several,
    reply_to=several,
    headers=st.lists(
        st.tuples(st.from_regex(r"X-[A-Za-z0-9-]{1,62}", fullmatch=True), headers), max_size=3
    ).map(tuple),
    alternatives=st.lists(
        st.tuples(st.sampled_from([*CALENDARS, "text/x-amp-html"]), bodies), max_size=2
    ).map(tuple),
    attachments=st.lists(files, max_size=3).map(tuple)
    | st.lists(files, min_size=8, max_size=12).map(tuple),
)
