"""What the rounds of an app work with."""

from collections.abc import Mapping
from dataclasses import dataclass

from mailer.blackbox import BlackBox, Box
from mailer.delivery.budget import ByteBudget
from mailer.message import Pause
from mailer.mime import Signer
from mailer.settings import Settings
from mailer.store import Store
from mailer.throttle import Seats, Throttle


@dataclass(frozen=True, slots=True)
class Office:
    """What all rounds of an app work with."""

    settings: Settings
    store: Store
    signer: Signer | None
    throttle: Throttle
    black_box: BlackBox


@dataclass(frozen=True, slots=True)
class Duty:
    """What a thread has while it delivers, from slice to slice."""

    seats: Seats  #: at relays, kept as warm connections are, since relays count those, too; in a round, at domains
    box: Box
    budget: ByteBudget  #: of the process
    avoiding: Mapping[str, Pause]  #: relays that would keep it waiting, as if paused
