"""Every fault of a relay, beside a relay that works."""

import json
import socket
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from mailer import Mailer, MailStatus, Status, send_email
from mailer.message import DeliveryStatus, Phase, Verdict
from mailer.store import Store
from tests.chaos.history import Call
from tests.chaos.scenario import Report, Scenario, Size
from tests.chaos.site import Sink, Site, running_site
from tests.services.certificates import make_certificate, server_context
from tests.services.clocks import Clock
from tests.services.script import (
    CLOSE,
    ENDLESS,
    GARBAGE,
    OF_A_CONNECTION,
    RESET,
    SILENCE,
    Point,
    ScriptedRelay,
)
from tests.services.waiting import wait_until

# For each phase. The relay is on this machine, and slow only where a fault makes it so.
TIME_OUT = 3.0
_TIME_OUTS = (
    "MAILER_CONNECT_TIMEOUT",
    "MAILER_COMMAND_TIMEOUT",
    "MAILER_DATA_TIMEOUT",
    "MAILER_REPLY_TIMEOUT",
)
CLOSING, LATER, NEVER = "421 4.3.2 closing", "451 4.3.0 later", "554 5.7.1 never"
UNKNOWN_USER = "550 5.1.1 no such user"
HUGE = "x" * (64 << 20)
UNREACHED, DEFERRED, REFUSED = Verdict.UNREACHED, Verdict.DEFERRED, Verdict.REFUSED
DOUBTFUL, SENT = Verdict.DOUBTFUL, Verdict.SENT
TLS = ("STARTTLS",)


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault of a relay, and the state that the state chart promises for its mail."""

    name: str
    point: Point
    action: str
    verdict: Verdict  #: of the first try; SENT: no failed try is recorded
    phase: Phase = Phase.DOT
    words: str = ""  #: part of the recorded reply
    offers: tuple[str, ...] = ()
    name_of_host: str = "localhost"  #: the host name in the relay's certificate
    least_wait: float = 0.0  #: seconds between the first try and the next
    copies: int = 1  #: recipients; only the first of them is refused
    before: Mapping[Point, str] = field(default_factory=dict)  #: other faults, each once

    @property
    def sender(self) -> str:
        return (
            "".join(letter if letter.isalnum() else "-" for letter in self.name.lower())
            + "@example.com"
        )

    @property
    def ends(self) -> list[Status]:
        """Return the final states of the copies, after the relay is mended."""
        first = {REFUSED: Status.FAILED, DOUBTFUL: Status.DOUBTFUL}.get(self.verdict, Status.SENT)
        return [first, *[Status.SENT] * (self.copies - 1)]


def _faults_at(
    point: Point, phase: Phase, *, closing: Verdict, silent: Verdict, words: str = ""
) -> Iterator[Fault]:
    """Return the faults that can happen at this point."""
    at_connect = phase is Phase.CONNECT
    offers = {"starttls": TLS, "handshake": TLS, "auth": ("AUTH PLAIN",)}.get(point, ())
    if point != "handshake":
        yield Fault(f"421 at {point}", point, CLOSING, closing, phase, CLOSING, offers)
        yield Fault(
            f"4xx at {point}",
            point,
            LATER,
            UNREACHED if at_connect else DEFERRED,
            phase,
            LATER,
            offers,
        )
        yield Fault(
            f"5xx at {point}",
            point,
            NEVER,
            UNREACHED if at_connect else REFUSED,
            phase,
            NEVER,
            offers,
        )
        yield Fault(f"endless reply at {point}", point, ENDLESS, silent, phase, words, offers)
    for action in (CLOSE, SILENCE, GARBAGE) if at_connect else (CLOSE, RESET, SILENCE, GARBAGE):
        yield Fault(f"{action} at {point}", point, action, silent, phase, words, offers)


FAULTS = [
    *_faults_at("greeting", Phase.CONNECT, closing=UNREACHED, silent=UNREACHED),
    *_faults_at("ehlo", Phase.CONNECT, closing=UNREACHED, silent=UNREACHED),
    *_faults_at("starttls", Phase.CONNECT, closing=UNREACHED, silent=UNREACHED),
    *_faults_at("handshake", Phase.CONNECT, closing=UNREACHED, silent=UNREACHED),
    *_faults_at("auth", Phase.CONNECT, closing=UNREACHED, silent=UNREACHED),
    *_faults_at(
        "mail", Phase.MAIL, closing=UNREACHED, silent=UNREACHED, words="connection lost at MAIL"
    ),
    *_faults_at(
        "rcpt", Phase.RCPT, closing=DEFERRED, silent=DEFERRED, words="connection lost at RCPT"
    ),
    *_faults_at(
        "data",
        Phase.DATA,
        closing=DEFERRED,
        silent=DEFERRED,
        words="connection lost before the end of the mail",
    ),
    *_faults_at(
        "dot",
        Phase.DOT,
        closing=DEFERRED,
        silent=DOUBTFUL,
        words="no reply after the end of the mail",
    ),
    Fault(
        "STARTTLS stripped",
        "ehlo",
        "250-relay\r\n250 HELP",
        UNREACHED,
        Phase.CONNECT,
        "offers no STARTTLS",
        TLS,
    ),
    Fault(
        "certificate of another name",
        "handshake",
        "",
        UNREACHED,
        Phase.CONNECT,
        "certificate",
        TLS,
        name_of_host="example.net",
    ),
    Fault("64 MB banner", "greeting", f"220 {HUGE}", SENT),
    Fault("64 MB reply to the dot", "dot", f"250 {HUGE}", SENT),
    Fault("64 MB refusal", "rcpt", f"550 5.1.1 {HUGE}", REFUSED, Phase.RCPT, "550 5.1.1 xxx"),
    Fault("close after 250", "after", CLOSE, SENT),
    Fault("421 after 250", "after", CLOSING, SENT),
    Fault("garbage after 250", "after", GARBAGE, SENT),
    Fault("QUIT hangs", "quit", SILENCE, SENT),
    Fault(
        "421 at RSET",
        "rset",
        CLOSING,
        REFUSED,
        Phase.RCPT,
        UNKNOWN_USER,
        copies=3,
        before={"rcpt": UNKNOWN_USER},
    ),
    Fault(
        "silence at RSET",
        "rset",
        SILENCE,
        REFUSED,
        Phase.RCPT,
        UNKNOWN_USER,
        copies=3,
        before={"rcpt": UNKNOWN_USER},
    ),
    Fault(
        "one of many refused",
        "ehlo",
        "",
        REFUSED,
        Phase.RCPT,
        UNKNOWN_USER,
        copies=5,
        before={"rcpt": UNKNOWN_USER},
    ),
    Fault(
        "greylisting",
        "rcpt",
        "450 4.2.0 Greylisted, try again in 6 seconds",
        DEFERRED,
        Phase.RCPT,
        "Greylisted",
        least_wait=6,
    ),
    Fault(
        "rate limit spelled 550",
        "rcpt",
        "550 5.4.5 Daily user sending limit exceeded",
        DEFERRED,
        Phase.RCPT,
        "5.4.5",
    ),
]


class BrokenRelay(ScriptedRelay):
    """A relay with this fault, until it is mended."""

    def __init__(self, fault: Fault, certificates: Mapping[str, Path]) -> None:
        super().__init__(*fault.offers)
        self.fault = fault
        self._certificates = certificates
        self.do_worst()

    def do_worst(self) -> None:
        for point, action in self.fault.before.items():
            self.faults[self._of(point), point] = [action]
        if self.fault.action:
            self.always(self._of(self.fault.point), self.fault.point, self.fault.action)
        self.tls = server_context(self._certificates[self.fault.name_of_host])

    def mend(self) -> None:
        self.faults.clear()
        self.tls = server_context(self._certificates["localhost"])

    def entry(self) -> dict[str, object]:
        """Return the relay's entry in MAILER_RELAYS."""
        login = (
            {"MAIL_USERNAME": "ada", "MAIL_PASSWORD": "secret"}
            if self.fault.point == "auth"
            else {}
        )
        tls = {"MAIL_USE_TLS": True} if self.fault.offers == TLS else {}
        where = {"name": self.fault.name, "MAIL_SERVER": "localhost", "MAIL_PORT": self.port}
        return {**where, "senders": [self.fault.sender], **tls, **login}

    def _of(self, point: Point) -> str:
        return "" if point in OF_A_CONNECTION else self.fault.sender


