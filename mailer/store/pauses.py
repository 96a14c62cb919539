"""Pauses: of relays that can't be used, of a lane, of everything."""

from itertools import chain

from mailer.message import Lane, Pause
from mailer.store import rows
from mailer.store.database import Database

_RELAY, _LANE, _ALL = "relay", "lane", "all"  # the scopes of pauses

PAUSES = """
SELECT key, until, failures, reason, since FROM mailer_pause
WHERE scope = :scope
ORDER BY key
"""
PAUSE_BY_HAND = """
INSERT INTO mailer_pause (scope, key, until, failures, reason, since)
VALUES (:scope, :key, NULL, 0, :reason, :now)
ON CONFLICT (scope, key) DO UPDATE SET reason = :reason
"""
# Workers that fail at the same time count as one failure: the pause of the first one stands.
PAUSE = """
INSERT INTO mailer_pause (scope, key, until, failures, reason, since)
VALUES (:scope, :key, :until, 1, :reason, :now)
ON CONFLICT (scope, key) DO UPDATE
SET until = :until, failures = mailer_pause.failures + 1, reason = :reason
WHERE mailer_pause.failures = :failures
RETURNING failures
"""
TAKE_PROBE = """
UPDATE mailer_pause SET until = :until
WHERE scope = :scope AND key = :key AND until <= :now
RETURNING key
"""
MOVE_PROBE = """
UPDATE mailer_pause SET until = :until
WHERE scope = :scope AND key = :key AND until = :taken_until
RETURNING key
"""
SHORTEN = """
UPDATE mailer_pause SET until = :now
WHERE scope = :scope AND until > :now
RETURNING key
"""
RESUME = "DELETE FROM mailer_pause WHERE scope = :scope AND key = :key RETURNING key"


class Pauses(Database):
    """The pauses of relays, which workers set, and of lanes or everything, which a person sets."""

    # --- relays ----------------------------------------------------------------------------------

    def relay_pauses(self) -> dict[str, Pause]:
        """Return the pauses of relays, by name."""
        with self._look() as transaction:
            found = transaction.execute(PAUSES, {"scope": _RELAY})
        return dict(map(rows.pause, found))

    def shorten_relay_pauses(self, now: float) -> None:
        """End the pauses of relays: the clock was set back, so they would last too long."""
        self._changes(SHORTEN, {"scope": _RELAY, "now": now})

    def pause_relay(
        self, name: str, *, failures: int, now: float, until: float, reason: str
    ) -> bool:
        """Pause a relay, unless its number of failures has changed: another worker paused it."""
        values = {"scope": _RELAY, "key": name, "failures": failures, "now": now, "until": until}
        return self._changes(PAUSE, {**values, "reason": rows.storable(reason)})

    def take_probe(self, name: str, *, now: float, until: float) -> bool:
        """Take the right to try a paused relay again. Return False if another process has it."""
        return self._changes(TAKE_PROBE, {"scope": _RELAY, "key": name, "now": now, "until": until})

    def move_probe(self, name: str, *, taken_until: float, until: float) -> bool:
        """Extend or end our probe. Return False if another process has taken it over."""
        values = {"scope": _RELAY, "key": name, "taken_until": taken_until, "until": until}
        return self._changes(MOVE_PROBE, values)

    def resume_relay(self, name: str) -> bool:
        """End the pause of a relay. Return whether there was one."""
        return self._changes(RESUME, {"scope": _RELAY, "key": name})

    # --- lanes, and everything -------------------------------------------------------------------

    def pause(self, lane: Lane | None = None, *, now: float, reason: str) -> None:
        """Pause a lane, or everything, until `resume`: no claim finds its mail."""
        self._changes(PAUSE_BY_HAND, {**_scope(lane), "reason": rows.storable(reason), "now": now})

    def resume(self, lane: Lane | None = None) -> bool:
        """End the pause of a lane, or of everything. Return whether there was one."""
        return self._changes(RESUME, _scope(lane))

    def list_pauses(self) -> dict[Lane | None, Pause]:
        """Return the pauses of lanes by lane, and the pause of everything under None."""
        with self._look() as transaction:
            found = [transaction.execute(PAUSES, {"scope": scope}) for scope in (_ALL, _LANE)]
        pauses = map(rows.pause, chain.from_iterable(found))
        return {Lane(int(key)) if key else None: pause for key, pause in pauses}


def _scope(lane: Lane | None) -> dict[str, str]:
    return {"scope": _ALL, "key": ""} if lane is None else {"scope": _LANE, "key": f"{lane:d}"}
