"""The rows of a bulk send: what applications give, and what of it is refused."""

import json
import pickle
import sqlite3
from collections import namedtuple
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import create_engine, literal, select
from sqlalchemy.engine import Result

from mailer import Address, BadRow, InvalidMail, UnknownMail
from tests.bulk_calls import contexts, import_rows, recipients, row, some_rows, states
from tests.services.databases import sqlite_only
from tests.shop import rows, store_of

ADA = "ada@example.com"
Named = namedtuple("Named", "email context")  # noqa: PYI024 -- as in an application


def one_row_of_sqlalchemy() -> Any:
    statement: Any = select(literal(ADA).label("email"), literal("Ada").label("name"))
    with create_engine("sqlite://").connect() as connection:
        found: Result[Any] = connection.execute(statement)
        return found.one()


def one_row_of_sqlite() -> sqlite3.Row:
    connection = sqlite3.connect(":memory:")
    connection.row_factory = sqlite3.Row
    found: sqlite3.Row = connection.execute(f"SELECT '{ADA}' AS email, 'Ada' AS name").fetchone()
    connection.close()
    return found


@pytest.mark.parametrize(
    ("given", "own"),
    [
        ((ADA, {"name": "Ada"}), {"context": {"name": "Ada"}}),
        ([ADA, {"name": "Ada"}], {"context": {"name": "Ada"}}),
        (Named(ADA, {"name": "Ada"}), {"context": {"name": "Ada"}}),
        ({"email": ADA, "name": "Ada"}, {"context": {"name": "Ada"}}),
        ({"address": ADA, "name": "Ada"}, {"context": {"name": "Ada"}}),
        ({"address": "12 Main St", "email": ADA}, {"context": {"address": "12 Main St"}}),
        (one_row_of_sqlalchemy(), {"context": {"name": "Ada"}}),
        (one_row_of_sqlite(), {"context": {"name": "Ada"}}),
        (ADA, {}),
        ((ADA, None), {}),
        (f"Ada <{ADA}>", {"name": "Ada"}),
        (Address(ADA, "Ada"), {"name": "Ada"}),
        ((("Ada", ADA), {"a": 1}), {"context": {"a": 1}, "name": "Ada"}),
        ((f"Ada <{ADA}>", {"recipient_name": "A. L."}), {"name": "A. L."}),
        (
            (ADA, {"locale": "de", "headers": {"X-A": "1"}}),
            {"locale": "de", "headers": [["X-A", "1"]]},
        ),
        (
            (ADA, {"a": [1, 2.5, True, None, {"b": "ß\x00\n"}]}),
            {"context": {"a": [1, 2.5, True, None, {"b": "ß\x00\n"}]}},
        ),
    ],
)
def test_what_is_a_row(shop: Flask, given: object, own: dict[str, Any]) -> None:
    """Tuples, dicts, rows of databases and addresses are recipients with a context."""
    progress = import_rows([given]).progress()

    assert json.loads(contexts(shop)[0]) == own
    assert recipients(shop) == [(1, ADA)]
    assert (progress.accepted, progress.refused, progress.duplicates) == (1, 0, 0)


@dataclass
class User:
    email: str


def deep(levels: int) -> list[Any]:
    return [deep(levels - 1)] if levels else []


