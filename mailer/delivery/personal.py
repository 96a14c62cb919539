"""Personal mail: the mail of each recipient of a bulk send, rendered by a worker."""

from collections import OrderedDict
from collections.abc import Collection

from flask import Flask

from mailer.content import Snapshot, SnapshotRenderer, personal_mail
from mailer.message import Delivery, Message
from mailer.message.bulk import OwnPart
from mailer.settings import Settings
from mailer.store import Store

# The templates of so many bulk sends are kept compiled in each process, about 100 kB for each. The
# oldest ones go first: to know the least used ones would take a lock for each mail.
_KEPT = 32


class PersonalMail:
    """Makes the mails of bulk sends. Threads share it."""

    def __init__(self, app: Flask, settings: Settings, store: Store) -> None:
        self._prefix = settings.subject_prefix
        self._app = app
        self._store = store
        self._renderers: OrderedDict[str, SnapshotRenderer] = OrderedDict()

    def load(self, deliveries: Collection[Delivery]) -> dict[int, str]:
        """Load the templates. Return the own part of each mail, by the id of its delivery."""
        personal = [delivery for delivery in deliveries if delivery.is_bulk]
        if not personal:
            return {}
        for bulk_id in {delivery.mail_id for delivery in personal}:
            self._renderer(bulk_id)
        return self._store.load_own_parts([delivery.id for delivery in personal])

    def render(self, message: Message, delivery: Delivery, own_part: str) -> Message:
        """Return the mail of one recipient. The others are not named in it."""
        return personal_mail(
            message,
            self._renderer(message.id),
            OwnPart.from_json(own_part),
            recipient=delivery.recipient,
            delivery_id=delivery.id,
            prefix=self._prefix,
        )

    def _renderer(self, bulk_id: str) -> SnapshotRenderer:
        """Return the renderer of a bulk send. Two threads may both make one."""
        if (renderer := self._renderers.get(bulk_id)) is None:
            snapshot = Snapshot.from_json(self._store.load_snapshot(bulk_id))
            renderer = self._renderers[bulk_id] = SnapshotRenderer(self._app, snapshot)
            while len(self._renderers) > _KEPT:
                self._renderers.popitem(last=False)
        return renderer
