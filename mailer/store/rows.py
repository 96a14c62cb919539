"""Rows of the tables, and the values they stand for."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Row

from mailer.message import (
    Address,
    Attachment,
    Attempt,
    Delivery,
    DeliveryStatus,
    Envelope,
    Lane,
    MailStatus,
    Message,
    OnDoubt,
    Outcome,
    Phase,
    Status,
    Verdict,
)


def message_row(message: Message) -> dict[str, Any]:
    return {
        "id": message.id,
        "message_id": message.message_id,
        "created_at": message.created_at,
        "date": message.date,
        "sender": str(message.sender),
        "envelope_from": message.envelope_from,
        "subject": message.subject,
        "to": [str(address) for address in message.to],
        "cc": [str(address) for address in message.cc],
        "reply_to": [str(address) for address in message.reply_to],
        "headers": message.headers,
        "text": message.text,
        "html": message.html,
        "alternatives": message.alternatives,
        "tags": message.tags,
        "mail_options": message.mail_options,
        "rcpt_options": message.rcpt_options,
    }


def message(row: Row[Any], attachments: Sequence[Attachment]) -> Message:
    return Message(
        id=row.id,
        message_id=row.message_id,
        created_at=row.created_at,
        date=row.date,
        sender=Address.stored(row.sender),
        envelope_from=row.envelope_from,
        subject=row.subject,
        to=tuple(map(Address.stored, row.to)),
        cc=tuple(map(Address.stored, row.cc)),
        reply_to=tuple(map(Address.stored, row.reply_to)),
        headers=tuple((name, value) for name, value in row.headers),
        text=row.text,
        html=row.html,
        alternatives=tuple((kind, content) for kind, content in row.alternatives),
        tags=tuple(row.tags),
        mail_options=tuple(row.mail_options),
        rcpt_options=tuple(row.rcpt_options),
        attachments=tuple(attachments),
    )


def attachment_row(mail_id: str, position: int, sha256: str, attachment: Attachment) -> dict[str, Any]:
    return {
        "mail_id": mail_id,
        "position": position,
        "sha256": sha256,
        "filename": attachment.filename,
        "content_type": attachment.content_type,
        "content_id": attachment.content_id,
        "disposition": attachment.disposition,
        "headers": attachment.headers,
    }


def attachment(row: Row[Any]) -> Attachment:
    return Attachment.stored(
        filename=row.filename,
        data=row.data,
        content_type=row.content_type,
        content_id=row.content_id,
        disposition=row.disposition,
        headers=tuple((name, value) for name, value in row.headers),
    )


def delivery_rows(message: Message, envelope: Envelope) -> list[dict[str, Any]]:
    shared = {
        "mail_id": message.id,
        "status": str(Status.QUEUED),
        "lane": int(envelope.lane),
        "on_doubt": str(envelope.on_doubt),
        "queued_at": envelope.due_at,
        "due_at": envelope.due_at,
        "expires_at": envelope.expires_at,
        "attempts": 0,
        "doubts": 0,
    }
    return [{"recipient": email, "domain": email.rpartition("@")[2], **shared} for email in envelope.recipients]


def delivery(row: Row[Any], token: str, lease_until: float) -> Delivery:
    return Delivery(
        id=row.id,
        mail_id=row.mail_id,
        recipient=row.recipient,
        attempts=row.attempts,
        doubts=row.doubts,
        queued_at=row.queued_at,
        on_doubt=OnDoubt(row.on_doubt),
        token=token,
        lease_until=lease_until,
    )


def attempt_row(delivery_id: int, outcome: Outcome, now: float, relay: str) -> Mapping[str, Any]:
    words = {"verdict": str(outcome.verdict), "phase": str(outcome.phase), "reply": storable(outcome.reply)}
    return {"delivery_id": delivery_id, "at": now, "relay": relay, **words}


def storable(words: str) -> str:
    """A stranger's words, without what a database refuses: an outcome that can't be recorded would be doubt."""
    return words.replace("\x00", "\ufffd").encode("utf-8", "replace").decode()


def mail_statuses(
    mails: Iterable[Row[Any]], deliveries: Iterable[Row[Any]], attempts: Iterable[Row[Any]]
) -> dict[str, MailStatus]:
    history: dict[int, list[Attempt]] = defaultdict(list)
    for row in attempts:
        history[row.delivery_id].append(_attempt(row))
    copies: dict[str, list[DeliveryStatus]] = defaultdict(list)
    for row in deliveries:
        copies[row.mail_id].append(_delivery_status(row, history[row.id]))
    return {
        mail.id: MailStatus(
            id=mail.id,
            message_id=mail.message_id,
            subject=mail.subject,
            created_at=_when(mail.created_at),
            deliveries=tuple(copies[mail.id]),
        )
        for mail in mails
    }


def _attempt(row: Row[Any]) -> Attempt:
    return Attempt(at=_when(row.at), verdict=Verdict(row.verdict), phase=Phase(row.phase), reply=row.reply, relay=row.relay)


def _delivery_status(row: Row[Any], history: list[Attempt]) -> DeliveryStatus:
    return DeliveryStatus(
        id=row.id,
        recipient=row.recipient,
        status=Status(row.status),
        lane=Lane(row.lane),
        attempts=row.attempts,
        due_at=None if row.due_at is None else _when(row.due_at),
        finished_at=None if row.finished_at is None else _when(row.finished_at),
        reply=row.reply,
        relay=row.relay,
        history=tuple(history),
    )


def _when(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
