"""The meaning of relays' replies, by their codes and their words."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mailer.message import Phase, Verdict
from mailer.policy import GREYLISTED_FOR, LEAST_ASKED, MOST_ASKED, Answer, classify

SENT, DEFERRED, REFUSED, UNREACHED = (
    Verdict.SENT,
    Verdict.DEFERRED,
    Verdict.REFUSED,
    Verdict.UNREACHED,
)
CONNECT, MAIL, RCPT, DATA, DOT = Phase

Reply = tuple[Phase, int, str]

phases = st.sampled_from(Phase)
codes = st.integers(-1, 999)
# Words of real replies in any order, so that not all input is noise.
words = st.sampled_from(
    "250 550 2.0.0 4.7.1 5.7.1 5.1.1 5.2.2 (#5.7.1) ok queued sent greylisted try again later in"
    " for 5 300 99999999 0 minutes seconds days rate limit exceeded too many messages mailbox full"
    " relay access denied authentication required client host starttls".split()
)
texts = st.one_of(
    st.text(),
    st.lists(words, max_size=30).map(" ".join),
    st.lists(words, max_size=30).map("\n".join),
)


# --- by the code alone --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "connect", "mail", "rcpt", "data", "dot"),
    [
        (250, UNREACHED, DEFERRED, DEFERRED, DEFERRED, SENT),
        # The relay is closing; at MAIL this cannot be about the mail.
        (421, UNREACHED, UNREACHED, DEFERRED, DEFERRED, DEFERRED),
        (450, UNREACHED, DEFERRED, DEFERRED, DEFERRED, DEFERRED),
        (451, UNREACHED, DEFERRED, DEFERRED, DEFERRED, DEFERRED),
        (452, UNREACHED, DEFERRED, DEFERRED, DEFERRED, DEFERRED),
        (454, UNREACHED, DEFERRED, DEFERRED, DEFERRED, DEFERRED),
        (530, UNREACHED, UNREACHED, DEFERRED, DEFERRED, DEFERRED),  # about our login
        (534, UNREACHED, UNREACHED, DEFERRED, DEFERRED, DEFERRED),
        (535, UNREACHED, UNREACHED, DEFERRED, DEFERRED, DEFERRED),
        (538, UNREACHED, UNREACHED, DEFERRED, DEFERRED, DEFERRED),
        (550, UNREACHED, REFUSED, REFUSED, REFUSED, REFUSED),
        # At RCPT an old way to say "too many recipients".
        (552, UNREACHED, REFUSED, DEFERRED, REFUSED, REFUSED),
        (553, UNREACHED, REFUSED, REFUSED, REFUSED, REFUSED),
        # As a greeting: the relay refuses the connection.
        (554, UNREACHED, REFUSED, REFUSED, REFUSED, REFUSED),
        (354, UNREACHED, DEFERRED, DEFERRED, DEFERRED, DEFERRED),
        (600, UNREACHED, DEFERRED, DEFERRED, DEFERRED, DEFERRED),
        (-1, UNREACHED, DEFERRED, DEFERRED, DEFERRED, DEFERRED),
    ],
)
def test_what_a_code_means(
    code: int, connect: Verdict, mail: Verdict, rcpt: Verdict, data: Verdict, dot: Verdict
) -> None:
    """The meaning of a code without words depends on the phase of the dialogue."""
    assert [classify(phase, code, "").verdict for phase in Phase] == [
        connect,
        mail,
        rcpt,
        data,
        dot,
    ]


# --- by the enhanced code -----------------------------------------------------------------------


@pytest.mark.parametrize("status", ["5.2.2", "5.3.1", "5.4.5", "5.5.3"])
def test_codes_that_can_only_be_passing(status: str) -> None:
    """Enhanced codes that name a temporary trouble defer a mail, even with a 5xx (RFC 3463)."""
    assert [classify(phase, 554, f"{status} no").verdict for phase in Phase] == [
        UNREACHED,
        *[DEFERRED] * 4,
    ]


@pytest.mark.parametrize("status", ["5.7.8", "5.7.10", "5.7.11", "5.7.12", "5.7.57"])
def test_codes_about_our_login(status: str) -> None:
    """Enhanced codes about our login blame the relay's configuration, not the mail (RFC 5248)."""
    assert [classify(phase, 550, f"{status} no").verdict for phase in Phase] == [
        UNREACHED,
        UNREACHED,
        *[DEFERRED] * 3,
    ]


