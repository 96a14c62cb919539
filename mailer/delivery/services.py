"""The collaborators of a delivery."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from mailer.blackbox import BlackBox, Box
from mailer.delivery.budget import ByteBudget
from mailer.delivery.flags import WorkerFlags
from mailer.delivery.personal import PersonalMail
from mailer.message import Pause
from mailer.message.ports import Clock
from mailer.mime import Signer
from mailer.settings import Settings
from mailer.store import Store
from mailer.throttle import Slots, Throttle


@dataclass(frozen=True, slots=True)
class Services:
    """The collaborators of every delivery of an app."""

    settings: Settings
    store: Store
    signer: Signer | None
    throttle: Throttle
    black_box: BlackBox
    clock: Clock
    personal: PersonalMail


@dataclass(frozen=True, slots=True)
class ThreadContext:
    """The slots, notes and budget of one thread while it delivers, from batch to batch."""

    #: Of the relay in use. They are kept with its warm connection, which relays count too.
    relay_slots: Slots
    domain_slots: Slots  #: given back after each share
    box: Box
    budget: ByteBudget  #: shared by the threads of the process
    flags: WorkerFlags
    #: Relays to treat as paused, since they would keep this thread waiting.
    avoided: Mapping[str, Pause]
    mails: Collection[str] | None = None  #: the ids of the only mails to deliver. None: all mail
