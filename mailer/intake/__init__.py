"""Mail comes in: checked, rendered, stored, and only then is the bell rung.

Whatever is wrong with a mail is said here, at the call, before anything is stored.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import lru_cache, partial
from logging import Logger

import flask_mail
from sqlalchemy import Connection

from mailer.attendance import Watch
from mailer.content import Renderer, Snapshot
from mailer.errors import (
    InvalidMail,
    MissingRecipient,
    MissingSender,
    is_time_limit,
)
from mailer.intake.arguments import (
    Undo,
    When,
    check_iterable,
    check_metadata,
    check_on_doubt,
    check_sensitive,
    check_tags,
    check_tenant,
    check_time,
    check_undo,
)
from mailer.intake.bulk import (
    BulkImport,
    BulkMail,
    BulkOptions,
    check_hours,
    check_recipients,
)
from mailer.intake.bulk_rows import RowReader
from mailer.intake.changes import note_queued
from mailer.intake.content import Content
from mailer.intake.from_flask_mail import (
    check_date,
    check_message_id,
    check_smtp_options,
    convert_attachment,
    read_bodies,
    read_subject,
)
from mailer.intake.idempotency import Fingerprints
from mailer.intake.limits import check_limits, size_of, while_small
from mailer.intake.machine_headers import MachineHeaders
from mailer.intake.recording import Accepted, Recorder
from mailer.intake.rehearsal import RehearsalRun
from mailer.logs import addresses_shown, get_logger
from mailer.message import (
    Address,
    AddressLike,
    Attachment,
    Envelope,
    Key,
    Lane,
    Message,
    OnDoubt,
    Receipt,
    check_headers,
    check_text,
    evaluate,
    new_bulk_id,
    new_id,
    new_message_id,
    parse_addresses,
)
from mailer.message.bulk import Rehearsal
from mailer.message.ports import Bell, Clock
from mailer.settings import Settings
from mailer.store import AfterCommit, CallersConnection, NewBulk, Store, connection_of

Addresses = AddressLike | Iterable[AddressLike] | None

# So many mails of a bulk send are released by the call, before the sweep goes on.
_FIRST_OF_BULK = 1000

_SENDER = "sender"

log: Logger = get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The options of a call, in the caller's words."""

    lane: Lane | str = Lane.NORMAL
    send_at: When = None
    undo: Undo = None
    expires_at: When = None
    on_doubt: OnDoubt | str = OnDoubt.RESEND
    tenant: str | None = None
    sensitive: bool = False
    tags: Iterable[str] = ()
    metadata: Mapping[str, str] | None = None
    idempotency_key: str | None = None
    connection: CallersConnection | None = None
    inline: bool = False  #: deliver in the calling thread, before the call returns
    #: Call workers even in Celery's eager mode. With MAIL_SUPPRESS_SEND it makes no difference.
    by_workers: bool = False


