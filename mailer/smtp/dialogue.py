"""The transactions of one session, with exact books: which mail the relay has, has not, and may have."""

import smtplib

from mailer.message import Outcome, Phase, Verdict
from mailer.message.text import printable
from mailer.policy import classify
from mailer.settings import RelaySettings
from mailer.smtp.advice import for_reply
from mailer.smtp.envelope import Offers
from mailer.smtp.replies import GO_ON, YES, code_of, text_of, words_of
from mailer.smtp.session import Session

# Of an envelope, and how each reply has to begin.
_PHASES = [Phase.MAIL, Phase.RCPT, Phase.DATA]
_YES = [YES, YES, GO_ON]
AT_ONCE = len(_YES)
_NO = b"45"
_NOTHING = [b"", b"", b""]
_CLOSING = 421
_LONE_DOT = b".\r\n"
# A larger mail is not copied once more to have the next envelope behind it: that goes after it.
_COPIED = 65536

# What it means that the relay fell silent. At RCPT and DATA it may be this mail that it can't bear: that counts as a try.
_SILENCE = {
    Phase.MAIL: (Verdict.UNREACHED, "connection lost at MAIL"),
    Phase.RCPT: (Verdict.DEFERRED, "connection lost at RCPT"),
    Phase.DATA: (Verdict.DEFERRED, "connection lost before the end of the mail"),
    Phase.DOT: (Verdict.DOUBTFUL, "no reply after the end of the mail"),
}


class Gone(Exception):
    """The session ended before the mail had begun, so that it may be given to another one."""

    def __init__(self, outcome: Outcome, *, exact: bool) -> None:
        super().__init__(outcome.reply)
        self.outcome = outcome  #: what it came to, if there is no other session for it
        self.exact = exact  #: whether it is certain at which command that was; of several that were said at once, it is not


