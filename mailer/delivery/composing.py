"""Mails are loaded and composed, within the byte budget of the process, and dropped once they are sent."""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace

from celery.exceptions import SoftTimeLimitExceeded

from mailer.blackbox import Box
from mailer.delivery.budget import ByteBudget
from mailer.delivery.office import Office
from mailer.delivery.routing import destination
from mailer.errors import StoreError, StoreUnavailable
from mailer.logs import get_logger
from mailer.message import Delivery, Message, Outcome, Phase, Verdict
from mailer.mime import Composed, Signer, WireMessage
from mailer.policy import bytes_held, verdict_on
from mailer.smtp.replies import printable

# The header that says who a mail was for that goes to MAILER_REDIRECT_TO.
_MEANT_FOR = "X-Original-Recipient"
# Mails of so many bytes are loaded one by one; smaller ones together.
_LARGE = 100_000

_ERASED = "what it said is erased, or can't be read"
_NOT_ALLOWED = "its recipient is not among MAILER_ALLOWED_RECIPIENTS: nothing was sent"

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Letter:
    """A delivery and what goes over the wire for it."""

    delivery: Delivery
    mail: WireMessage
    lease_until: float = 0.0  #: once it is marked


@dataclass(slots=True)
class _Sheet:
    """A composed mail, the room that it takes, and how many letters use it."""

    room: int
    message: Message | None = field(default=None, repr=False)
    composed: Composed | None = None
    letters: int = 0