@pytest.mark.parametrize(
    ("given", "address", "reason"),
    [
        (User(ADA), "", "Give (address, context) or a dict with the column email, not a User."),
        (None, "", "not a NoneType."),
        (42, "", "not a int."),
        ((ADA, "Ada"), "", "with the column email, not a tuple of str, str."),
        ((ADA, {}, {}), "", "not a tuple of str, dict, dict."),
        (
            {"mail": ADA, "name": "Ada"},
            "",
            "no column email or address or recipient, but mail, name.",
        ),
        ({1: 2}, "", "but 1."),
        ({"email": None}, "None", "recipient: None is no address"),
        ({"email": 42}, "42", "recipient: 42 is no address"),
        ((User(ADA), {}), "User(email='ada@example.com')", "give its .email instead."),
        ("", "", "recipient: '' is not a usable address"),
        ("ada@", "ada@", "recipient: 'ada@' is not a usable address"),
        ("ada@example.com,bob@example.com", "ada@example.com,bob@example.com", "as a list."),
        ("ada\nBcc: bob@example.com", "ada Bcc: bob@example.com", "contains '\\n'"),
        ("ada\x00@example.com", "ada @example.com", "contains '\\x00'"),
        ("\ud800@example.com", "@example.com", "contains '\\ud800'"),
        (f"A\nB <{ADA}>", f"A B <{ADA}>", "contains '\\n'"),
        ("a" * 1000 + "@example.com", "a" * 200 + "…", "is not a usable address"),
        ((ADA, {"recipient_name": "A\r\nBcc: b@example.com"}), ADA, "recipient_name: 'A\\r\\nBcc:"),
        ((ADA, {"recipient_name": "\ud800"}), ADA, "recipient_name:"),
        ((ADA, {"recipient_name": 42}), ADA, "recipient_name: give a str, not int."),
        (
            (ADA, {"recipient_name": "a" * 5000}),
            ADA,
            "5000 characters, MAILER_MAX_HEADER allows 4000.",
        ),
        ((ADA, {"headers": {"X-A": "a" * 5000}}), ADA, "X-A: 5000 characters, MAILER_MAX_HEADER"),
        ((ADA, {"headers": {"X-A": "a\nb"}}), ADA, "headers['X-A']: it contains '\\n'"),
        ((ADA, {"headers": {"Subject": "a"}}), ADA, "headers: 'Subject' is written by Mailer"),
        ((ADA, {"headers": "X-A: 1"}), ADA, "headers: 'X-A: 1': give a dict"),
        ((ADA, {"locale": 42}), ADA, "locale: '42': give a text such as 'de' or 'pt_BR'."),
        ((ADA, {"locale": "d" * 36}), ADA, "give a text such as 'de' or 'pt_BR'."),
        ((ADA, {"locale": "\ud800"}), ADA, "half a character"),
        ((ADA, {"a": "\ud800"}), ADA, "half a character"),
        ((ADA, {"\ud800": 1}), ADA, "half a character"),
        ((ADA, {1: 2}), ADA, "context: the key 1 is not a str"),
        ((ADA, {"a": float("nan")}), ADA, "context['a'] is not JSON, but nan"),
        ((ADA, {"a": float("inf")}), ADA, "context['a'] is not JSON, but inf"),
        ((ADA, {"a": 10**5000}), ADA, "context['a'] is not JSON, but too long"),
        ((ADA, {"a": date(2026, 1, 2)}), ADA, "context['a'] is not JSON, but date"),
        ((ADA, {"a": b"bytes"}), ADA, "context['a'] is not JSON, but bytes"),
        ((ADA, {"a": deep(200)}), ADA, "nested too deeply: 100 levels"),
        ((ADA, {"a": deep(900)}), ADA, "nested too deeply: 100 levels"),
    ],
)
def test_what_is_no_row(shop: Flask, given: object, address: str, reason: str) -> None:
    """A row that can't be used is reported with number, address and reason; others are sent."""
    bulk = import_rows([row(1), given, row(2)])
    progress, [error] = bulk.progress(), [*bulk.errors()]

    assert (error.row, error.address) == (2, address)
    assert reason in error.reason
    assert (progress.imported, progress.accepted, progress.refused) == (3, 2, 1)
    assert [one.row for one in bulk.recipients()] == [1, 3]


def test_a_large_context(shop: Flask) -> None:
    """Contexts of a megabyte are stored; one that makes a mail too large is a refused row."""
    shop_limit = 30_000_000
    texts = ["x" * 1_000_000] * 9 + ["x" * shop_limit]
    bulk = import_rows((row(number)[0], {"a": text}) for number, text in enumerate(texts))

    progress, [error] = bulk.progress(), [*bulk.errors()]
    assert (progress.accepted, progress.refused) == (9, 1)
    assert "MAILER_MAX_SIZE allows" in error.reason


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (ADA, "not str."),
        (b"ada", "not bytes."),
        ({ADA: {}}, "not dict."),
        (None, "not NoneType."),
        (42, "not int."),
    ],
)
@sqlite_only
def test_what_are_no_recipients(shop: Flask, given: object, words: str) -> None:
    """Something else than an iterable of rows is refused at the call, and nothing is stored."""
    with pytest.raises(InvalidMail, match=words):
        import_rows(given)
    assert rows(shop) == {}


@sqlite_only
def test_a_data_frame(shop: Flask) -> None:
    """A DataFrame, whose iterator yields names of columns, is refused with the remedy."""

    class DataFrame:
        def __iter__(self) -> Iterator[str]:
            return iter(["email", "name"])

    with pytest.raises(InvalidMail, match=r"to_dict\('records'\)"):
        import_rows(DataFrame())
    assert rows(shop) == {}