class Intake:
    """The way in, for one app."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        renderer: Renderer,
        bell: Bell,
        clock: Clock,
        watch: Watch | None = None,
        inline: Bell | None = None,
    ) -> None:
        self._settings = settings
        self._store = store
        self._renderer = renderer
        self.bell = bell  #: a test may replace it
        self.recorder: Recorder | None = None  #: set by a test
        self._clock = clock
        self._watch = watch
        self._inline = inline or bell  # for mail that is delivered at once
        self._fingerprints = Fingerprints(settings.secret_keys)
        self._machine_headers = MachineHeaders(settings.machine_headers)
        #: As in Flask-Mail, an application may change these two while it runs.
        self.default_sender: AddressLike | None = settings.mail_default_sender
        self.ascii_attachments: bool = settings.mail_ascii_attachments

    def send_email(
        self,
        to: Addresses,
        subject: str,
        content: Content,
        *,
        cc: Addresses,
        bcc: Addresses,
        reply_to: Addresses,
        sender: AddressLike | None,
        attachments: Iterable[Attachment | flask_mail.Attachment] | None,
        headers: Mapping[str, str | None] | None,
        options: Options,
    ) -> Receipt:
        """Render the content and queue the mail."""
        now = self._clock.time()
        bodies = content.render(self._renderer)
        author = self._sender(sender)
        mail_id = new_id(now)
        message = Message(
            id=mail_id,
            message_id=new_message_id(mail_id, author),
            created_at=now,
            sender=author,
            subject=" ".join(
                filter(
                    None,
                    [
                        self._settings.subject_prefix,
                        check_text(subject, field="subject", quoted=False),
                    ],
                )
            ),
            text=bodies.text,
            html=bodies.html,
            to=self._addresses(to, field="to"),
            cc=self._addresses(cc, field="cc"),
            reply_to=self._addresses(reply_to, field="reply_to"),
            headers=check_headers(headers),
            attachments=self._attachments(attachments),
            tags=check_tags(options.tags),
            metadata=check_metadata(options.metadata),
            sensitive=check_sensitive(options.sensitive),
        )
        return self._accept(
            message,
            self._addresses(bcc, field="bcc"),
            options,
            now,
            content,
            complete=partial(self._machine_headers.add_to, given=headers),
        )

    def enqueue(
        self, mail: flask_mail.Message, options: Options, envelope_from: AddressLike | None = None
    ) -> Receipt:
        """Queue a message of Flask-Mail as it is. It gets no machine headers."""
        if not isinstance(mail, flask_mail.Message):
            raise InvalidMail(f"message: give a Message of Flask-Mail, not {type(mail).__name__}.")
        now = self._clock.time()
        text, html, alternatives = read_bodies(mail)
        message = Message(
            id=new_id(now),
            message_id=check_message_id(mail.msgId),
            created_at=now,
            date=check_date(mail.date),
            sender=self._sender(mail.sender),
            envelope_from=Address.parse(envelope_from, field="envelope_from").email
            if envelope_from
            else None,
            subject=read_subject(mail),
            text=text,
            html=html,
            alternatives=alternatives,
            to=self._addresses(mail.recipients, field="recipients"),
            cc=self._addresses(mail.cc, field="cc"),
            reply_to=self._addresses(mail.reply_to, field="reply_to"),
            headers=check_headers(mail.extra_headers),
            attachments=self._attachments(mail.attachments),
            tags=check_tags(options.tags),
            metadata=check_metadata(options.metadata),
            sensitive=check_sensitive(options.sensitive),
            mail_options=check_smtp_options(mail.mail_options, field="mail_options"),
            rcpt_options=check_smtp_options(mail.rcpt_options, field="rcpt_options"),
        )
        receipt = self._accept(message, self._addresses(mail.bcc, field="bcc"), options, now)
        with suppress(Exception):  # the mail is stored, whatever a subclass of Message does
            if mail.date is None:
                mail.date = now  # as Flask-Mail's send() does
            note_queued(mail)
        return receipt

    def send_bulk(
        self, mail: BulkMail, recipients: Iterable[object], options: Options, bulk: BulkOptions
    ) -> str:
        """Snapshot the templates and store the recipients. Return the id of the bulk send."""
        bulk.check()
        check_recipients(recipients)
        now = self._clock.time()
        message, snapshot, size = self._bulk_message(mail, options, now)
        said = replace(message, text=snapshot.digest)
        key = self._fingerprints.key(options.idempotency_key, said, ())
        envelope = _envelope((), size, key, options, now, self._settings)
        new = NewBulk(
            message=self._machine_headers.add_to(message, envelope, mail.headers),
            envelope=envelope,
            snapshot=snapshot.to_json(),
            state=bulk.first_state,
            max_failed_share=bulk.max_failed_share,
            calendar=bulk.calendar,
            undo=_undo_window(options, self._settings) if bulk.start == "complete" else 0.0,
        )
        check_hours(bulk.calendar, new.envelope.due_at, new.envelope.expires_at)
        reader = self._row_reader(size)
        earlier = partial(self._fingerprints.check_same, key, said)
        bulk_id = BulkImport(self._store, self._clock, reader, new, bulk, earlier).run(recipients)
        # The sweep begins a send with hours.
        if bulk.calendar is None or self._settings.mail_suppress_send:
            self._begin_bulk(bulk_id, new.envelope.lane)
        return bulk_id

    def rehearse_bulk(
        self, mail: BulkMail, recipients: Iterable[object], options: Options, bulk: BulkOptions
    ) -> Rehearsal:
        """Render the mail of each recipient, and store nothing."""
        bulk.check()
        check_recipients(recipients)
        now = self._clock.time()
        message, snapshot, size = self._bulk_message(mail, options, now)
        envelope = _envelope((), size, None, options, now, self._settings)
        check_hours(bulk.calendar, envelope.due_at, envelope.expires_at)
        return RehearsalRun(
            self._settings,
            self._clock,
            self._row_reader(size),
            self._renderer.of_snapshot(snapshot),
            self._machine_headers.add_to(message, envelope, mail.headers),
            envelope.lane,
            bulk.progress,
        ).run(recipients)

    def _row_reader(self, shared_size: int) -> RowReader:
        return RowReader(
            max_size=self._settings.max_size,
            max_header=self._settings.max_header,
            shared_size=shared_size,
        )

    def _bulk_message(
        self, mail: BulkMail, options: Options, now: float
    ) -> tuple[Message, Snapshot, int]:
        """Return what the mails of a bulk send have in common, their templates, and its size."""
        subject = check_text(mail.subject, field="subject", quoted=False)
        snapshot = self._renderer.take_snapshot(subject, mail.template, mail.locales, mail.shared)
        author, bulk_id = self._sender(mail.sender), new_bulk_id(now)
        message = Message(
            id=bulk_id,
            message_id=new_message_id(bulk_id, author),
            created_at=now,
            sender=author,
            subject=subject,
            text=None,
            html=None,
            to=(),
            reply_to=self._addresses(mail.reply_to, field="reply_to"),
            headers=check_headers(mail.headers),
            attachments=self._attachments(mail.attachments),
            tags=check_tags(options.tags),
            metadata=check_metadata(options.metadata),
        )
        size = size_of(message) + len(snapshot.to_json())
        check_limits(message, size, (), self._settings)
        return message, snapshot, size

    def _begin_bulk(self, bulk_id: str, lane: Lane) -> None:
        """Release the first mails at once. The sweep goes on, but in a test there is none."""
        with _suppressed("A bulk send is stored, and could not be begun; the sweep begins it"):
            now = self._clock.time()
            while self._store.release_held(bulk_id, now=now, most=_FIRST_OF_BULK):
                self._ring_safely([bulk_id], lane)
                if not self._settings.mail_suppress_send:
                    return
            self._store.finish_bulk_if_done(bulk_id, now=now)

    def _accept(
        self,
        message: Message,
        bcc: tuple[Address, ...],
        options: Options,
        now: float,
        content: Content | None = None,
        complete: Callable[[Message, Envelope], Message] | None = None,
    ) -> Receipt:
        """Store, then ring: a ring before the commit would find nothing.

        `complete` adds to the stored mail what is no part of the fingerprint.
        """
        recipients = tuple(
            dict.fromkeys(address.email for address in (*message.to, *message.cc, *bcc))
        )
        if not recipients:
            raise MissingRecipient("The mail has no recipient: give at least one in to, cc or bcc.")
        size = size_of(message)
        check_limits(message, size, recipients, self._settings)
        key = self._fingerprints.key(options.idempotency_key, message, recipients)
        envelope = _envelope(recipients, size, key, options, now, self._settings)
        caller = None if options.connection is None else connection_of(options.connection)
        stored = complete(message, envelope) if complete else message
        earlier = self._store.insert_mail(stored, envelope, caller)
        if earlier is not None:
            return self._fingerprints.receipt(earlier, key, message, recipients)
        if (recorder := self.recorder) is not None:
            accepted = Accepted(message, envelope, content)
            self._call_if_stored(lambda _mails: recorder(accepted), message.id, caller)
        if options.inline:
            self._ring_safely([message.id], envelope.lane, self._inline)
        elif envelope.due_at <= now:
            is_for_workers = options.by_workers and not self._settings.mail_suppress_send
            ring = _Ring(self, envelope.lane, names_mails=not is_for_workers)
            self._call_if_stored(ring, message.id, caller)
        due_at = datetime.fromtimestamp(envelope.due_at, UTC)
        return Receipt(message.id, message.message_id, recipients, due_at=due_at)

    def _call_if_stored(self, call: AfterCommit, mail_id: str, caller: Connection | None) -> None:
        """Make a call about a mail, in a caller's transaction after the commit."""
        if caller is None:
            call([mail_id])
        else:
            self._store.after_commit(caller, mail_id, call)

    def _ring_safely(self, mails: Sequence[str], lane: Lane, bell: Bell | None = None) -> None:
        """Raise nothing: the mail is stored, and a caller who is told otherwise queues it again."""
        with _suppressed(), addresses_shown(self._settings.log_addresses):
            with _suppressed(
                "A mail was queued, and nobody could be told; the sweep of the workers finds it"
            ):
                (bell or self.bell).ring(mails, lanes=(lane,))
            if self._watch is not None:
                self._watch.notice()

    def _sender(self, given: AddressLike | None) -> Address:
        sender = evaluate(given) or self.default_sender
        if not sender:
            raise MissingSender(
                "The mail has no sender: pass sender=…, or set MAIL_DEFAULT_SENDER."
            )
        return (
            _parse_sender(sender) if type(sender) is str else Address.parse(sender, field=_SENDER)
        )

    def _addresses(self, given: Addresses, *, field: str) -> tuple[Address, ...]:
        return parse_addresses(given, field=field, most=self._settings.max_recipients)

    def _attachments(
        self, given: Iterable[Attachment | flask_mail.Attachment] | None
    ) -> tuple[Attachment, ...]:
        if isinstance(given, (Attachment, flask_mail.Attachment)):
            raise InvalidMail("attachments: a list is needed for one as well: [Attachment(…)].")
        files = check_iterable(given, field="attachments", of="Attachment(filename, data)")
        attachments = [
            convert_attachment(one) for one in while_small(files, self._settings.max_size)
        ]
        if self.ascii_attachments:
            attachments = [one.with_ascii_filename() for one in attachments]
        return tuple(attachments)