@dataclass(frozen=True, slots=True)
class Case:
    """A mail that is sent through a broken relay."""

    relay: BrokenRelay
    call: Call

    @property
    def fault(self) -> Fault:
        return self.relay.fault


def every_fault(folder: Path, size: Size) -> Report:
    """Send through all broken relays and a working one, then mend them."""
    report, cases = Report(), list[Case]()
    with running_site(folder) as site, _broken_relays(folder, FAULTS) as relays:
        site.config |= _configuration(site, relays, folder)
        site.start_worker(concurrency=len(relays) + 8)
        sender = site.start_sender(pause=0.1)
        for _ in range(size.pick(1, 5)):
            now = [Case(relay, _queued(site, relay.fault)) for relay in relays]
            began = time.time()
            wait_until(lambda: all(map(_is_tried, _mails(site, now))), timeout=60)  # noqa: B023 -- called at once
            _expect_verdicts(report, site, now)
            _expect_flow(report, site, since=began, longest=TIME_OUT)
            for relay in relays:
                relay.mend()
            wait_until(lambda: all(map(_rests, _mails(site, now))), timeout=60)  # noqa: B023 -- called at once
            _expect_ends(report, site, now)
            for relay in relays:
                relay.do_worst()
            report.faults += len(now)
            cases += now
        sender.stop()
        site.settle()
        _expect_patience(report, relays)
        report.tally = site.tally()
        _expect_copies(report, site, relays, cases)
    report.expect_nothing_lost()
    return report