class Dialogue:
    """What is said in a session once it is open."""

    def __init__(self, session: Session, settings: RelaySettings, at_once: int = AT_ONCE) -> None:
        self.session = session
        self.offers = Offers.of(session)
        self.awaits_body = False  #: the relay has said 354
        self._needs_reset = False
        self._settings = settings
        self.at_once = at_once  #: commands of an envelope; the others wait for the reply to the one before
        self._unsaid = _NOTHING  # of the present envelope

    # --- the envelope -----------------------------------------------------------------------------

    def begin(self, envelope: bytes, *, stepwise: bool) -> Outcome | None:
        """Say it, at once or command by command. None: the relay waits for the mail; an outcome: it does not want it."""
        seconds = self._settings.command_timeout
        resets, self._needs_reset = self._needs_reset, False
        try:
            if stepwise:
                self._unsaid = envelope.splitlines(keepends=True)
                if resets:
                    self.session.say(b"RSET\r\n", self.session.courtesy_seconds)
                    self._expect_reset(self.session.courtesy_seconds)
                return self.hear_envelope()
            said = self.sayable(envelope)
            self.session.say(b"RSET\r\n" + said if resets else said, seconds)
            if resets:
                self._expect_reset(seconds)
        except OSError as error:
            raise Gone(self._silent(Phase.MAIL, error), exact=False) from None
        return self.hear_envelope()

    def sayable(self, envelope: bytes) -> bytes:
        """Return what may be said at once of an envelope; `hear_envelope` says the rest.

        After a refusal, what would be in vain after another one waits for the reply: many relays count it as an error of
        ours, and hang up after a few of them.
        """
        at_once = self.at_once
        if at_once == AT_ONCE:
            self._unsaid = _NOTHING
            return envelope
        lines = envelope.splitlines(keepends=True)
        self._unsaid = [*_NOTHING[:at_once], *lines[at_once:]]
        return b"".join(lines[:at_once])

    def _expect_reset(self, seconds: float) -> None:
        reply = self.session.hear(seconds)
        if reply[0] != YES:
            raise smtplib.SMTPServerDisconnected(words_of(reply))

    def hear_envelope(self) -> Outcome | None:
        """Return what the replies to an envelope mean. What was not said yet is said once the command before it has a yes."""
        session, seconds = self.session, self._settings.command_timeout
        unsaid, self._unsaid = self._unsaid, _NOTHING
        replies: list[bytes] = []
        lost: OSError | None = None
        refused = False
        try:
            for command, yes in zip(unsaid, _YES, strict=True):
                if command:
                    if refused:
                        break
                    session.say(command, seconds)
                replies.append(reply := session.hear(seconds))
                refused = refused or reply[0] != yes
                if code_of(reply) == _CLOSING:
                    break
        except OSError as error:
            lost = error
        self.awaits_body = [reply[0] for reply in replies] == _YES
        return None if self.awaits_body else self._not_begun(replies, lost, unsaid)

    def _not_begun(self, replies: list[bytes], lost: OSError | None, unsaid: list[bytes]) -> Outcome:
        """What it means, and what it takes until the session can go on with another mail."""
        refused = next((at for at, (reply, yes) in enumerate(zip(replies, _YES, strict=False)) if reply[0] != yes), None)
        if refused is None:
            assert lost is not None
            raise Gone(self._silent(_PHASES[len(replies)], lost), exact=bool(unsaid[len(replies)]))
        self.at_once = min(self.at_once, refused + 1)
        refusal = self._answer(_PHASES[refused], replies[refused])
        if code_of(replies[-1]) == _CLOSING:
            self.session.cut()
            if refused == len(replies) - 1:
                raise Gone(refusal, exact=True)
        elif lost is not None or refusal.verdict is Verdict.UNREACHED or _are_odd(replies):
            self.session.cut()
        elif replies[-1][0] != GO_ON:
            self._needs_reset = refused > 0
        elif replies[1][0] != YES and not self.session.is_lmtp:
            self.awaits_body = True
        else:  # a lone dot would send an empty mail, or have no reply
            self.session.cut()
        return refusal

    # --- the mail ---------------------------------------------------------------------------------

    def finish(self, body: bytes, next_envelope: bytes) -> Outcome:
        """Say the mail to its final dot, and what may ride behind that; the relay's answer, or what its silence means."""
        self.awaits_body = False
        session = self.session
        if session.has_unread:
            return self._unfinished(smtplib.SMTPServerDisconnected("the relay answered a mail that it did not have"))
        try:
            if len(body) < _COPIED:
                session.say(body + next_envelope, self._settings.data_timeout, is_mail=True)
            else:
                session.say(body, self._settings.data_timeout, next_envelope, is_mail=True)
        except OSError as error:
            if session.taken < len(body):
                return self._unfinished(error)
        try:
            reply = session.hear(self._settings.reply_timeout)
        except OSError as error:
            return self._silent(Phase.DOT, error)
        if reply[0] == YES:
            self.at_once = AT_ONCE
            return Outcome(Verdict.SENT, words_of(reply))
        if code_of(reply) == _CLOSING:
            session.cut()
        return self._answer(Phase.DOT, reply)

    def finish_refused(self, next_envelope: bytes) -> None:
        """End the mail of a recipient who was refused: it has no bytes, and goes to nobody."""
        self.awaits_body = False
        try:
            self.session.say(_LONE_DOT + next_envelope, self._settings.command_timeout)
            if code_of(self.session.hear(self._settings.command_timeout)) == _CLOSING:
                self.session.cut()
        except OSError:
            self.session.cut()

    def _unfinished(self, error: OSError) -> Outcome:
        """The relay took no more. If it had said why, that is its answer; a yes to half a mail is none."""
        try:
            reply = self.session.hear(self.session.courtesy_seconds)
        except OSError:
            reply = b""
        if reply and reply[0] not in (YES, GO_ON):
            refusal = self._answer(Phase.DATA, reply)
            self.session.cut()
            return refusal
        return self._silent(Phase.DATA, error)

    # --- what it means ----------------------------------------------------------------------------

    def _answer(self, phase: Phase, reply: bytes) -> Outcome:
        code, text = code_of(reply), text_of(reply)
        answer = classify(phase, code, text)
        about_us = for_reply(code, text, self._settings) if answer.verdict is Verdict.UNREACHED else ""
        return Outcome(answer.verdict, words_of(reply), phase, answer.retry_after, about_us)

    def _silent(self, phase: Phase, error: OSError) -> Outcome:
        """No reply. After the final dot nobody knows; before it, the relay has no mail."""
        self.session.cut()
        verdict, words = _SILENCE[phase]
        return Outcome(verdict, f"{words}: {printable(f'{type(error).__name__}: {error}')}", phase, is_silence=True)


def _are_odd(replies: list[bytes]) -> bool:
    """Neither a yes nor a no: they belong to other commands, and so would all that follow."""
    return any(reply[0] not in (yes, *_NO) for reply, yes in zip(replies, _YES, strict=False))
