"""SQL for two databases: statements are rendered for SQLite and for PostgreSQL.

Lists, and tables of values, travel as one JSON text: with a parameter for each value a statement
would be another one, to be compiled anew, for each length.
"""

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

_TEXTS = ("text", "html", "CAST(alternatives AS text)")
#: The columns of a delivery that a worker needs.
_DELIVERY = (
    *(
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
    ),
    *("expires_at", "size"),
)
#: The tables of values, with the types that PostgreSQL wants to know.
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
#: Of a delivery that is about to move: its mail, if that is sensitive.
_PRIVATE = "(SELECT id FROM mailer_message WHERE id = mailer_delivery.mail_id AND sensitive AND erased_at IS NULL)"
#: Deliveries that go out by themselves, now or some day.
_OUTGOING = "(status IN ('queued', 'claimed', 'transmitting') OR (status = 'doubtful' AND mailer_delivery.due_at IS NOT NULL))"
#: For how many seconds it has been due: the number of the first of these that are more. What is in
#: doubt was due long before it is due again.
AGES = (0, 3600, 86400, 7 * 86400)
_SINCE = "CASE WHEN status = 'doubtful' THEN queued_at ELSE due_at END"
_YOUNGER = " ".join(
    f"WHEN {_SINCE} > :now - {seconds} THEN {number}" for number, seconds in enumerate(AGES)
)
_AGE = f"CASE {_YOUNGER} ELSE {len(AGES)} END"
#: Locks the mail of each delivery that is chosen, and leaves out those of which somebody else has
#: locked the mail.
_UNLESS_LOCKED = """
CROSS JOIN LATERAL (SELECT 1 FROM mailer_message WHERE id = mailer_delivery.mail_id FOR UPDATE SKIP LOCKED) AS mail
"""
#: Only for collations that sort 'aa' behind 'b' (Danish): PostgreSQL folds the constant, and
#: elsewhere plans nothing of it.
_OR_BY_BYTE = """
UNION SELECT id FROM mailer_message
WHERE NOT 'aa' < 'b' AND id COLLATE "C" >= :beginning AND id COLLATE "C" < :end
"""
#: A person has paused this lane, or everything: nothing of it goes out.
_PAUSED = "EXISTS (SELECT 1 FROM mailer_pause WHERE scope = 'all' OR (scope = 'lane' AND key = CAST(:lane AS text)))"


def insert_into(table: str, columns: Iterable[str]) -> str:
    columns = [*columns]
    names = ", ".join(f'"{column}"' for column in columns)
    return f"INSERT INTO {table} ({names}) VALUES ({', '.join(f':{column}' for column in columns)})"


def packed(values: Iterable[Any]) -> str:
    """Return a list, or the rows of a table, as one parameter."""
    return json.dumps(list(values))


def render_sql(statement: str, *, sqlite: bool) -> str:
    """Return a statement, whose parameters are `:name`, in the dialect of a database and its driver."""
    words = statement.format(
        delivery=", ".join(_DELIVERY),
        lock="" if sqlite else "FOR UPDATE SKIP LOCKED",
        skip="" if sqlite else "FOR NO KEY UPDATE SKIP LOCKED",
        wait="" if sqlite else "FOR NO KEY UPDATE",
        keep="" if sqlite else "FOR KEY SHARE",
        unless_locked="" if sqlite else _UNLESS_LOCKED,
        private=_PRIVATE,
        indexed="INDEXED BY mailer_message_private" if sqlite else "",
        paused=_PAUSED,
        # SQLite would ask anew for every row that is due; PostgreSQL plans worse with a limit that
        # it does not know.
        unless_paused="" if sqlite else f"AND NOT {_PAUSED}",
        most_unless_paused=f"CASE WHEN {_PAUSED} THEN 0 ELSE :most END" if sqlite else ":most",
        # SQLite counts the letters of a text: none has more than four octets.
        octets_of_text=" + ".join(
            f"COALESCE({'4 * length' if sqlite else 'octet_length'}({text}), 0)" for text in _TEXTS
        ),
        octets_of_file="length(data)" if sqlite else "octet_length(data)",
        outgoing=_OUTGOING,
        or_by_byte="" if sqlite else _OR_BY_BYTE,
        age=_AGE,
        ids=_list("ids", "bigint", sqlite=sqlite),
        mails=_list("mails", "text", sqlite=sqlite),
        hashes=_list("hashes", "text", sqlite=sqlite),
        leaving=_list("leaving", "text", sqlite=sqlite),
        results=_table("results", _RESULTS, sqlite=sqlite),
        waits=_table("waits", _WAITS, sqlite=sqlite),
        among_results=_among("results", sqlite=sqlite),
        among_waits=_among("waits", sqlite=sqlite),
    )
    return words if sqlite else re.sub(r":(\w+)", r"%(\1)s", words)


def _list(name: str, kind: str, *, sqlite: bool) -> str:
    """PostgreSQL is told that it is a list: to any other source of values it might join the whole table."""
    if sqlite:
        return f"IN (SELECT value FROM json_each(:{name}))"
    return f"= ANY (ARRAY (SELECT CAST(value AS {kind}) FROM json_array_elements_text(CAST(:{name} AS json))))"


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
    """The deliveries that a table of values names; for PostgreSQL by a list of their ids, as above."""
    joined = f"mailer_delivery.id = {name}.id"
    if sqlite:
        return joined
    ids = f"SELECT CAST(value->>0 AS bigint) FROM json_array_elements(CAST(:{name} AS json))"
    return f"{joined} AND mailer_delivery.id = ANY (ARRAY ({ids}))"