@pytest.mark.parametrize("status", ["5.2.3", "5.3.4"])
def test_codes_for_what_is_too_big(status: str) -> None:
    """A mail that is too big is refused, even if the reply mentions a limit."""
    assert classify(MAIL, 552, f"{status} limit exceeded") == Answer(REFUSED)


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        pytest.param(
            (RCPT, 550, "4.2.0 <ada@example.com>: Recipient address rejected"),
            DEFERRED,
            id="a 5xx with 4.y.z",
        ),
        pytest.param(
            (RCPT, 450, "5.1.1 <ada@example.com>: Recipient address rejected"),
            REFUSED,
            id="a 4xx with 5.y.z",
        ),
        pytest.param(
            (RCPT, 553, "sorry, no mailbox here by that name (#4.1.1)"),
            DEFERRED,
            id="qmail puts it last",
        ),
        pytest.param((RCPT, 450, "#5.1.1 bad address"), REFUSED, id="with a hash"),
        pytest.param(
            (RCPT, 450, "450-5.1.1 bad address\r\n450 5.1.1 of a stranger"),
            REFUSED,
            id="after the code",
        ),
        pytest.param(
            (DOT, 554, "Transaction failed\n4.3.0 mail server temporary refusal"),
            DEFERRED,
            id="on the second line",
        ),
        pytest.param(
            (DOT, 554, "4.9.126.1 is listed"), REFUSED, id="no enhanced code but an address"
        ),
        pytest.param(
            (DOT, 554, "version 4.2.0 of the filter says no"),
            REFUSED,
            id="no enhanced code but a version",
        ),
        pytest.param((DOT, 554, "2.0.0 no"), REFUSED, id="a 5xx with 2.y.z"),
        pytest.param(
            (RCPT, 421, "5.7.0 closing"), DEFERRED, id="a 421 is closing, whatever else it says"
        ),
        pytest.param((RCPT, 552, "5.1.1 no such user"), REFUSED, id="a 552 to RCPT that says more"),
    ],
)
def test_the_enhanced_code_comes_first(reply: Reply, verdict: Verdict) -> None:
    """The enhanced code counts where the basic code contradicts it."""
    assert classify(*reply) == Answer(verdict)