# --- duplicates -----------------------------------------------------------------------------------


def test_duplicates(shop: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each address gets one mail, the first: in and across chunks, in any case."""
    monkeypatch.setattr("mailer.intake.bulk._CHUNK_ROWS", 3)
    given = [
        (ADA, {"a": 1}),
        ("ada@EXAMPLE.com", {"a": 2}),
        ("Ada@example.com", {"a": 3}),
        ("bob@example.com", {"a": 4}),
        (f"Ada <{ADA}>", {"a": 5}),
        (ADA, {"a": 6}),
        ("bob@bücher.example", {"a": 7}),
        ("bob@xn--bcher-kva.example", {"a": 8}),
    ]
    progress = import_rows(given).progress()

    assert [json.loads(own)["context"]["a"] for own in contexts(shop)] == [1, 4, 7]
    assert (progress.imported, progress.accepted, progress.duplicates) == (8, 3, 5)


def test_an_address_as_it_was_given(shop: Flask) -> None:
    """A recipient keeps the case of the address, and is found in any case."""
    bulk = import_rows([("Ada@example.com", {})])

    assert [one.address for one in bulk.recipients()] == ["Ada@example.com"]
    assert bulk.retry(to="ADA@example.com") == 0
    with pytest.raises(UnknownMail, match=r"has no recipient 'bob@example\.com'"):
        bulk.retry(to="bob@example.com")


def test_one_address_many_times(shop: Flask) -> None:
    """One address a hundred thousand times gets one mail."""
    progress = import_rows((ADA, {"a": number}) for number in range(100_000)).progress()

    assert (progress.accepted, progress.duplicates) == (1, 99_999)
    assert recipients(shop) == [(1, ADA)]


def test_the_same_addresses_in_two_sends(shop: Flask) -> None:
    """Another send reaches the same addresses, in the same database and beside other mail."""
    for _ in range(2):
        assert import_rows(some_rows(3)).progress().accepted == 3
    assert rows(shop)["mailer_delivery"] == 6


# --- options --------------------------------------------------------------------------------------


def test_rubbish_among_the_rows(shop: Flask) -> None:
    """The rows that can't be used are left out and listed in their order, page after page."""
    given: Iterator[Any] = ((f"a{number}@" if number % 2 else ADA, {}) for number in range(1, 4001))
    bulk = import_rows(given)

    assert [error.row for error in bulk.errors()] == [*range(1, 4001, 2)]
    assert bulk.progress().refused == 2000


def test_abort(shop: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    """With on_error="abort", the first bad row ends the call: nothing is sent, the key is free."""
    monkeypatch.setattr("mailer.intake.bulk._CHUNK_ROWS", 2)
    bad: list[Any] = [*some_rows(5), "ada@", row(6)]
    with pytest.raises(BadRow, match=r"row 6 \(ada@\)") as error:
        import_rows(bad, on_error="abort", idempotency_key="news")

    copy = pickle.loads(pickle.dumps(error.value))  # noqa: S301 -- as a pool of processes does
    for one in (error.value, copy):
        assert (one.row, one.address) == (6, "ada@")
    assert set(states(shop)) <= {"held"}
    store = store_of(shop)
    [cancelled] = store.load_bulks(most=9)
    assert cancelled.state == "cancelled"
    assert "row 6" in (cancelled.reason or "")
    del bad[5]
    assert import_rows(bad, on_error="abort", idempotency_key="news").progress().accepted == 6


def test_no_rows(shop: Flask) -> None:
    """A send without recipients is over at once."""
    progress = import_rows([]).progress()

    assert (progress.state, progress.imported, progress.unfinished) == ("finished", 0, 0)


class Failing(Mapping[str, Any]):
    """A row whose columns an application can't load any more."""

    def __getitem__(self, name: str) -> Any:
        raise LookupError(name)

    def __iter__(self) -> Iterator[str]:
        raise LookupError("the session is closed")

    def __len__(self) -> int:
        return 1


def test_a_row_that_raises(shop: Flask) -> None:
    """An error of the application's own objects is no bad row: it ends the call."""
    with pytest.raises(LookupError, match="the session is closed"):
        import_rows([row(1), Failing()])
    assert "queued" not in states(shop)
