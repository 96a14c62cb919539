"""Bulk sends in tests: rows to give, and what is stored of them."""

from collections.abc import Callable, Iterator
from typing import Any

from flask import Flask
from sqlalchemy import text

from mailer import Bulk, Mailer
from tests.shop import store_of

mailer = Mailer()

Row = tuple[str, dict[str, Any]]

COUNT = 25


def row(number: int) -> Row:
    return f"reader{number}@example.com", {"name": f"Reader {number}"}


def some_rows(count: int) -> Iterator[Row]:
    return map(row, range(1, count + 1))


EXPECTED = [(number, row(number)[0]) for number in range(1, COUNT + 1)]


class Boom(Exception):
    """An error of the application."""


def do_before(number: int, act: Callable[[], object], count: int = COUNT) -> Iterator[Row]:
    """Yield rows, and act before this one. It may be the one after the last."""
    for one in range(1, count + 2):
        if one == number:
            act()
        if one <= count:
            yield row(one)


def import_rows(rows: Any, **changes: Any) -> Bulk:
    """Make a bulk send that is always the same, except for the changes."""
    call: dict[str, Any] = {"subject": "News", "template": "only_text", "shared": {"year": 2026}}
    bulk = mailer.send_bulk(**{**call, **changes}, recipients=rows)
    assert isinstance(bulk, Bulk)  # and no rehearsal
    return bulk


def recipients(app: Flask) -> list[tuple[int, str]]:
    """Return the row and the address of each recipient, in the order of their deliveries.

    Each must have a delivery of its own bulk send to the same address, and no delivery be left.
    """
    found = _fetch(
        app,
        'SELECT "row", address, recipient, bulk_id, mail_id FROM mailer_delivery'
        " LEFT JOIN mailer_bulk_recipient ON mailer_bulk_recipient.delivery_id = mailer_delivery.id"
        " ORDER BY mailer_delivery.id",
    )
    for _row, address, recipient, bulk_id, mail_id in found:
        assert (address, bulk_id) == (recipient.lower(), mail_id)
    return [(number, address) for number, address, *_rest in found]


def states(app: Flask) -> dict[str, int]:
    """Return the numbers of deliveries by state."""
    found = _fetch(app, "SELECT status, COUNT(*) FROM mailer_delivery GROUP BY status")
    return dict(found)


def contexts(app: Flask) -> list[str]:
    """Return the own parts of recipients, in the order of their rows."""
    return [own for (own,) in _fetch(app, 'SELECT own FROM mailer_bulk_recipient ORDER BY "row"')]


def check_complete(shop: Flask, bulk: Bulk, count: int = COUNT) -> None:
    progress = bulk.progress()
    assert recipients(shop) == [(number, row(number)[0]) for number in range(1, count + 1)]
    assert (progress.state, progress.imported) == ("running", count)
    assert (progress.accepted, progress.duplicates, progress.refused) == (count, 0, 0)
    assert states(shop) == {"queued": count}


def _fetch(app: Flask, statement: str) -> list[Any]:
    with store_of(app).engine.connect().execution_options(reads_only=True) as connection:
        return [*connection.execute(text(statement))]