# --- by the words -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "reply",
    [
        pytest.param(
            (MAIL, 550, "5.4.5 Daily user sending limit exceeded. For more information"),
            id="Gmail, a day",
        ),
        pytest.param(
            (RCPT, 550, "5.7.1 Daily SMTP relay limit exceeded for user."), id="Gmail relay, a day"
        ),
        pytest.param(
            (
                RCPT,
                550,
                (
                    "5.2.1 The user you are trying to contact is receiving mail at a rate that\n"
                    "5.2.1 prevents additional messages"
                ),
            ),
            id="Gmail, a recipient",
        ),
        pytest.param(
            (
                DOT,
                550,
                (
                    "5.7.1 Our system has detected an unusual rate of unsolicited mail originating"
                    " from your IP address."
                ),
            ),
            id="Gmail, our host",
        ),
        pytest.param(
            (DOT, 550, "5.7.0 Requested action not taken: too many emails per second"),
            id="Mailtrap",
        ),
        pytest.param((RCPT, 550, "Connection frequency limited"), id="QQ"),
        pytest.param((RCPT, 554, "sorry, too many emails (#5.7.1)"), id="OVH"),
        pytest.param(
            (DOT, 550, "5.4.6 Unusual sending activity detected. Please try after sometime."),
            id="Zoho",
        ),
        pytest.param(
            (DOT, 550, "5.4.6 Unusual sending activity detected. Click UnblockMe."),
            id="Zoho, with a button",
        ),
        pytest.param((DOT, 550, "5.7.1 Your mail limit has been reached."), id="StartMail"),
        pytest.param(
            (
                DOT,
                550,
                (
                    "Domain example.com has exceeded the max emails per hour (500/500 (100%))"
                    " allowed. Message discarded."
                ),
            ),
            id="cPanel",
        ),
        pytest.param(
            (
                RCPT,
                550,
                (
                    "Domain example.com has exceeded the max defers and failures per hour"
                    " (5/5 (100%)) allowed."
                ),
            ),
            id="cPanel, failures",
        ),
        pytest.param(
            (DOT, 554, "5.2.0 STOREDRV.Submission.Exception:SubmissionQuotaExceededException"),
            id="Exchange Online",
        ),
        pytest.param(
            (DOT, 550, "5.2.252 Sender throttled due to continuous send as denied errors."),
            id="Exchange Online, throttle",
        ),
        pytest.param(
            (
                RCPT,
                550,
                (
                    "5.1.90 Your message can't be sent because you've reached your daily limit for"
                    " message recipients"
                ),
            ),
            id="Outlook.com",
        ),
        pytest.param(
            (RCPT, 550, "5.5.3 Too many recipients"), id="one recipient is never too many"
        ),
        pytest.param((DOT, 554, "5.7.1 rate limited"), id="rate limited"),
        pytest.param((DOT, 550, "Temporarily blocked due to repeated bad requests"), id="SendGrid"),
        pytest.param(
            (DOT, 554, "5.7.1 Service unavailable; try again later"), id="another try is asked for"
        ),
        pytest.param(
            (RCPT, 450, "5.7.1 Service unavailable, please retry later"),
            id="another try is asked for with a 450",
        ),
    ],
)
def test_a_limit_is_no_refusal(reply: Reply) -> None:
    """A sending limit defers a mail, even with a 5xx."""
    assert classify(*reply) == Answer(DEFERRED)


@pytest.mark.parametrize(
    "reply",
    [
        pytest.param(
            (RCPT, 552, "5.2.2 The email account that you tried to reach is over quota"), id="Gmail"
        ),
        pytest.param((DOT, 552, "5.2.2 <ada@example.com>: user is over quota"), id="Dovecot"),
        pytest.param(
            (RCPT, 552, "5.1.1 Boite du destinataire pleine. Recipient overquota. OFR_417 [417]"),
            id="Orange",
        ),
        pytest.param(
            (DOT, 554, "Quota exceeded (mailbox for user is full)"), id="no enhanced code"
        ),
        pytest.param(
            (RCPT, 550, "Mailbox is full / Blocks limit exceeded / Inode limit exceeded"),
            id="hMailServer",
        ),
        pytest.param((DOT, 552, "<ada@example.com>: Mailbox full"), id="at the dot"),
    ],
)
def test_a_full_mailbox_may_be_tidied_up(reply: Reply) -> None:
    """A full mailbox defers a mail."""
    assert classify(*reply) == Answer(DEFERRED)