@contextmanager
def _broken_relays(folder: Path, faults: Sequence[Fault]) -> Iterator[list[BrokenRelay]]:
    certificates = {
        name: make_certificate(folder / f"{name}.pem", name)
        for name in ("localhost", "example.net")
    }
    with ExitStack() as stack:
        yield [stack.enter_context(BrokenRelay(fault, certificates)) for fault in faults]


def _configuration(site: Site, relays: Sequence[BrokenRelay], folder: Path) -> dict[str, str]:
    """Route mail to the broken relays by sender, and all other mail to the working one.

    A batch is one mail, so that no mail waits for another in its batch.
    """
    authorities = folder / "authorities.pem"
    authorities.write_bytes(
        b"".join((folder / f"{name}.pem").read_bytes() for name in ("localhost", "example.net"))
    )
    well = {"name": "well", "MAIL_SERVER": "127.0.0.1", "MAIL_PORT": site.sink.port}
    return {
        "MAILER_RELAYS": json.dumps([well, *(relay.entry() for relay in relays)]),
        "MAILER_TLS_CA_FILE": str(authorities),
        "MAILER_IDLE_TIMEOUT": "1",
        "MAILER_RELAY_REST": "1",
        "MAILER_RELAY_REST_LONGEST": "2",
        "MAILER_RETRY_FIRST": "2",
        "MAILER_RETRY_FACTOR": "1",
        "MAILER_RETRY_ATTEMPTS": "1000",
        "MAILER_DOUBT_RESEND_AFTER": "3600",
        "MAILER_BATCH_SECONDS": "0.01",
        **dict.fromkeys(_TIME_OUTS, str(TIME_OUT)),
    }


# --- checks of the promises ---------------------------------------------------------------------


def _queued(site: Site, fault: Fault) -> Call:
    to = [f"reader{number}@example.org" for number in range(fault.copies)]
    with site.app().test_request_context():
        receipt = send_email(to, "Chaos", "welcome", name="reader", sender=fault.sender)
    return Call(to[0], 0.0, receipt.id, receipt.message_id)


def _mails(site: Site, cases: Sequence[Case]) -> list[MailStatus]:
    """Return the status of each case's mail, in the order of the cases."""
    with site.app().app_context():
        found = Mailer().statuses([case.call.mail_id for case in cases])
    return [found[case.call.mail_id] for case in cases]


