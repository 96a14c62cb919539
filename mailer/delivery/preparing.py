"""Preparing mails: load and compose them within the byte budget of the process."""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from logging import Logger

from celery.exceptions import SoftTimeLimitExceeded

from mailer.delivery.routing import destination
from mailer.delivery.services import Services, ThreadContext
from mailer.errors import StoreError, StoreUnavailable
from mailer.logs import get_logger
from mailer.message import Delivery, Message, Outcome, Phase, Verdict
from mailer.message.text import printable
from mailer.mime import Composed, WireMessage, compose
from mailer.policy import bytes_held, verdict_on

# The header with the recipient of a mail that goes to MAILER_REDIRECT_TO instead.
_ORIGINAL_RECIPIENT = "X-Original-Recipient"
# Mails of this size in bytes are loaded one by one, smaller ones together.
_LARGE = 100_000

_ERASED = "what it said is erased, or can't be read"
_NOT_ALLOWED = "its recipient is not among MAILER_ALLOWED_RECIPIENTS: nothing was sent"

log: Logger = get_logger(__name__)


@dataclass(slots=True)
class Content:
    """A composed mail, which the deliveries of one mail share while they follow each other."""

    key: str
    room: int  #: bytes taken from the budget
    message: Message | None = field(default=None, repr=False)
    composed: Composed | None = None
    users: int = 0  #: prepared mails that are not dropped yet


@dataclass(slots=True)
class PreparedMail:
    """A delivery and the bytes to send for it."""

    delivery: Delivery
    wire: WireMessage
    content: Content = field(repr=False)
    lease_until: float = 0.0  #: once it is marked


