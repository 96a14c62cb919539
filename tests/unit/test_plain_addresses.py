"""Plain addresses are checked by their domain, with the result of a check as a whole."""

from collections.abc import Callable

import pytest
from email_validator import EmailNotValidError
from hypothesis import example, given
from hypothesis import strategies as st

from mailer.message import addresses

_letters = st.sampled_from("aAzZ09_+-.'!é@ \"\\[]ß")
_locals = st.one_of(
    st.text(_letters, max_size=70),
    st.from_regex(r"[a-z0-9_+-]{1,66}(\.[a-z0-9_+-]{1,9}){0,3}", fullmatch=True),
    st.sampled_from(["abuse", "postmaster", "info", "a" * 64, "a" * 65, "", "a..b", ".a", "a."]),
)
_labels = st.one_of(
    st.text(st.sampled_from("abcXYZ019-é_"), max_size=64),
    st.sampled_from(["example", "xn--bcher-kva", "com", "test", "local", "localhost", "invalid"]),
)
_domains = st.lists(_labels, max_size=5).map(".".join)


def result(check: Callable[[str], str], email: str) -> str:
    try:
        return check(email)
    except EmailNotValidError as error:
        return f"refused: {error}"


@given(_locals, _domains)
@example("ada", "Example.COM")
@example("ada", "office.local")
@example("Postmaster", "example.com")
@example("ada", "xn--bcher-kva.example")
@example("ada", "a.xn--" + "a" * 56 + "0a.com")
@example("a" * 64, "b." * 93 + "com")
def test_the_result_is_that_of_email_validator(local: str, domain: str) -> None:
    """The short way of plain addresses accepts, normalises and refuses as email-validator does."""
    email = f"{local}@{domain}"

    expected = result(addresses._validated.__wrapped__, email)
    assert result(addresses._normalised, email) == expected


@pytest.mark.parametrize(
    "email", ["ada@example.com", "a.b+c_d-e@example.com", "a" * 64 + "@mail.example.com"]
)
def test_the_short_way_is_taken(email: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the domain of a plain address is checked, once for all its addresses."""
    checked: list[str] = []

    def note(given: str) -> str:
        checked.append(given)
        return given

    addresses._normalised_domain.cache_clear()
    monkeypatch.setattr(addresses, "_validated", note)
    assert addresses._normalised(email) == addresses._normalised(email) == email
    addresses._normalised_domain.cache_clear()

    assert checked == [f"a@{email.rpartition('@')[2]}"]
