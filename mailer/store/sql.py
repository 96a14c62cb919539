"""SQL for two databases: statements are rendered for SQLite and for PostgreSQL.

Lists and tables of values are passed as one JSON text. With a parameter for each value, each length
would need a statement of its own, which the database would have to prepare.
"""

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

_TEXTS = ("text", "html", "CAST(alternatives AS text)")
#: The columns of a delivery that a worker needs.
DELIVERY_SELECTION = (
    "id",
    "mail_id",
    "recipient",
    "domain",
    "lane",
    "attempts",
    "doubts",
    "queued_at",
    "on_doubt",
    "due_at",
    "expires_at",
    "size",
    "rank",
)
#: The columns of the tables of values, with their types in PostgreSQL.
_RESULTS = {
    "id": "bigint",
    "token": "text",
    "status": "text",
    "due_at": "float8",
    "finished_at": "float8",
    "reply": "text",
    "uncounted": "smallint",
    "doubts": "smallint",
}
_WAITS = {"id": "bigint", "due_at": "float8"}
_PLACES = {"id": "bigint", "rank": "float8"}
_FLOWS = {"tenant": "text"}
#: The parts of the queue of a lane, each with its index. See turns.py.
_PLAIN = "status = 'queued' AND rank IS NULL AND tenant = '' AND attempts = 0"
_UNRANKED = "status = 'queued' AND rank IS NULL AND (tenant <> '' OR attempts > 0)"
_RANKED = "status = 'queued' AND rank > 0"
#: Mail that is held since its tenant has reached a quota. Bulk sends hold theirs without a time.
_OVER_QUOTA = "status = 'held' AND due_at IS NOT NULL"
# For statements that are given ids: see queue.py.
_WAITING = (
    "(COALESCE(status, '') = 'queued' OR (COALESCE(status, '') = 'held' AND due_at IS NOT NULL))"
)
#: The id of a delivery's mail if that is sensitive, else NULL.
_PRIVATE = """(
    SELECT id FROM mailer_message
    WHERE id = mailer_delivery.mail_id AND sensitive AND erased_at IS NULL)"""
#: Deliveries that go out by themselves, now or later.
_OUTGOING = f"""(
    status IN ('queued', 'claimed', 'transmitting') OR ({_OVER_QUOTA})
    OR (status = 'doubtful' AND mailer_delivery.due_at IS NOT NULL))"""
#: The seconds for which mail has been due, as bounds of groups.
AGES = (0, 3600, 86400, 7 * 86400)
# A doubtful delivery was due when it was queued: its due_at is the time of the next try.
_SINCE = "CASE WHEN status = 'doubtful' THEN queued_at ELSE due_at END"
_YOUNGER = " ".join(
    f"WHEN {_SINCE} > :now - {seconds} THEN {number}" for number, seconds in enumerate(AGES)
)
_AGE = f"CASE {_YOUNGER} ELSE {len(AGES)} END"
#: Locks the mail of each chosen delivery, and leaves out deliveries whose mail is locked already.
_UNLESS_LOCKED = """
CROSS JOIN LATERAL (
    SELECT 1 FROM mailer_message
    WHERE id = mailer_delivery.mail_id FOR UPDATE SKIP LOCKED) AS mail
"""

#: True if a person has paused this lane, or everything.
_PAUSED = """EXISTS (
    SELECT 1 FROM mailer_pause
    WHERE scope = 'all' OR (scope = 'lane' AND key = CAST(:lane AS text)))"""


def insert_into(table: str, columns: Iterable[str]) -> str:
    columns = [*columns]
    names = ", ".join(f'"{column}"' for column in columns)
    return f"INSERT INTO {table} ({names}) VALUES ({', '.join(f':{column}' for column in columns)})"


def union_all(selects: Iterable[str]) -> str:
    """Return one statement of several that each have an order, a limit or locks of their own."""
    parts = (f"SELECT * FROM ({select}) AS part_{place}" for place, select in enumerate(selects))
    return " UNION ALL ".join(parts)


def packed(values: Iterable[Any]) -> str:
    """Return a list, or the rows of a table of values, as one parameter."""
    return json.dumps(list(values))


