"""The circuit breaker: a relay that can't be used is paused, and probed with one mail."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from logging import Logger

from mailer.delivery.services import Services
from mailer.logs import get_logger
from mailer.message import Outcome, Pause
from mailer.policy import rest
from mailer.smtp import Relay

log: Logger = get_logger(__name__)


class Breaker:
    """The pauses of relays, which all workers share. One worker probes a paused relay at a time."""

    def __init__(self, services: Services) -> None:
        self._store = services.store
        self._settings = services.settings
        self._clock = services.clock

    def pauses(self, avoided: Mapping[str, Pause]) -> dict[str, Pause]:
        """Return the pauses by relay, with those that this thread makes for itself."""
        return {**self._store.relay_pauses(), **avoided}

    def lets_through(self, pause: Pause | None) -> bool:
        """Return whether a relay may be tried: it is not paused, or its pause is over."""
        return pause is None or (pause.until is not None and pause.until <= self._clock.time())

    def time_to_look_again(self, pause: Pause, now: float) -> float | None:
        """Return when to look at a paused relay again: at the end of the pause.

        While the relay is probed, the pause ends with the longest time that may take. The probe may
        be over long before, so look no later than if the relay had failed once less.
        """
        failures = max(0, pause.failures - 1)
        return pause.until and min(pause.until, now + rest(failures, self._settings.retry, 1.0))

    def pause(self, relay: Relay, probe: Pause | None, failure: Outcome) -> None:
        """Pause a relay. Log the reason once as an error, with the remedy if there is one."""
        failures, now = probe.failures if probe else 0, self._clock.time()
        seconds = rest(failures, self._settings.retry, self._clock.random())
        asked = min(failure.retry_after or 0.0, self._settings.relay_rest_longest)
        until = now + max(seconds, asked)
        reason = " ".join(filter(None, [failure.reply, failure.advice]))
        if not self._store.pause_relay(
            relay.name, failures=failures, now=now, until=until, reason=reason
        ):
            return  # another worker did
        is_news = probe is None or (failure.advice and not probe.reason.endswith(failure.advice))
        log.log(
            logging.ERROR if is_news else logging.INFO,
            "The relay %s can't be used, its mail waits or takes another one; it is tried again in"
            " %.0f s. %s",
            relay.name,
            until - now,
            reason,
        )

    # --- probes ----------------------------------------------------------------------------------

    def take_probe(self, relay: Relay, pause: Pause, now: float) -> Pause | None:
        """Take the probe of a relay. Return None if another worker has it."""
        until = self._longest_probe(relay, now)
        taken = self._store.take_probe(relay.name, now=now, until=until)
        return replace(pause, until=until) if taken else None

    def renew_probe(self, relay: Relay, probe: Pause) -> Pause | None:
        """Extend our probe, which other relays may have delayed.

        Return None if another worker has taken it over.
        """
        until = self._longest_probe(relay, self._clock.time())
        return replace(probe, until=until) if self._move_probe(relay.name, probe, until) else None

    def leave_probe(self, name: str, probe: Pause) -> None:
        """Let others probe a relay from now on, if the probe is still ours."""
        self._move_probe(name, probe, self._clock.time())

    def end_probe(self, relay: Relay, probe: Pause, *, was_tried: bool) -> None:
        """End the pause of a relay that answers. If no mail was tried, leave the probe."""
        if not was_tried:
            self.leave_probe(relay.name, probe)
        elif self._store.resume_relay(relay.name):
            log.warning("The relay %s answers again.", relay.name)

    def _move_probe(self, name: str, probe: Pause, until: float) -> bool:
        assert probe.until is not None
        return self._store.move_probe(name, taken_until=probe.until, until=until)

    def _longest_probe(self, relay: Relay, now: float) -> float:
        """Return when a probe is over, however slowly the relay lets us in."""
        return now + self._settings.relay_rest + relay.settings.longest_opening
