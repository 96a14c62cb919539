"""A connection to a relay, which sends mail after mail and yields their outcomes."""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from logging import Logger
from math import inf
from typing import Self

import flask_mail
from flask import Flask

from mailer.logs import get_logger
from mailer.message import Outcome, Phase, Verdict
from mailer.mime import WireMessage
from mailer.settings import RelaySettings
from mailer.smtp.dialogue import AT_ONCE, Dialogue, SessionLost
from mailer.smtp.envelope import envelope_of
from mailer.smtp.limits import ConnectionLimit
from mailer.smtp.opening import SessionOpener
from mailer.smtp.session import Session

_TO_NOBODY = Outcome(Verdict.SENT, "250 delivered to nobody")
# After these verdicts, nothing more is sent over the connection.
_LAST = (Verdict.UNREACHED, Verdict.DOUBTFUL)

_UNCARRIED = (Phase.CONNECT, Phase.MAIL)
_PLACES = {phase: place for place, phase in enumerate(Phase)}

log: Logger = get_logger(__name__)


class RelayConnection(flask_mail.Connection):
    """A connection, opened on demand and again after the relay closed it. Not thread-safe."""

    host: Session | None
    num_emails: int

    def __init__(
        self,
        mail: flask_mail._Mail,
        settings: RelaySettings,
        app: Flask,
        opener: SessionOpener,
        limit: ConnectionLimit,
    ) -> None:
        super().__init__(mail)  # type: ignore[arg-type]  # annotated as Mail, used as its state
        self._settings = settings
        self._app = app
        self._opener = opener
        self._limit = limit
        self._at_once = AT_ONCE
        self._carried = 0  # mails that the relay did not refuse at MAIL
        self._dialogue: Dialogue | None = None
        self._last_used = time.monotonic()
        self._is_busy = False

    # --- open and close --------------------------------------------------------------------------

    def try_open(self) -> Outcome | None:
        """Open a session, unless there is one. Return the failure, if any."""
        if self.host is not None or self.mail.suppress:
            return None
        opened = self._opener.open()
        if isinstance(opened, Outcome):
            return opened
        self.host = opened
        self._dialogue = Dialogue(opened, self._settings, self._at_once)
        self.num_emails = self._carried = 0
        return None

    def close(self) -> None:
        """Send QUIT, if that is possible at once, and close the connection."""
        session = self._let_go()
        if session is not None:
            session.leave()

    def drop(self) -> None:
        """Close the connection without QUIT."""
        session = self._let_go()
        if session is not None:
            session.abort()

    def _let_go(self) -> Session | None:
        """Detach the session. Keep its number of commands at once for the next session."""
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
        """True if the connection is open and in no transaction."""
        return self.host is not None and not self._is_busy

    def is_alive(self) -> bool:
        """Return whether the relay seems to be there, without asking it."""
        return self.host is not None and self.host.is_quiet()

    # --- mails -----------------------------------------------------------------------------------

    def send(self, message: WireMessage, envelope_from: None = None) -> Outcome:  # type: ignore[override]
        """Send a mail to its recipient, and return the outcome."""
        mails = iter([message])
        [outcome] = self.exchange(lambda: next(mails, None))
        return outcome

    def exchange(
        self,
        next_mail: Callable[[], WireMessage | None],
        may_begin: Callable[[], bool] = lambda: True,
    ) -> Iterator[Outcome]:
        """Send mails, and yield their outcomes in order, until one is unreached or in doubt.

        `next_mail` returns the mail to send next, or None if none may be sent now. With PIPELINING,
        it is called before the present mail is sent, so that the next envelope goes behind the
        final dot: one round trip per mail. After None, it is called again when the present mail has
        its outcome; None without a mail in flight is the end. `may_begin` is called just before the
        first byte of a body; False ends everything. A mail without an outcome was not begun.
        """
        ahead: WireMessage | None = None  # taken while the previous mail was in flight
        envelope = b""  # of that mail, if it went behind the final dot
        self._is_busy = True
        try:
            while (mail := ahead or next_mail()) is not None:
                refusal = self._begin(mail, is_sent=bool(envelope))
                ahead, envelope = None, b""
                if self._awaits_body:
                    if self._may_pipeline:
                        ahead = next_mail()
                        envelope = self._envelope_ahead(ahead)
                    if refusal is None and not may_begin():
                        break
                    outcome = self._end(mail, refusal, envelope)
                else:
                    outcome = refusal or _TO_NOBODY
                self._account(outcome)
                try:
                    yield outcome  # recorded before a receiver, which may be killed, is called
                finally:
                    if outcome.verdict is Verdict.SENT:
                        self._tell(mail)
                del mail  # free its bytes while the next one is composed
                if outcome.verdict in _LAST:
                    break
        finally:
            self._is_busy = False
            self._last_used = time.monotonic()
            if envelope or self._awaits_body:
                self.drop()  # in the middle of a transaction

    def _begin(self, mail: WireMessage, *, is_sent: bool) -> Outcome | None:
        """Send the envelope of a mail, unless it was sent. Return the refusal, if any.

        If a refusal may be about a connection that has carried other mails, begin the mail again on
        a new connection, whose reply is final.
        """
        if self.mail.suppress:
            return None
        refusal = self._begin_here(mail, is_sent=is_sent)
        if refusal is not None and self._limit.may_be(refusal, self._carried):
            refusal = self._begin_anew(mail, refusal)
        if refusal is None or refusal.phase not in _UNCARRIED:
            self._carried += 1
        return refusal

    def _begin_anew(self, mail: WireMessage, refusal: Outcome) -> Outcome | None:
        """Send the envelope over a new connection, and learn from the reply.

        If that fails, as when the relay still counts the old connection, nothing is learnt, and the
        mail is tried again later, whatever the refusal was. The next mail finds out whether the
        relay is unreachable.
        """
        carried = self._carried
        if self._is_open and not self._awaits_body:
            self.close()
        else:
            self.drop()
        try:
            answer = self._send_envelope(mail, is_sent=False, stepwise=True)
        except SessionLost as gone:
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

    def _begin_here(self, mail: WireMessage, *, is_sent: bool) -> Outcome | None:
        """Send the envelope over the present connection.

        If the connection ends before the mail begins, send it over a new one, command by command,
        to know at which of them the relay fails. So a relay may close connections between mails.
        """
        is_new = not self._is_open
        try:
            return self._send_envelope(
                mail, is_sent=is_sent and not is_new, stepwise=is_sent and is_new
            )
        except SessionLost as gone:
            self.drop()
            if gone.outcome.retry_after is not None or (is_new and gone.exact):
                return gone.outcome
        try:
            return self._send_envelope(mail, is_sent=False, stepwise=True)
        except SessionLost as gone:
            return gone.outcome

    def _send_envelope(self, mail: WireMessage, *, is_sent: bool, stepwise: bool) -> Outcome | None:
        if (failure := self.try_open()) is not None:
            return failure
        dialogue = self._dialogue
        assert dialogue is not None
        if is_sent:
            return dialogue.receive_envelope()
        envelope = envelope_of(mail, dialogue.offers)
        if isinstance(envelope, Outcome):
            return envelope
        return dialogue.begin(envelope, stepwise=stepwise or not dialogue.offers.pipelining)

    @property
    def _may_pipeline(self) -> bool:
        """True if the relay offers PIPELINING, and the mail in flight is not the last."""
        assert self._dialogue is not None
        if not self._dialogue.offers.pipelining or self._limit.is_reached(self._carried):
            return False
        return self.num_emails + 1 < (self._settings.mail_max_emails or inf)

    def _envelope_ahead(self, mail: WireMessage | None) -> bytes:
        """Return the envelope to send ahead. It is empty if the mail will be refused."""
        assert self._dialogue is not None
        envelope = envelope_of(mail, self._dialogue.offers) if mail is not None else b""
        return (
            self._dialogue.to_send_at_once(envelope)
            if envelope and isinstance(envelope, bytes)
            else b""
        )

    def _end(self, mail: WireMessage, refusal: Outcome | None, envelope: bytes) -> Outcome:
        """Send the body, or end the transaction of a refused mail, with the next envelope."""
        dialogue = self._dialogue
        assert dialogue is not None
        if refusal is None:
            return dialogue.send_body(mail.wire(dialogue.offers.eightbit), envelope)
        dialogue.send_empty_body(envelope)
        return refusal

    def _account(self, outcome: Outcome) -> None:
        """Count a mail, and close the connection after its last one."""
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
            except Exception:  # the mail was accepted nevertheless
                log.exception("Receiver of email_dispatched failed: mail=%s", mail.mail_id)

    @property
    def _is_open(self) -> bool:
        return self.host is not None and self.host.is_open

    @property
    def _awaits_body(self) -> bool:
        return self._dialogue is not None and self._dialogue.awaits_body
