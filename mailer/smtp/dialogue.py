"""The mail transactions of a session, with an exact outcome for each mail."""

import smtplib

from mailer.message import Outcome, Phase, Verdict
from mailer.message.text import printable
from mailer.policy import classify
from mailer.settings import RelaySettings
from mailer.smtp.advice import for_reply
from mailer.smtp.envelope import Offers
from mailer.smtp.replies import GO_ON, YES, code_of, text_of, words_of
from mailer.smtp.session import Session

# The commands of an envelope, and the first digits of their positive replies.
_PHASES = [Phase.MAIL, Phase.RCPT, Phase.DATA]
_YES = [YES, YES, GO_ON]
AT_ONCE = len(_YES)
_NO = b"45"
_NOTHING = [b"", b"", b""]
_CLOSING = b"421"
_LONE_DOT = b".\r\n"
# The size from which a mail and the next envelope are sent separately, to spare a copy.
_COPIED = 65536

# The outcomes of a lost connection. At RCPT and DATA, the mail may be the cause: a counted try.
_SILENCE = {
    Phase.MAIL: (Verdict.UNREACHED, "connection lost at MAIL"),
    Phase.RCPT: (Verdict.DEFERRED, "connection lost at RCPT"),
    Phase.DATA: (Verdict.DEFERRED, "connection lost before the end of the mail"),
    Phase.DOT: (Verdict.DOUBTFUL, "no reply after the end of the mail"),
}


class SessionLost(Exception):
    """The session ended before the mail began, so that another session may send it."""

    def __init__(self, outcome: Outcome, *, exact: bool) -> None:
        super().__init__(outcome.reply)
        self.outcome = outcome  #: the outcome, unless another session sends the mail
        self.exact = exact  #: whether the failed command is certain; among pipelined ones it is not


