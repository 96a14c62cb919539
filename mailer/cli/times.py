"""The format of times that the commands print and take."""

from datetime import UTC, datetime

import click


def format_time(when: datetime | None) -> str:
    """Return a time in UTC, or a dash."""
    return when.strftime("%Y-%m-%d %H:%M:%S UTC") if when else "-"


def parse_time(given: str) -> datetime:
    """Read a time as these commands print it, in UTC unless it has an offset."""
    try:
        moment = datetime.fromisoformat(given.removesuffix(" UTC"))
    except ValueError:
        raise click.BadParameter(
            f"{given!r} is no time: give one such as '2026-11-25 10:00' (UTC)."
        ) from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