@pytest.mark.parametrize(
    "reply",
    [
        pytest.param(
            (RCPT, 550, "5.1.1 <ada@example.com>: Recipient address rejected: User unknown"),
            id="Postfix",
        ),
        pytest.param(
            (
                RCPT,
                550,
                (
                    "5.1.1 The email account that you tried to reach does not exist. Please try\n"
                    "5.1.1 double-checking"
                ),
            ),
            id="Gmail",
        ),
        pytest.param(
            (RCPT, 550, "5.2.1 The email account that you tried to reach is disabled."),
            id="Gmail, disabled",
        ),
        pytest.param(
            (RCPT, 550, "5.4.1 Recipient address rejected: Access denied."), id="Exchange Online"
        ),
        pytest.param((RCPT, 550, "Unrouteable address"), id="Exim"),
        pytest.param((MAIL, 552, "5.3.4 Message size exceeds fixed limit"), id="Postfix, too big"),
        pytest.param(
            (DOT, 552, "5.2.3 Your message exceeded Google's message size limits."),
            id="Gmail, too big",
        ),
        pytest.param((MAIL, 552, "Message size exceeds the limit"), id="too big, no enhanced code"),
        pytest.param(
            (DOT, 550, "maximum allowed line length is 998 octets, got 1250"),
            id="Exim, a long line",
        ),
        pytest.param((DOT, 554, "5.4.0 Error: too many hops"), id="Postfix, a loop"),
        pytest.param(
            (DOT, 554, "5.4.14 Hop count exceeded - possible mail loop"), id="Exchange, a loop"
        ),
        pytest.param((DOT, 550, "5.7.1 Spam score exceeds the limit of 7.5"), id="a spam filter"),
        pytest.param(
            (
                DOT,
                550,
                "5.7.1 Our system has detected that this message is likely unsolicited mail.",
            ),
            id="Gmail, spam",
        ),
        pytest.param(
            (DOT, 550, "5.7.26 Unauthenticated email from example.com is not accepted"),
            id="Gmail, DMARC",
        ),
        pytest.param((DOT, 554, "5.7.9 Message not accepted for policy reasons."), id="Yahoo"),
        pytest.param(
            (DOT, 554, "Message rejected: Email address is not verified."), id="Amazon SES"
        ),
        pytest.param(
            (RCPT, 550, "5.1.6 Temporary e-mail addresses are not welcome"),
            id="an address that is called temporary",
        ),
        pytest.param(
            (MAIL, 550, "5.7.60 SMTP; Client does not have permissions to send as this sender"),
            id="Exchange, a sender",
        ),
        pytest.param(
            (
                DOT,
                554,
                "5.2.252 SendAsDenied; ada@example.com not allowed to send as bob@example.com",
            ),
            id="Exchange, as",
        ),
        pytest.param(
            (MAIL, 553, "5.7.1 <bob@example.com>: Sender address rejected: not owned by user ada"),
            id="Postfix, a sender",
        ),
        pytest.param(
            (MAIL, 550, "5.1.8 <ada@example.com>: Sender address rejected: Domain not found"),
            id="Postfix, a domain",
        ),
        pytest.param(
            (MAIL, 550, "5.7.23 SPF: your IP is not allowed to send for example.com"), id="SPF"
        ),
    ],
)
def test_what_is_the_mails_own(reply: Reply) -> None:
    """Unknown users, spam, size and forbidden senders refuse a mail."""
    assert classify(*reply) == Answer(REFUSED)


ABOUT_US = [
    pytest.param(530, "5.7.57 Client not authenticated to send mail.", id="Exchange Online, 530"),
    pytest.param(
        550,
        "5.7.57 SMTP; Client was not authenticated to send anonymous mail",
        id="Exchange Online",
    ),
    pytest.param(530, "5.7.0 Must issue a STARTTLS command first", id="RFC 3207"),
    pytest.param(451, "5.7.3 STARTTLS is required to send mail", id="Exchange, STARTTLS"),
    pytest.param(530, "5.5.1 Authentication Required. For more information, go to", id="Gmail"),
    pytest.param(
        534, "5.7.14 Please log in via your web browser and then try again.", id="Gmail, browser"
    ),
    pytest.param(534, "5.7.9 Application-specific password required.", id="Gmail, password"),
    pytest.param(535, "5.7.8 Username and Password not accepted.", id="Gmail, login"),
    pytest.param(550, "5.7.8 Authentication credentials invalid", id="5.7.8 with another code"),
    pytest.param(502, "5.7.0 Please authenticate first", id="Brevo"),
    pytest.param(550, "authentication required", id="Exim, no login"),
    pytest.param(550, "5.7.1 Client was not authenticated", id="Exchange"),
    pytest.param(550, "Unauthenticated senders not allowed", id="SendGrid"),
    pytest.param(
        503,
        "This mail server requires authentication when attempting to send to a non-local address",
        id="MailEnable",
    ),
    pytest.param(
        553,
        "5.7.1 <ada@example.com>: Sender address rejected: not logged in",
        id="Postfix, no login",
    ),
    pytest.param(554, "5.7.1 <ada@example.com>: Relay access denied", id="Postfix, relay"),
    pytest.param(550, "5.7.1 <ada@example.com>... Relaying denied", id="Sendmail"),
    pytest.param(550, "relay not permitted", id="Exim"),
    pytest.param(
        550, "5.7.54 SMTP; Unable to relay recipient in non-accepted domain", id="Exchange, relay"
    ),
    pytest.param(550, "5.7.1 Invalid credentials for relay [192.0.2.1].", id="Gmail relay"),
    pytest.param(
        553, "sorry, that domain isn't in my list of allowed rcpthosts (#5.7.1)", id="qmail"
    ),
    pytest.param(
        554,
        "5.7.1 <unknown[192.0.2.1]>: Client host rejected: Access denied",
        id="Postfix, our host",
    ),
    pytest.param(
        554,
        "5.7.1 Service unavailable; Client host [192.0.2.1] blocked using zen.spamhaus.org",
        id="a block list",
    ),
    pytest.param(
        550, "5.7.606 Access denied, banned sending IP [192.0.2.1]", id="Exchange, our host"
    ),
    pytest.param(
        550,
        "5.7.708 Service unavailable. Access denied, traffic not accepted from this IP.",
        id="5.7.708",
    ),
    pytest.param(
        554, "Message rejected: Sending paused for this account.", id="Amazon SES, paused"
    ),
    pytest.param(
        554,
        "Access denied: User `arn:aws:iam::1:user/ses' is not authorized to perform"
        " `ses:SendRawEmail' on resource",
        id="Amazon SES, no right",
    ),
]