class Preparer:
    """The prepared mails of one share.

    `set_aside` is called with each delivery that can't be prepared, and with the reason.
    """

    def __init__(
        self,
        services: Services,
        context: ThreadContext,
        set_aside: Callable[[Delivery, Outcome], None],
    ) -> None:
        self._services = services
        self._settings = services.settings
        self._budget = context.budget
        self._box = context.box
        self._set_aside = set_aside
        self._redirects = self._settings.redirect_to is not None
        self._sizes: dict[str, int] | None = None  # of mails that were queued without one
        self._contents: dict[str, Content] = {}

    # --- room ------------------------------------------------------------------------------------

    def measure(self, deliveries: Collection[Delivery]) -> None:
        """Load, once, the sizes that an older version did not store.

        A mail that can't be measured counts as the largest one that is allowed.
        """
        if self._sizes is not None:
            return
        unknown = {one.mail_id for one in deliveries if one.size is None}
        sizes = dict.fromkeys(unknown, self._settings.max_size)
        self._sizes = sizes | self._services.store.load_sizes(unknown) if unknown else {}

    def make_room(self, delivery: Delivery) -> bool:
        """Take room for a mail, unless it is prepared already. Return False if there is none."""
        key = self._key(delivery)
        if key in self._contents:
            return True
        room = bytes_held(self._size(delivery))
        if not self._budget.take(room, delivery.mail_id):
            return False
        self._contents[key] = Content(key, room)
        return True

    def drop(self, mail: PreparedMail, following: Delivery | None) -> None:
        """Forget a mail, and its content with the last user, unless the next one has it."""
        content = mail.content
        content.users -= 1
        if not content.users and (following is None or self._key(following) != content.key):
            self._discard(content.key)

    def drop_unused(self, following: Delivery) -> None:
        """Give back the room of contents without users, except for that of the next delivery."""
        kept = self._key(following)
        for content in [*self._contents.values()]:
            if not content.users and content.key != kept:
                self._discard(content.key)

    def close(self) -> None:
        """Give back all room."""
        for key in [*self._contents]:
            self._discard(key)

    def _discard(self, key: str) -> None:
        if (content := self._contents.pop(key, None)) is not None:
            self._budget.give_back(content.room)

    def _key(self, delivery: Delivery) -> str:
        """Name a content. A redirected mail names its recipient, so each delivery has its own."""
        if self._redirects and self._is_redirected(delivery):
            return f"{delivery.mail_id} {delivery.id}"
        return delivery.content_key

    def _is_redirected(self, delivery: Delivery) -> bool:
        to = destination(self._settings, delivery.recipient)
        return to not in (delivery.recipient, None)

    def _size(self, delivery: Delivery) -> int:
        if delivery.size is not None:
            return delivery.size
        return (self._sizes or {}).get(delivery.mail_id, self._settings.max_size)

    # --- mails -----------------------------------------------------------------------------------

    def prepare(self, deliveries: Sequence[Delivery], *, patient: bool) -> list[PreparedMail]:
        """Load and compose the mails of these deliveries, for which there is room.

        Not `patient`, while a relay waits for us: a database that is away is not asked twice.
        """
        missing = [one for one in deliveries if self._contents[self._key(one)].composed is None]
        try:
            for group in self._groups(missing):
                self._load_and_compose(group, patient=patient)
        finally:
            if missing:  # this process lives, so none of these mails kills it
                self._box.composed()
        prepared = [mail for mail in map(self._prepared, deliveries) if mail is not None]
        for mail in prepared:
            mail.content.users += 1
        return prepared

    def _groups(self, deliveries: Sequence[Delivery]) -> Iterator[list[Delivery]]:
        """Group the small mails, for one query, and the deliveries of each large mail."""
        small: list[Delivery] = []
        large: dict[str, list[Delivery]] = defaultdict(list)
        for delivery in deliveries:
            group = small if self._size(delivery) < _LARGE else large[delivery.mail_id]
            group.append(delivery)
        if small:
            yield small
        yield from large.values()

    def _load_and_compose(self, group: list[Delivery], *, patient: bool) -> None:
        """Load a group at once. If that fails, try each mail alone: one of them may be to blame."""
        mail_ids = {one.mail_id for one in group}
        keys = {one.content_key for one in group}
        if len(keys) == 1:
            self._box.composing(group[0].content_key)
        try:
            messages = self._services.store.load_messages(mail_ids)
            own_parts = self._services.personal.load(group)
        except Exception as error:
            if isinstance(error, SoftTimeLimitExceeded) or _ends_the_share(error, patient=patient):
                raise
            trouble = _unread(error)
        else:
            for delivery in group:
                message, own = messages.get(delivery.mail_id), own_parts.get(delivery.id)
                self._compose(delivery, message, group, own)
            return
        if len(keys) == 1:
            self._fail(group, trouble)
            return
        log.warning("Loading %d mails failed, each is tried alone: %s", len(keys), trouble.reply)
        for key in sorted(keys):
            alone = [one for one in group if one.content_key == key]
            self._load_and_compose(alone, patient=patient)

    def _compose(
        self,
        delivery: Delivery,
        message: Message | None,
        group: Sequence[Delivery],
        own_part: str | None,
    ) -> None:
        content = self._contents.get(self._key(delivery))
        if content is None or content.composed is not None:
            return
        if message is None or (delivery.is_bulk and own_part is None):
            self._fail(
                self._users(content, group), Outcome(Verdict.REFUSED, _ERASED, Phase.CONNECT)
            )
            return
        self._box.composing(delivery.content_key)
        is_over = False
        try:
            if own_part is not None:
                message = self._services.personal.render(message, delivery, own_part)
            content.message = self._redirected(message, delivery)
            content.composed = compose(content.message, self._services.signer)
        except Exception as error:  # noqa: BLE001 -- whatever it is, it is this mail's trouble only
            trouble = _uncomposed(message, error)
            is_over = isinstance(error, SoftTimeLimitExceeded)
        else:
            return
        # Outside the handler, where the error and all that was half composed are gone.
        self._fail(self._users(content, group), trouble)
        if is_over:
            raise SoftTimeLimitExceeded

    def _users(self, content: Content, group: Sequence[Delivery]) -> list[Delivery]:
        return [one for one in group if self._key(one) == content.key]

    def _redirected(self, message: Message, delivery: Delivery) -> Message:
        if not (self._redirects and self._is_redirected(delivery)):
            return message
        header = (_ORIGINAL_RECIPIENT, delivery.recipient)
        return replace(message, headers=(*message.headers, header))

    def _fail(self, deliveries: Sequence[Delivery], trouble: Outcome) -> None:
        for delivery in deliveries:
            self._discard(self._key(delivery))
            self._set_aside(delivery, trouble)

    def _prepared(self, delivery: Delivery) -> PreparedMail | None:
        content = self._contents.get(self._key(delivery))
        if content is None or content.composed is None or content.message is None:
            return None
        to = destination(self._settings, delivery.recipient)
        if to is None:
            self._set_aside(delivery, Outcome(Verdict.REFUSED, _NOT_ALLOWED, Phase.CONNECT))
            return None
        return PreparedMail(delivery, WireMessage(content.message, to, content.composed), content)


def _ends_the_share(error: Exception, *, patient: bool) -> bool:
    """Return whether an error ends the whole share.

    A database that did not answer may have stumbled over one mail, so each is tried alone, but not
    while a relay waits.
    """
    return isinstance(error, StoreError) and not (patient and isinstance(error, StoreUnavailable))


def _unread(error: Exception) -> Outcome:
    """Describe a mail that can't be loaded.

    Only errors of the database may be quoted: others may quote the mail.
    """
    words = f": {error}" if isinstance(error, (StoreError, OSError)) else ""
    reason = printable(f"it can't be loaded: {type(error).__name__}{words}")
    return Outcome(verdict_on(error), reason, Phase.CONNECT)


def _uncomposed(message: Message, error: Exception) -> Outcome:
    """Log and describe a mail that can't be composed.

    The error may quote the mail, so not if it is sensitive.
    """
    name = type(error).__name__
    log.error(
        "Composing failed: mail_id=%s error=%s",
        message.id,
        name,
        exc_info=None if message.sensitive else error,
    )
    words = "" if message.sensitive else f": {error}"
    reason = printable(f"it can't be composed: {name}{words}")
    return Outcome(verdict_on(error), reason, Phase.CONNECT)