class Dialogue:
    """The exchange of commands and replies in an open session."""

    def __init__(self, session: Session, settings: RelaySettings, at_once: int = AT_ONCE) -> None:
        self.session = session
        self.offers: Offers = Offers.of(session)
        self.awaits_body: bool = False  #: the relay has replied 354
        self._needs_reset = False
        self._settings = settings
        #: Commands to send at once; each other one waits for the previous reply.
        self.at_once: int = at_once
        self._unsent = _NOTHING  # commands of the present envelope

    # --- the envelope ----------------------------------------------------------------------------

    def begin(self, envelope: bytes, *, stepwise: bool) -> Outcome | None:
        """Send an envelope, command by command if `stepwise`.

        Return None if the relay waits for the mail, or else the refusal.
        """
        seconds = self._settings.command_timeout
        resets, self._needs_reset = self._needs_reset, False
        try:
            if stepwise:
                self._unsent = envelope.splitlines(keepends=True)
                if resets:
                    self.session.send_bytes(b"RSET\r\n", self.session.courtesy_seconds)
                    self._expect_reset(self.session.courtesy_seconds)
                return self.receive_envelope()
            commands = self.to_send_at_once(envelope)
            self.session.send_bytes(b"RSET\r\n" + commands if resets else commands, seconds)
            if resets:
                self._expect_reset(seconds)
        except OSError as error:
            raise SessionLost(self._silent(Phase.MAIL, error), exact=False) from None
        return self.receive_envelope()

    def to_send_at_once(self, envelope: bytes) -> bytes:
        """Return the part of an envelope to send at once. `receive_envelope` sends the rest.

        After a refusal, commands that depend on a refused one wait for its reply: many relays count
        them as errors, and close the connection after a few errors.
        """
        at_once = self.at_once
        if at_once == AT_ONCE:
            self._unsent = _NOTHING
            return envelope
        lines = envelope.splitlines(keepends=True)
        self._unsent = [*_NOTHING[:at_once], *lines[at_once:]]
        return b"".join(lines[:at_once])

    def _expect_reset(self, seconds: float) -> None:
        reply = self.session.receive_reply(seconds)
        if reply[0] != YES:
            raise smtplib.SMTPServerDisconnected(words_of(reply))

    def receive_envelope(self) -> Outcome | None:
        """Read the replies to an envelope. Send the rest of it after each positive reply.

        Return None if the relay waits for the mail, or else the refusal.
        """
        session, seconds = self.session, self._settings.command_timeout
        unsent, self._unsent = self._unsent, _NOTHING
        replies: list[bytes] = []
        lost: OSError | None = None
        refused = False
        try:
            for command, yes in zip(unsent, _YES, strict=True):
                if command:
                    if refused:
                        break
                    session.send_bytes(command, seconds)
                replies.append(reply := session.receive_reply(seconds))
                refused = refused or reply[0] != yes
                if reply.startswith(_CLOSING):
                    break
        except OSError as error:
            lost = error
        self.awaits_body = [reply[0] for reply in replies] == _YES
        return None if self.awaits_body else self._not_begun(replies, lost, unsent)

    def _not_begun(
        self, replies: list[bytes], lost: OSError | None, unsent: list[bytes]
    ) -> Outcome:
        """Return the refusal, and make the session ready for another mail or abort it."""
        refused = next(
            (
                at
                for at, (reply, yes) in enumerate(zip(replies, _YES, strict=False))
                if reply[0] != yes
            ),
            None,
        )
        if refused is None:
            assert lost is not None
            raise SessionLost(
                self._silent(_PHASES[len(replies)], lost), exact=bool(unsent[len(replies)])
            )
        self.at_once = min(self.at_once, refused + 1)
        refusal = self._answer(_PHASES[refused], replies[refused])
        if replies[-1].startswith(_CLOSING):
            self.session.abort()
            if refused == len(replies) - 1:
                raise SessionLost(refusal, exact=True)
        elif lost is not None or refusal.verdict is Verdict.UNREACHED or _are_odd(replies):
            self.session.abort()
        elif replies[-1][0] != GO_ON:
            self._needs_reset = refused > 0
        elif replies[1][0] != YES and not self.session.is_lmtp:
            self.awaits_body = True
        else:  # a final dot would send an empty mail, or get no reply
            self.session.abort()
        return refusal

    # --- the mail --------------------------------------------------------------------------------

    def send_body(self, body: bytes, next_envelope: bytes) -> Outcome:
        """Send a mail and, behind its final dot, the next envelope. Return the outcome."""
        self.awaits_body = False
        session = self.session
        if session.has_unread:
            return self._unfinished(
                smtplib.SMTPServerDisconnected("the relay replied before the end of the mail")
            )
        try:
            if len(body) < _COPIED:
                session.send_bytes(body + next_envelope, self._settings.data_timeout, is_mail=True)
            else:
                session.send_bytes(body, self._settings.data_timeout, next_envelope, is_mail=True)
        except OSError as error:
            if session.sent < len(body):
                return self._unfinished(error)
        try:
            reply = session.receive_reply(self._settings.reply_timeout)
        except OSError as error:
            return self._silent(Phase.DOT, error)
        if reply[0] == YES:
            self.at_once = AT_ONCE
            return Outcome(Verdict.SENT, words_of(reply))
        if reply.startswith(_CLOSING):
            session.abort()
        return self._answer(Phase.DOT, reply)

    def send_empty_body(self, next_envelope: bytes) -> None:
        """End the transaction of a refused recipient with an empty mail, which goes to nobody."""
        self.awaits_body = False
        try:
            self.session.send_bytes(_LONE_DOT + next_envelope, self._settings.command_timeout)
            if self.session.receive_reply(self._settings.command_timeout).startswith(_CLOSING):
                self.session.abort()
        except OSError:
            self.session.abort()

    def _unfinished(self, error: OSError) -> Outcome:
        """Return the outcome of a mail that was sent in part: a refusal, or a lost connection."""
        try:
            reply = self.session.receive_reply(self.session.courtesy_seconds)
        except OSError:
            reply = b""
        if reply and reply[0] not in (YES, GO_ON):
            refusal = self._answer(Phase.DATA, reply)
            self.session.abort()
            return refusal
        return self._silent(Phase.DATA, error)

    # --- outcomes ----------------------------------------------------------------------------

    def _answer(self, phase: Phase, reply: bytes) -> Outcome:
        code, text = code_of(reply), text_of(reply)
        answer = classify(phase, code, text)
        about_us = (
            for_reply(code, text, self._settings) if answer.verdict is Verdict.UNREACHED else ""
        )
        return Outcome(answer.verdict, words_of(reply), phase, answer.retry_after, about_us)

    def _silent(self, phase: Phase, error: OSError) -> Outcome:
        """Return the outcome of a lost connection: doubt only after the final dot."""
        self.session.abort()
        verdict, words = _SILENCE[phase]
        return Outcome(
            verdict,
            f"{words}: {printable(f'{type(error).__name__}: {error}')}",
            phase,
            is_silence=True,
        )


def _are_odd(replies: list[bytes]) -> bool:
    """Return whether a reply belongs to another command: the following ones would, too."""
    return any(reply[0] not in (yes, *_NO) for reply, yes in zip(replies, _YES, strict=False))