@pytest.mark.parametrize(("code", "text"), ABOUT_US)
def test_what_is_about_us_fails_no_mail(code: int, text: str) -> None:
    """A reply about our login or TLS fails no mail.

    At MAIL it means the relay; later it may mean this recipient only, so the mail is deferred.
    """
    assert classify(MAIL, code, text) == Answer(UNREACHED)
    assert [classify(phase, code, text) for phase in (RCPT, DATA, DOT)] == [Answer(DEFERRED)] * 3


def test_an_address_in_a_reply_is_not_read() -> None:
    """An address in a reply does not change its meaning, since strangers choose addresses."""
    for mailbox in ("starttls", "greylisted", "throttled", "try-again-in-5-minutes"):
        for text in (
            f"5.1.8 <{mailbox}@example.com>: no such domain",
            f"5.1.8 {mailbox}@example.com: no such domain",
        ):
            assert classify(MAIL, 550, text) == Answer(REFUSED)


# --- "try again in" -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "retry_after"),
    [
        pytest.param(
            (
                RCPT,
                450,
                "4.2.0 <ada@example.com>: Recipient address rejected: Greylisted for 60 seconds",
            ),
            60,
            id="postgrey",
        ),
        pytest.param((RCPT, 450, "4.7.1 Greylisted for 5 minutes"), 300, id="SQLgrey"),
        pytest.param(
            (RCPT, 451, "4.7.1 Greylisting in action, please come back in 00:30:00"),
            1800,
            id="milter-greylist",
        ),
        pytest.param((RCPT, 451, "Greylisted, please try again in 900 seconds"), 900, id="Exim"),
        pytest.param(
            (RCPT, 450, "4.2.0 Greylisting in action, please try again in 5 minutes"),
            300,
            id="minutes",
        ),
        pytest.param((RCPT, 422, "try again in 15 seconds"), 15, id="a 422"),
        pytest.param(
            (DOT, 550, "Too many messages. Try again in 92 seconds."),
            92,
            id="a 550 that names a time",
        ),
        pytest.param(
            (DOT, 554, "5.7.1 Your host is blocked for 24 hours"),
            86_400,
            id="a 554 that names a time",
        ),
        pytest.param(
            (CONNECT, 550, "Too many messages. Try again in 92 seconds."), 92, id="at the login"
        ),
        pytest.param(
            (MAIL, 421, "4.7.0 Too many connections, try again in 2 minutes"), 120, id="at MAIL"
        ),
        pytest.param((RCPT, 451, "please retry after 300 seconds"), 300, id="retry after"),
        pytest.param((RCPT, 451, "come back in 4 min"), 240, id="min"),
        pytest.param((RCPT, 451, "will be available in 10m"), 600, id="m"),
        pytest.param((RCPT, 451, "rate limited, try again in 4m39s"), 279, id="as Go writes it"),
        pytest.param((RCPT, 451, "please wait 1 hour and 5 minutes"), 3900, id="two units"),
        pytest.param((RCPT, 451, "try again in at least 2.5 minutes"), 150, id="a fraction"),
        pytest.param(
            (RCPT, 451, "Too many attempts. Please try again in 3 minute(s)."), 180, id="minute(s)"
        ),
        pytest.param((RCPT, 451, "try again in an hour"), 3600, id="an hour"),
        pytest.param(
            (RCPT, 451, "4.7.1 try again later\n4.7.1 in 10 minutes"), 600, id="on two lines"
        ),
        pytest.param(
            (RCPT, 451, "451-4.7.1 try again in\r\n451 4.7.1 10 minutes"), 600, id="with its codes"
        ),
        pytest.param((RCPT, 450, "try again in 450 seconds"), 450, id="a time like a code"),
        pytest.param((RCPT, 451, "TRY AGAIN IN 5 MINUTES"), 300, id="loud"),
        pytest.param((RCPT, 451, "try again in 0 seconds"), LEAST_ASKED, id="at once"),
        pytest.param((RCPT, 451, "try again in 30 days"), MOST_ASKED, id="next month"),
        pytest.param((RCPT, 451, "try again later"), None, id="no time"),
        pytest.param((RCPT, 451, "try again as soon as you can"), None, id="as soon"),
        pytest.param(
            (RCPT, 451, "4.7.0 Try again later, closing connection. 5d1443fb00a9-20 - gsmtp"),
            None,
            id="Gmail",
        ),
        pytest.param(
            (RCPT, 451, "4.7.0 Try again later - 5d1443fb00a9-20"), None, id="the name of a mail"
        ),
        pytest.param(
            (RCPT, 451, "only 5 recipients per 5 minutes, try again later"),
            None,
            id="a time that is a rate",
        ),
        pytest.param(
            (RCPT, 451, "try again later: the limit is 100 mails in 60 minutes"),
            None,
            id="a rate at the end",
        ),
        pytest.param((RCPT, 451, "4.4.2 timeout after 30 seconds"), None, id="a time-out"),
    ],
)
def test_the_time_that_is_asked_for(reply: Reply, retry_after: float | None) -> None:
    """A time that a reply names is read in its usual spellings, and defers a mail with any code."""
    expected = UNREACHED if reply[0] in (CONNECT, MAIL) else DEFERRED

    assert classify(*reply) == Answer(expected, retry_after)