def _is_tried(mail: MailStatus) -> bool:
    return any(copy.history or copy.status is Status.SENT for copy in mail)


def _rests(mail: MailStatus) -> bool:
    return all(copy.status.is_final or copy.status is Status.DOUBTFUL for copy in mail)


def _expect_verdicts(report: Report, site: Site, cases: Sequence[Case]) -> None:
    """Check the first failed try of each mail."""
    for case, mail in zip(cases, _mails(site, cases), strict=True):
        fault, tries = case.fault, [attempt for copy in mail for attempt in copy.history]
        if fault.verdict is SENT:
            report.expect(not tries, f"{fault.name}: {tries}")
        elif tries:
            found = tries[0]
            as_promised = (found.verdict, found.phase) == (
                fault.verdict,
                fault.phase,
            ) and fault.words in found.reply
            report.expect(
                as_promised, f"{fault.name}: {found.verdict} at {found.phase}: {found.reply}"
            )


def _expect_flow(report: Report, site: Site, *, since: float, longest: float) -> None:
    """Check that mail of the working relay does not wait for the broken ones."""
    moments = [since, *(moment for moment in site.sink.moments() if moment > since), time.time()]
    found = max(later - earlier for earlier, later in pairwise(moments))
    report.remarks.append(
        f"the longest time without a mail through the working relay: {found:.1f} s"
    )
    report.expect(found < longest, f"the working relay got no mail for {found:.1f} s")


def _expect_ends(report: Report, site: Site, cases: Sequence[Case]) -> None:
    for case, mail in zip(cases, _mails(site, cases), strict=True):
        fault, copies = case.fault, [*mail]
        ends = sorted(copy.status for copy in copies)
        report.expect(ends == sorted(fault.ends), f"{fault.name}: {', '.join(ends)}")
        for copy in copies:
            # A relay that can't be reached costs no attempt, however often it was tried.
            deferred = sum(attempt.verdict is DEFERRED for attempt in copy.history)
            report.expect(
                copy.attempts == 1 + deferred,
                f"{fault.name}: {copy.attempts} attempts, {deferred} deferred",
            )
        waited = _wait_of(copies[0])
        report.expect(waited >= fault.least_wait, f"{fault.name}: tried again after {waited:.1f} s")


def _wait_of(copy: DeliveryStatus) -> float:
    if not copy.history or copy.finished_at is None:
        return 0.0
    return (copy.finished_at - copy.history[0].at).total_seconds()


def _expect_patience(report: Report, relays: Sequence[BrokenRelay]) -> None:
    """Check how long workers waited for a silent relay, as the relay measured it.

    On a busy machine, the shortest of many waits is nearest to the time-out.
    """
    waits = {relay.fault.name: min(relay.waited_for) for relay in relays if relay.waited_for}
    report.remarks.append(
        f"{len(waits)} silent relays were given up, after {max(waits.values()):.1f} s at most"
    )
    for name, seconds in waits.items():
        report.expect(seconds < TIME_OUT + 0.5, f"{name}: a slot was held for {seconds:.1f} s")


def _expect_copies(
    report: Report, site: Site, relays: Sequence[BrokenRelay], cases: Sequence[Case]
) -> None:
    """Check the number of copies that arrived.

    Sent mail arrived once, at its relay or at the working one; doubtful mail at most once; refused
    mail never.
    """
    elsewhere = Counter(site.sink.taken())
    for relay in relays:
        own = [case for case in cases if case.relay is relay]
        ends = Counter(end for case in own for end in case.fault.ends)
        copies = len(relay.acknowledged + relay.unanswered) + sum(
            elsewhere[case.call.message_id] for case in own
        )
        least, most = ends[Status.SENT], ends[Status.SENT] + ends[Status.DOUBTFUL]
        report.expect(
            least <= copies <= most,
            f"{relay.fault.name}: {copies} copies arrived, {least} sent, {most - least} in doubt",
        )


# --- the only relay is down ---------------------------------------------------------------------


