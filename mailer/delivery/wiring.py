"""The wiring of the outbound side of an app."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from flask import Flask
from sqlalchemy import make_url

from mailer.blackbox import BlackBox
from mailer.delivery.dispatcher import Dispatcher
from mailer.delivery.maintenance import Maintenance
from mailer.delivery.personal import PersonalMail
from mailer.delivery.services import Services
from mailer.disk import SystemDisk
from mailer.dropin import flask_mail_state
from mailer.message.ports import Bell, Clock
from mailer.mime import make_signer
from mailer.settings import Settings, database
from mailer.settings.namespace import namespace_of
from mailer.smtp import Relay
from mailer.store import Store
from mailer.throttle import Throttle


@dataclass(frozen=True, slots=True)
class DeliveryParts:
    """The objects that deliver the mail of an app in one process."""

    dispatcher: Dispatcher
    maintenance: Maintenance


def build_delivery(
    app: Flask, settings: Settings, store: Store, bell: Bell, clock: Clock
) -> DeliveryParts:
    """Make the relays, the DKIM keys, the limits and the shared memory of an app."""
    throttle = Throttle(settings, settings.flag_url, clock)
    signer, black_box = make_signer(settings.dkim_keys), black_box_of(app, settings, clock)
    personal = PersonalMail(app, settings, store)
    services = Services(settings, store, signer, throttle, black_box, clock, personal)
    plain = flask_mail_state(settings)
    dispatcher = Dispatcher(services, [Relay(relay, app, plain) for relay in settings.relays], bell)
    return DeliveryParts(dispatcher, Maintenance(services, dispatcher, bell))


def black_box_of(app: Flask, settings: Settings, clock: Clock) -> BlackBox:
    """Return the black box of an app, in a folder for its database."""
    url = make_url(settings.database_url)
    if settings.mail_suppress_send or database.is_in_memory(url):
        return BlackBox(None, SystemDisk(), clock)  # nothing outlives this process
    folder = Path(settings.black_box or Path(app.instance_path, "black-box"))
    # Workers that were started before the folder was named for host and schema use this one.
    former = hashlib.sha256(str(url.set(password=None, query={})).encode()).hexdigest()[:16]
    # By then the leases are over, and mail in doubt is decided.
    kept = max(settings.claim_lease, settings.transmit_lease) + settings.doubt_resend_after
    own = folder / namespace_of(settings.database_url)
    return BlackBox(own, SystemDisk(), clock, former=folder / former, kept=kept)
