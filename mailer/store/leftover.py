"""A warning about mail in a database that is not used any more."""

import sqlite3
from contextlib import closing
from logging import Logger
from pathlib import Path

from mailer.logs import get_logger

#: One count for each partial index, each up to `_MOST`.
_UNFINISHED = """
SELECT
    (SELECT COUNT(*) FROM (
        SELECT 1 FROM mailer_delivery WHERE status = 'queued' LIMIT :most))
    + (SELECT COUNT(*) FROM (
        SELECT 1 FROM mailer_delivery WHERE lease_until IS NOT NULL LIMIT :most))
    + (SELECT COUNT(*) FROM (
        SELECT 1 FROM mailer_delivery WHERE status = 'doubtful' LIMIT :most))
"""
_MOST = 10_000

log: Logger = get_logger(__name__)


def warn_of_leftover(file: Path, used: str) -> None:
    """Warn if a SQLite file that is not used any more has unfinished mail."""
    if (count := _unfinished(file)) > 0:
        log.warning(
            "%s deliveries are unfinished in %s, and nobody delivers them: mail is kept in %s now."
            " Let a worker with MAILER_DATABASE_URL=%s finish them, or delete the file if they are"
            " not wanted.",
            count if count < _MOST else f"{_MOST} or more",
            file,
            used,
            f"sqlite:///{file}",
        )


def _unfinished(file: Path) -> int:
    """Return the number of unfinished deliveries. Return 0 if the file can't be read."""
    try:
        if not file.is_file():
            return 0
        # Not "ro", which would leave the files of the log behind.
        uri = f"{file.absolute().as_uri()}?mode=rw"
        with closing(sqlite3.connect(uri, uri=True, timeout=0)) as connection:
            [count] = connection.execute(_UNFINISHED, {"most": _MOST}).fetchone()
    except (sqlite3.Error, OSError):
        return 0
    return int(count)