def away(folder: Path, size: Size) -> Report:
    """Take the only relay down for ten minutes or an hour, by a clock that jumps between tries.

    Its mail waits without losing attempts, the tries are few, and the mail is sent when the relay
    is back. Mail that has waited for longer than the maximum fails and says why.
    """
    report, clock = Report(), Clock(folder / "clock")
    with running_site(folder) as site:
        site.config |= {**clock.env, "MAILER_RETRY_ATTEMPTS": "1"}
        site.sink.stop()
        site.start_worker(concurrency=1)
        site.start_sender(count=5).wait()
        rests = _sit_out(site, clock, size.pick(600, 3600))
        report.faults = len(rests)
        report.remarks.append(f"between tries: {', '.join(f'{rest:.0f}' for rest in rests)} s")
        report.expect(rests[-1] > 200, "the relay is still tried as often as at the beginning")
        _start(site.sink)
        clock.set(sum(rests) + 2 * len(rests))
        site.settle()
        report.tally = site.tally()
        report.expect_nothing_lost()
        paid = {copy.attempts for mail in site.mails() for copy in mail}
        report.expect(paid == {1}, f"attempts of the mails: {paid}")
        _expect_given_up(report, site, clock)
    return report


def _sit_out(site: Site, clock: Clock, seconds: float) -> list[float]:
    """Return the seconds between the tries until so much time has passed."""
    store, rests = Store(site.config["MAILER_DATABASE_URL"]), list[float]()
    while sum(rests) < seconds:
        ahead = sum(rests) + len(rests)
        clock.set(ahead)
        until = wait_until(lambda: _rests_until(store, failures=len(rests) + 1), timeout=30)
        rests.append(until - time.time() - ahead)
    store.engine.dispose()
    return rests


def _rests_until(store: Store, failures: int) -> float:
    return next(
        (
            pause.until or 0.0
            for pause in store.relay_pauses().values()
            if pause.failures == failures
        ),
        0.0,
    )


def _start(sink: Sink) -> None:
    """Return when the relay accepts connections."""
    sink.start()
    wait_until(lambda: _listens(sink.port))


def _listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def _expect_given_up(report: Report, site: Site, clock: Clock) -> None:
    site.sink.stop()
    site.start_sender(count=1).wait()
    clock.set(6 * 86400)
    site.settle()
    [failed] = [copy for mail in site.mails() for copy in mail if copy.status is Status.FAILED]
    report.expect("too old for another try" in (failed.reply or ""), f"given up: {failed.reply}")


# --- all slots of a worker ----------------------------------------------------------------------


#: After ten seconds without an answer, the sweep assumes that all slots are stuck.
_DEAF_SECONDS = 14.0


def stalling(folder: Path, size: Size) -> Report:
    """Let one of two busy relays fall silent to all slots of the only worker.

    Mail of the other one flows again long before the time-out.
    """
    report, seconds = Report(faults=1), size.pick(25.0, 60.0)
    silent = Fault("silence after the dot", "dot", SILENCE, DOUBTFUL)
    with running_site(folder) as site, _broken_relays(folder, [silent]) as relays:
        site.config |= _configuration(site, relays, folder)
        site.config |= dict.fromkeys(_TIME_OUTS, str(seconds)) | {"MAILER_BATCH_SECONDS": "1"}
        [relay] = relays
        relay.mend()
        site.start_worker()
        site.start_sender(pause=0.02)
        site.start_sender(pause=0.02, sender=silent.sender)
        wait_until(lambda: site.sink.count() > 20 and len(relay.acknowledged) > 20, timeout=60)
        began = time.time()
        relay.do_worst()
        wait_until(lambda: time.time() - began > seconds, timeout=2 * seconds)
        _expect_flow(report, site, since=began, longest=_DEAF_SECONDS)
        for sender in site.senders:
            sender.stop()
    return report


SCENARIOS = [
    Scenario("SMTP: every fault", every_fault),
    Scenario("SMTP: the only relay is down", away),
    Scenario("SMTP: a silent relay holds all slots", stalling),
]