@pytest.mark.parametrize(
    "reply",
    [
        pytest.param(
            (
                RCPT,
                450,
                (
                    "4.2.0 <ada@example.com>: Recipient address rejected: Greylisted, see"
                    " http://example.com"
                ),
            ),
            id="postgrey",
        ),
        pytest.param(
            (DOT, 451, "4.7.1 Greylisting in action, please come back later"), id="at the dot"
        ),
        pytest.param(
            (RCPT, 422, "4.2.2 Greylisted, please try again in a few moments."), id="Stalwart"
        ),
        pytest.param((MAIL, 450, "4.7.1 Client host rejected: Greylisted"), id="at MAIL"),
        pytest.param((RCPT, 550, "5.7.1 Graylisted"), id="with a 550"),
    ],
)
def test_greylisting_takes_five_minutes(reply: Reply) -> None:
    """Greylisting without a time means five minutes."""
    assert classify(*reply) == Answer(DEFERRED, GREYLISTED_FOR)


@pytest.mark.parametrize(
    "reply",
    [
        pytest.param((RCPT, 451, "4.7.1 Try again later"), id="rspamd"),
        pytest.param(
            (RCPT, 451, "4.7.500 Server busy. Please try again later from [192.0.2.1]. (S77714)"),
            id="Exchange Online",
        ),
        pytest.param(
            (
                RCPT,
                451,
                (
                    "4.7.652 The mail server [192.0.2.1] has exceeded the maximum number of"
                    " connections."
                ),
            ),
            id="Outlook.com",
        ),
        pytest.param(
            (DOT, 432, "4.3.2 Concurrent connections limit exceeded."),
            id="Exchange Online, connections",
        ),
        pytest.param(
            (DOT, 454, "Throttling failure: Maximum sending rate exceeded."),
            id="Amazon SES, a second",
        ),
        pytest.param(
            (DOT, 454, "Throttling failure: Daily message quota exceeded."), id="Amazon SES, a day"
        ),
        pytest.param(
            (
                RCPT,
                421,
                "4.7.0 [TSS04] Messages from 192.0.2.1 temporarily deferred due to user complaints",
            ),
            id="Yahoo",
        ),
        pytest.param(
            (DOT, 421, "4.7.28 Our system has detected an unusual rate of unsolicited mail"),
            id="Gmail",
        ),
        pytest.param(
            (
                RCPT,
                450,
                "4.2.1 The user you are trying to contact is receiving mail at a rate that",
            ),
            id="Gmail, a recipient",
        ),
        pytest.param((MAIL, 452, "4.3.1 Insufficient system storage"), id="Postfix, its disk"),
        pytest.param((RCPT, 452, "4.5.3 Error: too many recipients"), id="Postfix, recipients"),
        pytest.param((MAIL, 450, "4.7.1 Error: too much mail from 192.0.2.1"), id="Postfix, mails"),
        pytest.param(
            (
                MAIL,
                450,
                "Requested mail action not taken: mailbox unavailable\nMail send limit exceeded.",
            ),
            id="IONOS",
        ),
        pytest.param((RCPT, 452, "Too many recipients received this hour"), id="SendGrid"),
    ],
)
def test_what_passes(reply: Reply) -> None:
    """A 4xx that names no time defers a mail by the back-off."""
    assert classify(*reply) == Answer(DEFERRED)


