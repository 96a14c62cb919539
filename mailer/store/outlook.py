"""What would go out by itself, for an operator who is about to start the workers again."""

from dataclasses import dataclass
from datetime import datetime

from mailer.message import Lane, Status
from mailer.store import statements as sql
from mailer.store.rows import when
from mailer.store.transactions import Transaction


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """What would go out by itself, from several sides."""

    lanes: list[tuple[Lane, Status, int, datetime, datetime]]  #: how many, the first due time and the last
    ages: list[tuple[int, int]]  #: a number of `spelling.AGES`, and how many
    domains: list[tuple[str, int]]  #: those with the most
    first: list[tuple[str, str, Lane, datetime, str]]  #: id, recipient, lane, due time, subject


def look(transaction: Transaction, *, now: float, most: int) -> Outlook:
    """Return it, with the `most` domains that get the most, and so many of the first mails."""
    values = {"now": now, "most": most}
    queries = (sql.OUTGOING_LANES, sql.OUTGOING_AGES, sql.OUTGOING_DOMAINS, sql.OUTGOING_FIRST)
    lanes, ages, domains, first = (transaction.execute(query, values) for query in queries)
    return Outlook(
        lanes=[(Lane(lane), Status(status), count, when(first), when(last)) for lane, status, count, first, last in lanes],
        ages=[(age, count) for age, count in ages],
        domains=[(domain, count) for domain, count in domains],
        first=[(mail_id, to, Lane(lane), when(due_at), subject) for mail_id, to, lane, due_at, subject in first],
    )