class Composer:
    """The mails of one round. Recipients of a mail that follow each other share what was composed.

    `write` composes a mail. `set_aside` is called with each delivery that can't be made ready, and with the reason.
    """

    def __init__(
        self,
        office: Office,
        budget: ByteBudget,
        box: Box,
        write: Callable[[Message, Signer | None], Composed],
        set_aside: Callable[[Delivery, Outcome], None],
    ) -> None:
        self._office = office
        self._budget = budget
        self._box = box
        self._write = write
        self._redirects = office.settings.redirect_to is not None
        self._set_aside = set_aside
        self._sizes: dict[str, int] = {}  # of mails that were queued without
        self._sheets: dict[str, _Sheet] = {}

    # --- room ---------------------------------------------------------------------------------------------------------

    def measure(self, deliveries: Collection[Delivery]) -> None:
        """Ask for the sizes that an older version did not store. What can't be measured counts as the largest."""
        unknown = {one.mail_id for one in deliveries if one.size is None}
        if unknown:
            largest = dict.fromkeys(unknown, self._office.settings.max_size)
            self._sizes = largest | self._office.store.load_sizes(unknown)

    def make_room(self, delivery: Delivery) -> bool:
        """Take room for a mail, unless it is here already; whether there was any."""
        key = self._key(delivery)
        if key in self._sheets:
            return True
        room = bytes_held(self._size(delivery))
        if not self._budget.take(room, delivery.mail_id):
            return False
        self._sheets[key] = _Sheet(room)
        return True

    def drop(self, letter: Letter, following: Delivery | None) -> None:
        """Forget a letter, and its mail with the last, unless the delivery that follows has the same."""
        key = self._key(letter.delivery)
        sheet = self._sheets[key]
        sheet.letters -= 1
        if not sheet.letters and (following is None or self._key(following) != key):
            self._discard(key)

    def drop_unused(self, following: Delivery) -> None:
        """Give back the room of mails that no letter uses, but for the one of the delivery that follows."""
        kept = self._key(following)
        for key in [key for key, sheet in self._sheets.items() if not sheet.letters and key != kept]:
            self._discard(key)

    def close(self) -> None:
        """Give back everything."""
        for key in [*self._sheets]:
            self._discard(key)

    def _discard(self, key: str) -> None:
        if (sheet := self._sheets.pop(key, None)) is not None:
            self._budget.give_back(sheet.room)

    def _key(self, delivery: Delivery) -> str:
        """Name what is composed: a mail that is redirected names its recipient, and so is another one for each."""
        return f"{delivery.mail_id} {delivery.id}" if self._is_redirected(delivery) else delivery.mail_id

    def _is_redirected(self, delivery: Delivery) -> bool:
        """Tell whether the mail goes to an address that is not its recipient's."""
        if not self._redirects:
            return False
        return destination(self._office.settings, delivery.recipient) not in (delivery.recipient, None)

    def _size(self, delivery: Delivery) -> int:
        if delivery.size is not None:
            return delivery.size
        return self._sizes.get(delivery.mail_id, self._office.settings.max_size)

    # --- letters ------------------------------------------------------------------------------------------------------

    def letters(self, deliveries: Sequence[Delivery], *, has_time: bool) -> list[Letter]:
        """Make letters of those for which there is room. Each mail is composed once.

        There is no time while a relay waits for us: then a database that is away is not asked twice.
        """
        missing = [one for one in deliveries if self._sheets[self._key(one)].composed is None]
        try:
            for group in self._groups(missing):
                self._prepare(group, has_time=has_time)
        finally:
            if missing:  # this process lives: whatever it was, the mail does not kill it
                self._box.composed()
        letters = [letter for letter in map(self._letter, deliveries) if letter is not None]
        for letter in letters:
            self._sheets[self._key(letter.delivery)].letters += 1
        return letters

    def _groups(self, deliveries: Sequence[Delivery]) -> Iterator[list[Delivery]]:
        """Small mails together, for one query; each large mail with its recipients."""
        small = [one for one in deliveries if self._size(one) < _LARGE]
        if small:
            yield small
        large = [one for one in deliveries if self._size(one) >= _LARGE]
        for mail_id in dict.fromkeys(one.mail_id for one in large):
            yield [one for one in large if one.mail_id == mail_id]

    def _prepare(self, group: list[Delivery], *, has_time: bool) -> None:
        """Load and compose. When mails can't be loaded together, each is tried alone: one may be to blame."""
        mail_ids = {one.mail_id for one in group}
        if len(mail_ids) == 1:
            self._box.composing(group[0].mail_id)
        try:
            messages = self._office.store.load_messages(mail_ids)
        except Exception as error:
            if isinstance(error, SoftTimeLimitExceeded) or _ends_the_round(error, has_time=has_time):
                raise
            trouble = _unread(error)
        else:
            for delivery in group:
                self._compose(delivery, messages.get(delivery.mail_id), group)
            return
        if len(mail_ids) == 1:
            self._fail(group, trouble)
            return
        log.warning("Loading %d mails failed, each is tried alone: %s", len(mail_ids), trouble.reply)
        for mail_id in sorted(mail_ids):
            self._prepare([one for one in group if one.mail_id == mail_id], has_time=has_time)

    def _compose(self, delivery: Delivery, message: Message | None, group: Sequence[Delivery]) -> None:
        key = self._key(delivery)
        sheet = self._sheets.get(key)
        if sheet is None or sheet.composed is not None:
            return
        if message is None:
            self._fail(self._alike(key, group), Outcome(Verdict.REFUSED, _ERASED, Phase.CONNECT))
            return
        self._box.composing(message.id)
        is_over = False
        try:
            message = self._redirected(message, delivery)
            sheet.message, sheet.composed = message, self._write(message, self._office.signer)
        except Exception as error:
            # What went wrong may quote what the mail says.
            said = (message.id, type(error).__name__)
            log.exception("Composing failed: mail_id=%s error=%s", *said, exc_info=not message.sensitive)
            words = "" if message.sensitive else f": {error}"
            reason = printable(f"it can't be composed: {type(error).__name__}{words}")
            trouble = Outcome(verdict_on(error), reason, Phase.CONNECT)
            is_over = isinstance(error, SoftTimeLimitExceeded)
        else:
            return
        self._fail(self._alike(key, group), trouble)  # now that the error, and all that was half composed, is gone
        if is_over:
            raise SoftTimeLimitExceeded

    def _alike(self, key: str, group: Sequence[Delivery]) -> list[Delivery]:
        return [one for one in group if self._key(one) == key]

    def _redirected(self, message: Message, delivery: Delivery) -> Message:
        if not self._is_redirected(delivery):
            return message
        return replace(message, headers=(*message.headers, (_MEANT_FOR, delivery.recipient)))

    def _fail(self, deliveries: Sequence[Delivery], trouble: Outcome) -> None:
        for delivery in deliveries:
            self._discard(self._key(delivery))
            self._set_aside(delivery, trouble)

    def _letter(self, delivery: Delivery) -> Letter | None:
        sheet = self._sheets.get(self._key(delivery))
        if sheet is None or sheet.composed is None or sheet.message is None:
            return None
        to = destination(self._office.settings, delivery.recipient)
        if to is None:
            self._set_aside(delivery, Outcome(Verdict.REFUSED, _NOT_ALLOWED, Phase.CONNECT))
            return None
        return Letter(delivery, WireMessage(sheet.message, to, sheet.composed))


def _ends_the_round(error: Exception, *, has_time: bool) -> bool:
    """Tell whether to give up the round.

    A database that did not answer may have stumbled over one mail, so each is tried alone; but not
    while a relay waits for us.
    """
    if not isinstance(error, StoreError):
        return False
    return not has_time or not isinstance(error, StoreUnavailable)


def _unread(error: Exception) -> Outcome:
    """A mail that could not be loaded. The words of the database are its own, others may quote the mail."""
    words = f": {error}" if isinstance(error, (StoreError, OSError)) else ""
    reason = printable(f"it can't be loaded: {type(error).__name__}{words}")
    return Outcome(verdict_on(error), reason, Phase.CONNECT)
