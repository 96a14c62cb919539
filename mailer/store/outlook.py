"""The outlook: mail that will go out by itself, for an operator about to start the workers."""

from dataclasses import dataclass
from datetime import datetime

from mailer.message import Lane, Status
from mailer.store.rows import when
from mailer.store.transactions import Transaction

OUTGOING_LANES = """
SELECT lane, status, COUNT(*), MIN(due_at), MAX(due_at) FROM mailer_delivery
WHERE {outgoing}
GROUP BY lane, status
ORDER BY lane, status
"""
OUTGOING_AGES = """
SELECT age, COUNT(*)
FROM (SELECT {age} AS age FROM mailer_delivery WHERE {outgoing}) AS aged
GROUP BY age
ORDER BY age
"""
OUTGOING_DOMAINS = """
SELECT domain, COUNT(*) FROM mailer_delivery
WHERE {outgoing}
GROUP BY domain
ORDER BY 2 DESC, 1 LIMIT :most
"""
OUTGOING_FIRST = """
SELECT mail_id, recipient, lane, mailer_delivery.due_at,
    CASE WHEN sensitive THEN '(sensitive)' ELSE subject END
FROM mailer_delivery
JOIN mailer_message ON mailer_message.id = mail_id
WHERE {outgoing}
ORDER BY lane, mailer_delivery.due_at LIMIT :most
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """The mail that will go out by itself: counts, and the first mails."""

    #: The number of deliveries of a lane and state, the first due time and the last one.
    lanes: list[tuple[Lane, Status, int, datetime, datetime]]
    #: The index of the first of `sql.AGES` that is longer ago, and the number of deliveries.
    ages: list[tuple[int, int]]
    #: The domains with the most deliveries.
    domains: list[tuple[str, int]]
    #: Id, recipient, lane, due time and subject.
    first: list[tuple[str, str, Lane, datetime, str]]


def look(transaction: Transaction, *, now: float, most: int) -> Outlook:
    """Return the outlook, with at most `most` domains and as many of the first mails."""
    values = {"now": now, "most": most}
    queries = (OUTGOING_LANES, OUTGOING_AGES, OUTGOING_DOMAINS, OUTGOING_FIRST)
    lanes, ages, domains, first = (transaction.execute(query, values) for query in queries)
    return Outlook(
        lanes=[
            (Lane(lane), Status(status), count, when(first), when(last))
            for lane, status, count, first, last in lanes
        ],
        ages=[(age, count) for age, count in ages],
        domains=[(domain, count) for domain, count in domains],
        first=[
            (mail_id, to, Lane(lane), when(due_at), subject)
            for mail_id, to, lane, due_at, subject in first
        ],
    )