# --- whatever they say --------------------------------------------------------------------------


@given(phase=phases, code=codes, text=texts)
def test_a_mail_is_sent_by_one_reply_only(phase: Phase, code: int, text: str) -> None:
    """Only a 2xx to the final dot means that a mail was sent, and no reply means a doubt."""
    answer = classify(phase, code, text)

    assert (answer == Answer(SENT)) == (phase is DOT and 200 <= code < 300)
    assert answer.verdict is not Verdict.DOUBTFUL


@given(code=codes, text=texts)
def test_nothing_at_the_connection_is_held_against_a_mail(code: int, text: str) -> None:
    """No reply before MAIL is held against a mail."""
    assert classify(CONNECT, code, text).verdict is UNREACHED


@given(
    phase=st.sampled_from([RCPT, DATA, DOT]),
    code=codes.filter(lambda code: code not in {530, 534, 535, 538}),
    text=texts,
)
def test_no_words_about_one_recipient_close_a_relay(phase: Phase, code: int, text: str) -> None:
    """No reply after MAIL makes the relay count as unreached, whatever its words."""
    assert classify(phase, code, text).verdict is not UNREACHED


@given(phase=phases, code=codes, text=texts)
@example(phase=RCPT, code=451, text="try again in 99999999999999999999 days")
@example(phase=RCPT, code=451, text="try again in 1 hour 1 hour 1 hour" + " 1 hour" * 500)
@example(phase=RCPT, code=451, text="try again in ٣ minutes")
@example(phase=RCPT, code=554, text="<" * 5000 + "@" * 5000)
def test_what_is_asked_for_is_within_reason(phase: Phase, code: int, text: str) -> None:
    """A time that a reply names is bounded, and a final reply names none."""
    answer = classify(phase, code, text)

    assert answer.retry_after is None or LEAST_ASKED <= answer.retry_after <= MOST_ASKED
    if answer.verdict in (SENT, REFUSED):
        assert answer.retry_after is None
