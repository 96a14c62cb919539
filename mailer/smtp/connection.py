"""A connection to a relay: Flask-Mail's, which takes one mail after the other and says what came of each."""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from math import inf
from typing import Self

import flask_mail
from flask import Flask

from mailer.logs import get_logger
from mailer.message import Outcome, Phase, Verdict
from mailer.mime import WireMessage
from mailer.settings import RelaySettings
from mailer.smtp.dialogue import AT_ONCE, Dialogue, Gone
from mailer.smtp.entrance import Entrance
from mailer.smtp.envelope import envelope_of
from mailer.smtp.limits import ConnectionLimit
from mailer.smtp.session import Session

_TO_NOBODY = Outcome(Verdict.SENT, "250 delivered to nobody")
# After these, nothing more is sent over the connection.
_LAST = (Verdict.UNREACHED, Verdict.DOUBTFUL)

_UNCARRIED = (Phase.CONNECT, Phase.MAIL)
_PLACES = {phase: place for place, phase in enumerate(Phase)}

log = get_logger(__name__)


class RelayConnection(flask_mail.Connection):
    """One connection, opened when it is needed and again when the relay has hung up. Not for two threads at once."""

    host: Session | None

    def __init__(
        self, mail: flask_mail._Mail, settings: RelaySettings, app: Flask, entrance: Entrance, limit: ConnectionLimit
    ) -> None:
        super().__init__(mail)  # type: ignore[arg-type]  # annotated as Mail, used as its state
        self._settings = settings
        self._app = app
        self._entrance = entrance
        self._limit = limit
        self._at_once = AT_ONCE
        self._carried = 0  # mails that this connection was to carry, and the relay did not refuse at MAIL
        self._dialogue: Dialogue | None = None
        self._last_used = time.monotonic()
        self._is_busy = False

    # --- its life ---------------------------------------------------------------------------------

    def try_open(self) -> Outcome | None:
        """Connect, greet, secure and log in, unless that is done; an outcome if it failed."""
        if self.host is not None or self.mail.suppress:
            return None
        entered = self._entrance.enter()
        if isinstance(entered, Outcome):
            return entered
        self.host = entered
        self._dialogue = Dialogue(entered, self._settings, self._at_once)
        self.num_emails = self._carried = 0
        return None

    def close(self) -> None:
        """Say goodbye if the relay listens, and hang up in any case."""
        session = self._let_go()
        if session is not None:
            session.leave()

    def drop(self) -> None:
        """Hang up on a relay that has stopped making sense."""
        session = self._let_go()
        if session is not None:
            session.cut()

    def _let_go(self) -> Session | None:
        """Forget the session, but not how carefully it was spoken to: the next one is with the same relay."""
        if self._dialogue is not None:
            self._at_once = self._dialogue.at_once
        session, self.host, self._dialogue = self.host, None, None
        return session

    def __enter__(self) -> Self:
        if (failure := self.try_open()) is not None:
            raise ConnectionError(failure.reply)
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    @property
    def idle_seconds(self) -> float:
        return time.monotonic() - self._last_used

    @property
    def is_reusable(self) -> bool:
        """Whether it may wait for other mails: it is open, and in the middle of none."""
        return self.host is not None and not self._is_busy

    def is_alive(self) -> bool:
        """Whether the relay is still there, as far as that can be told without asking."""
        return self.host is not None and self.host.is_quiet()

    # --- mails ------------------------------------------------------------------------------------

    def send(self, message: WireMessage, envelope_from: None = None) -> Outcome:  # type: ignore[override]
        """One mail to one recipient, and what came of it."""
        [outcome] = self.transmit(iter([message]))
        return outcome

    def transmit(self, mails: Iterator[WireMessage | None], may_begin: Callable[[], bool] = lambda: True) -> Iterator[Outcome]:
        """Take mail after mail, and tell what came of each, in their order, until one is in doubt or can't be brought at all.

        With PIPELINING, the next mail is taken before the present one is said, so that its envelope rides behind the final dot:
        a mail is one round trip then. `None` stands for "finish what is in flight, then ask again".
        `may_begin` is asked just before the first byte of the mail in flight the longest; a no ends it all.
        A mail that was taken and has no outcome was not begun.
        """
        supply = _Supply(mails)
        ahead: WireMessage | None = None  # taken while the mail before it was in flight
        envelope = b""  # of that mail, if it was said behind the final dot
        self._is_busy = True
        try:
            while (mail := ahead or supply.next()) is not None:
                refusal = self._begin(mail, rode=bool(envelope))
                ahead, envelope = None, b""
                if self._awaits_body:
                    if self._another_may_ride:
                        ahead = supply.ahead()
                        envelope = self._sayable(ahead)
                    if refusal is None and not may_begin():
                        break
                    outcome = self._finish(mail, refusal, envelope)
                else:
                    outcome = refusal or _TO_NOBODY
                self._account(outcome)
                try:
                    yield outcome  # noted before a receiver hears of it, which may be killed
                finally:
                    if outcome.verdict is Verdict.SENT:
                        self._tell(mail)
                del mail  # its bytes are not kept while the next one is composed
                if outcome.verdict in _LAST:
                    break
        finally:
            self._is_busy = False
            self._last_used = time.monotonic()
            if envelope or self._awaits_body:
                self.drop()  # in the middle of a mail that nobody will say

    def _begin(self, mail: WireMessage, *, rode: bool) -> Outcome | None:
        """Say the envelope of a mail, if it was not said yet. None: now the mail itself, if there is anybody to say it to.

        A refusal that may be about the connection, which has carried other mails, is no answer to this mail: it is begun once
        more on a new one, and what is said there is its answer.
        """
        if self.mail.suppress:
            return None
        refusal = self._begin_here(mail, rode=rode)
        if refusal is not None and self._limit.may_be(refusal, self._carried):
            refusal = self._begin_anew(mail, refusal)
        if refusal is None or refusal.phase not in _UNCARRIED:
            self._carried += 1
        return refusal

    def _begin_anew(self, mail: WireMessage, refusal: Outcome) -> Outcome | None:
        """Say the envelope over a new connection, and learn from the answer.

        If that comes to nothing, as when the relay still counts the connection before, nothing is
        learnt, and the mail is tried again later, whatever the refusal was. The next mail finds out
        whether the relay can't be reached.
        """
        carried = self._carried
        if self._is_open and not self._awaits_body:
            self.close()
        else:
            self.drop()
        try:
            answer = self._say_envelope(mail, rode=False, stepwise=True)
        except Gone as gone:
            answer = gone.outcome
        if answer is None or _PLACES[answer.phase] > _PLACES[refusal.phase]:
            self._limit.confirm(refusal, carried)
        elif answer.verdict is Verdict.UNREACHED:
            if refusal.verdict is Verdict.REFUSED:
                return replace(refusal, verdict=Verdict.DEFERRED)
            return refusal
        elif answer.phase is refusal.phase:
            self._limit.refute()
        return answer

    def _begin_here(self, mail: WireMessage, *, rode: bool) -> Outcome | None:
        """Say the envelope over the connection that there is.

        When the connection ends before the mail has begun, it is begun once more on a new one, there command by command, which
        tells at which of them a relay falls silent. So it costs nothing that a relay hangs up between two mails.
        """
        is_new = not self._is_open
        try:
            return self._say_envelope(mail, rode=rode and not is_new, stepwise=rode and is_new)
        except Gone as gone:
            self.drop()
            if gone.outcome.retry_after is not None or (is_new and gone.exact):
                return gone.outcome
        try:
            return self._say_envelope(mail, rode=False, stepwise=True)
        except Gone as gone:
            return gone.outcome

    def _say_envelope(self, mail: WireMessage, *, rode: bool, stepwise: bool) -> Outcome | None:
        if (failure := self.try_open()) is not None:
            return failure
        dialogue = self._dialogue
        assert dialogue is not None
        if rode:
            return dialogue.hear_envelope()
        envelope = envelope_of(mail, dialogue.offers)
        if isinstance(envelope, Outcome):
            return envelope
        return dialogue.begin(envelope, stepwise=stepwise or not dialogue.offers.pipelining)

    @property
    def _another_may_ride(self) -> bool:
        """Whether the relay can take it, and the mail in flight is not the last of this connection."""
        assert self._dialogue is not None
        if not self._dialogue.offers.pipelining or self._limit.is_reached(self._carried):
            return False
        return self.num_emails + 1 < (self._settings.mail_max_emails or inf)

    def _sayable(self, mail: WireMessage | None) -> bytes:
        """Its envelope. One that can't be said does not ride: what is wrong with it is found when its turn comes."""
        assert self._dialogue is not None
        envelope = envelope_of(mail, self._dialogue.offers) if mail is not None else b""
        return self._dialogue.sayable(envelope) if envelope and isinstance(envelope, bytes) else b""

    def _finish(self, mail: WireMessage, refusal: Outcome | None, envelope: bytes) -> Outcome:
        dialogue = self._dialogue
        assert dialogue is not None
        if refusal is None:
            return dialogue.finish(mail.wire(dialogue.offers.eightbit), envelope)
        dialogue.finish_refused(envelope)
        return refusal

    def _account(self, outcome: Outcome) -> None:
        """What an outcome means for the connection."""
        if outcome.verdict is Verdict.UNREACHED or not self._is_open:
            self.drop()
        if outcome.verdict is Verdict.SENT:
            self.num_emails += 1
            if self.num_emails >= (self._settings.mail_max_emails or inf):
                self.close()
        if self._is_open and self._limit.is_reached(self._carried) and not self._awaits_body:
            self._limit.note_closed()
            self.close()

    def _tell(self, mail: WireMessage) -> None:
        if flask_mail.email_dispatched.receivers:
            try:
                flask_mail.email_dispatched.send(self._app, message=mail)
            except Exception:  # whatever a receiver does, the mail was accepted
                log.exception("A receiver of email_dispatched failed; mail %s was delivered all the same.", mail.mail_id)

    @property
    def _is_open(self) -> bool:
        return self.host is not None and self.host.is_open

    @property
    def _awaits_body(self) -> bool:
        return self._dialogue is not None and self._dialogue.awaits_body


class _Supply:
    """The mails there are to send, asked for one at a time, and never again once they have come to their end."""

    def __init__(self, mails: Iterator[WireMessage | None]) -> None:
        self._mails = mails
        self._is_over = False

    def next(self) -> WireMessage | None:
        """The next one; None at the end."""
        while (mail := self.ahead()) is None and not self._is_over:
            pass
        return mail

    def ahead(self) -> WireMessage | None:
        """The next one if it may be taken already."""
        if self._is_over:
            return None
        try:
            return next(self._mails)
        except StopIteration:
            self._is_over = True
            return None