@dataclass(frozen=True, slots=True)
class _Ring:
    """The ring for mails of a lane. Equal ones are one ring after a caller's commit.

    If it does not name the mails, no bell delivers them in the calling thread.
    """

    intake: Intake
    lane: Lane
    names_mails: bool

    def __call__(self, mails: Sequence[str]) -> None:
        named = mails if self.names_mails else []
        self.intake._ring_safely(named, self.lane)  # noqa: SLF001 -- part of the intake


@lru_cache(maxsize=256)
def _parse_sender(sender: str) -> Address:
    """Parse a sender once: most mails of an application have the same."""
    return Address.parse(sender, field=_SENDER)


@contextmanager
def _suppressed(message: str | None = None) -> Iterator[None]:
    """Suppress an error, and log it if there is a message. A handler of the log may fail as well.

    Exceptions for the caller pass: `KeyboardInterrupt`, `SystemExit`, a time-out of gevent, the
    soft time limit of a Celery task.
    """
    try:
        yield
    except Exception as error:
        if is_time_limit(error):
            raise
        if message is not None:
            log.exception(message)


# --- how it is to travel ------------------------------------------------------------------------


def _undo_window(options: Options, settings: Settings) -> float:
    """Return the seconds during which the mail can be taken back before it is due.

    The setting is for mail that workers deliver some time: not for codes, whose recipients wait,
    and not for mail that is delivered, or only recorded, by the call.
    """
    given = check_undo(options.undo)
    if given is not None:
        return given
    is_urgent = options.inline or Lane.parse(options.lane) is Lane.CRITICAL
    if is_urgent or options.send_at is not None or settings.mail_suppress_send:
        return 0.0
    return settings.undo_seconds


def _envelope(
    recipients: tuple[str, ...],
    size: int,
    key: Key | None,
    options: Options,
    now: float,
    settings: Settings,
) -> Envelope:
    send_at = check_time(options.send_at, now, field="send_at") or now
    due_at = max(send_at, now + _undo_window(options, settings))
    expires_at = check_time(options.expires_at, now, field="expires_at")
    if expires_at is not None and expires_at <= due_at:
        raise InvalidMail("expires_at: the mail would expire before it is due: give a later time.")
    return Envelope(
        recipients=recipients,
        key=key,
        lane=Lane.parse(options.lane),
        due_at=due_at,
        expires_at=expires_at,
        on_doubt=check_on_doubt(options.on_doubt),
        tenant=check_tenant(options.tenant),
        size=size,
    )
