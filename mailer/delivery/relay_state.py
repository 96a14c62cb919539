"""A relay as the dispatcher of one process knows it."""

from dataclasses import dataclass, field

from mailer.delivery.pace import Pace, Silences
from mailer.settings import RelaySettings
from mailer.smtp import Relay


@dataclass(frozen=True, slots=True)
class RelayState:
    """A relay, with the experience of this process."""

    relay: Relay
    pace: Pace = field(default_factory=Pace)
    silences: Silences = field(default_factory=Silences)

    @property
    def name(self) -> str:
        return self.relay.name

    @property
    def settings(self) -> RelaySettings:
        return self.relay.settings