def render_sql(statement: str, *, sqlite: bool) -> str:
    """Return a statement, whose parameters are `:name`, for a database and its driver."""
    rendered = statement.format(
        delivery=", ".join(DELIVERY_SELECTION),
        lock="" if sqlite else "FOR UPDATE SKIP LOCKED",
        skip="" if sqlite else "FOR NO KEY UPDATE SKIP LOCKED",
        wait="" if sqlite else "FOR NO KEY UPDATE",
        keep="" if sqlite else "FOR KEY SHARE",
        unless_locked="" if sqlite else _UNLESS_LOCKED,
        private=_PRIVATE,
        indexed="INDEXED BY mailer_message_private" if sqlite else "",
        paused=_PAUSED,
        # See collation.py. No index has the ids in this order.
        mail_id_by_byte="mail_id" if sqlite else 'mail_id COLLATE "C"',
        # In WHERE, SQLite would evaluate it for each due row. In LIMIT, PostgreSQL would not know
        # the number, and plan worse.
        unless_paused="" if sqlite else f"AND NOT {_PAUSED}",
        most_unless_paused=f"CASE WHEN {_PAUSED} THEN 0 ELSE :most END" if sqlite else ":most",
        # SQLite counts the letters of a text. A letter has four octets at most.
        octets_of_text=" + ".join(
            f"COALESCE({'4 * length' if sqlite else 'octet_length'}({text}), 0)" for text in _TEXTS
        ),
        octets_of_file="length(data)" if sqlite else "octet_length(data)",
        outgoing=_OUTGOING,
        age=_AGE,
        ids=_list("ids", "bigint", sqlite=sqlite),
        mails=_list("mails", "text", sqlite=sqlite),
        hashes=_list("hashes", "text", sqlite=sqlite),
        addresses=_list("addresses", "text", sqlite=sqlite),
        leaving=_list("leaving", "text", sqlite=sqlite),
        plain=_PLAIN,
        unranked=_UNRANKED,
        ranked=_RANKED,
        over_quota=_OVER_QUOTA,
        waiting=_WAITING,
        results=_table("results", _RESULTS, sqlite=sqlite),
        places=_table("places", _PLACES, sqlite=sqlite),
        flows=_table("flows", _FLOWS, sqlite=sqlite),
        among_places=_among("places", sqlite=sqlite),
        waits=_table("waits", _WAITS, sqlite=sqlite),
        among_results=_among("results", sqlite=sqlite),
        among_waits=_among("waits", sqlite=sqlite),
    )
    return rendered if sqlite else re.sub(r":(\w+)", r"%(\1)s", rendered)


def _list(name: str, kind: str, *, sqlite: bool) -> str:
    """Return the condition that a column is in a list.

    For PostgreSQL it is an array: with any other source of values, the planner may read the whole
    table to join it.
    """
    if sqlite:
        return f"IN (SELECT value FROM json_each(:{name}))"
    values = f"SELECT CAST(value AS {kind}) FROM json_array_elements_text(CAST(:{name} AS json))"
    return f"= ANY (ARRAY ({values}))"


def _table(name: str, columns: Mapping[str, str], *, sqlite: bool) -> str:
    if sqlite:
        values = [
            f"json_extract(value, '$[{place}]') AS {column}" for place, column in enumerate(columns)
        ]
        source = f"json_each(:{name})"
    else:
        values = [
            f"CAST(value->>{place} AS {kind}) AS {column}"
            for place, (column, kind) in enumerate(columns.items())
        ]
        source = f"json_array_elements(CAST(:{name} AS json))"
    return f"(SELECT {', '.join(values)} FROM {source}) AS {name}"


def _among(name: str, *, sqlite: bool) -> str:
    """Return the condition that a delivery is in a table of values, which is joined to it."""
    joined = f"mailer_delivery.id = {name}.id"
    if sqlite:
        return joined
    ids = f"SELECT CAST(value->>0 AS bigint) FROM json_array_elements(CAST(:{name} AS json))"
    return f"{joined} AND mailer_delivery.id = ANY (ARRAY ({ids}))"
