"""What a courier works with: the office is the app's, a duty is one thread's."""

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

    relay_seats: Seats  #: of the relay in use, kept as its warm connection is, since relays count those, too
    domain_seats: Seats  #: given back after each round
    box: Box
    budget: ByteBudget  #: of the process
    avoiding: Mapping[str, Pause]  #: relays that would keep it waiting, as if paused
