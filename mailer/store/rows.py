"""Rows of the tables, and the values they stand for."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import lru_cache
from operator import itemgetter
from typing import Any

from mailer.message import (
    Address,
    Attachment,
    Attempt,
    Delivery,
    DeliveryStatus,
    Envelope,
    Fingerprint,
    Keyed,
    Lane,
    MailStatus,
    Message,
    OnDoubt,
    Outcome,
    Pause,
    Phase,
    Status,
    Verdict,
)
from mailer.policy import Move
from mailer.store.transactions import Row


def message_row(message: Message) -> dict[str, Any]:
    return {
        "id": message.id,
        "message_id": message.message_id,
        "created_at": message.created_at,
        "date": message.date,
        "sender": str(message.sender),
        "envelope_from": message.envelope_from,
        "subject": message.subject,
        "to": _packed([str(address) for address in message.to]),
        "cc": _packed([str(address) for address in message.cc]),
        "reply_to": _packed([str(address) for address in message.reply_to]),
        "headers": _packed(message.headers),
        "text": message.text,
        "html": message.html,
        "alternatives": _packed(message.alternatives),
        "tags": _packed(message.tags),
        "mail_options": _packed(message.mail_options),
        "rcpt_options": _packed(message.rcpt_options),
        "sensitive": message.sensitive,
    }


def message(row: Row, attachments: Sequence[Row]) -> Message:
    """The columns are those of `statements.LOAD`."""
    mail_id, message_id, created_at, date, sender, envelope_from, subject, to, cc, reply_to, headers, *rest = row
    text, html, alternatives, tags, mail_options, rcpt_options, sensitive, _has_attachments = rest
    said = Message(
        id=mail_id,
        message_id=message_id,
        created_at=created_at,
        date=date,
        sender=_address(sender),
        envelope_from=envelope_from,
        subject=subject,
        to=tuple(map(_address, _unpacked(to))),
        cc=tuple(map(_address, _unpacked(cc))),
        reply_to=tuple(map(_address, _unpacked(reply_to))),
        headers=_pairs(headers),
        text=text,
        html=html,
        alternatives=_pairs(alternatives),
        tags=tuple(_unpacked(tags)),
        mail_options=tuple(_unpacked(mail_options)),
        rcpt_options=tuple(_unpacked(rcpt_options)),
        sensitive=bool(sensitive),
    )
    return replace(said, attachments=tuple(attachment(one, said) for one in attachments)) if attachments else said


def keyed(row: Row) -> Keyed:
    """Return the mail that has a key. The columns are those of `statements.HAS_KEY`."""
    mail_id, message_id, digest, key_id = row
    return Keyed(mail_id, message_id, None if digest is None else Fingerprint(digest, key_id))


_EMPTY = "[]"
_address = lru_cache(4096)(Address.stored)


def _packed(values: Sequence[Any]) -> str:
    return json.dumps(values) if values else _EMPTY


def _unpacked(text: str) -> Sequence[Any]:
    return json.loads(text) if text != _EMPTY else ()


def _pairs(value: Any) -> tuple[tuple[str, str], ...]:
    return tuple((name, content) for name, content in _unpacked(value))


def attachment_row(mail_id: str, position: int, sha256: str, attachment: Attachment) -> dict[str, Any]:
    return {
        "mail_id": mail_id,
        "position": position,
        "sha256": sha256,
        "filename": attachment.filename,
        "content_type": attachment.content_type,
        "content_id": attachment.content_id,
        "disposition": attachment.disposition,
        "headers": _packed(attachment.headers),
    }


def blob_hash(data: bytes, message: Message) -> str:
    """What a sensitive mail carries is its own, whoever else has the same: so it can be erased without asking anybody."""
    return own_blob_hash(data, message) if message.sensitive else hashlib.sha256(data).hexdigest()


def own_blob_hash(data: bytes, message: Message) -> str:
    """Return the hash of a copy that no other mail shares."""
    digest = hashlib.sha256(message.id.encode())
    digest.update(data)
    return digest.hexdigest()


def attachment(row: Row, message: Message) -> Attachment:
    """The columns are those of `statements.LOAD_ATTACHMENTS`. Bytes that are not the ones which came are as good as none."""
    _mail_id, sha256, data, filename, content_type, content_id, disposition, headers = row
    return Attachment.stored(
        filename=filename,
        data=data if isinstance(data, bytes) and _is_whole(data, sha256, message) else None,
        content_type=content_type,
        content_id=content_id,
        disposition=disposition,
        headers=_pairs(headers),
    )


def _is_whole(data: bytes, sha256: str, message: Message) -> bool:
    """Tell whether these are the bytes that were stored, for all mails or as this one's own copy."""
    return blob_hash(data, message) == sha256 or own_blob_hash(data, message) == sha256


def delivery_rows(message: Message, envelope: Envelope) -> list[dict[str, Any]]:
    shared = {
        "mail_id": message.id,
        "status": str(Status.QUEUED),
        "lane": int(envelope.lane),
        "on_doubt": str(envelope.on_doubt),
        "queued_at": envelope.due_at,
        "due_at": envelope.due_at,
        "expires_at": envelope.expires_at,
        "size": envelope.size,
        "attempts": 0,
        "doubts": 0,
    }
    return [{"recipient": email, "domain": email.rpartition("@")[2], **shared} for email in envelope.recipients]


def deliveries(claimed: Sequence[Row], token: str) -> list[Delivery]:
    """What a claim returned, in its order: PostgreSQL and SQLite return it in any."""
    return [
        Delivery(
            id=number,
            mail_id=mail_id,
            recipient=recipient,
            domain=domain,
            lane=_LANES[lane],
            attempts=attempts,
            doubts=doubts,
            queued_at=queued_at,
            on_doubt=_ON_DOUBT[on_doubt],
            token=token,
            has_waited=due_at > queued_at,
            expires_at=expires_at,
            size=size,
        )
        for number, mail_id, recipient, domain, lane, attempts, doubts, queued_at, on_doubt, due_at, expires_at, size in sorted(
            claimed, key=_BY_DUE_TIME
        )
    ]


# Looked up: to call an Enum takes several times as long, and a slice has hundreds of rows.
_LANES = {int(lane): lane for lane in Lane}
_ON_DOUBT = {str(on_doubt): on_doubt for on_doubt in OnDoubt}
_BY_DUE_TIME = itemgetter(9, 0)  # of the columns that `statements.CLAIM`, `HELD` and `HEAD` return


def result_row(delivery: Delivery, outcome: Outcome, move: Move, now: float) -> tuple[Any, ...]:
    """The columns are those of the table of results."""
    finished_at = now if move.to.is_final else None
    doubts = int(move.to is Status.DOUBTFUL)
    words = storable(outcome.reply)
    return delivery.id, delivery.token, move.to.value, move.due_at, finished_at, words, int(not move.counts), doubts


def attempt_row(delivery_id: int, outcome: Outcome, now: float, relay: str) -> Mapping[str, Any]:
    words = {"verdict": str(outcome.verdict), "phase": str(outcome.phase), "reply": storable(outcome.reply)}
    return {"delivery_id": delivery_id, "at": now, "relay": relay, **words}


def storable(words: str) -> str:
    """A stranger's words, without what a database refuses: an outcome that can't be recorded would be doubt."""
    return words.replace("\x00", "\ufffd").encode("utf-8", "replace").decode()


def mail_statuses(heads: Iterable[Row], copies: Iterable[Row], tries: Iterable[Row]) -> dict[str, MailStatus]:
    """By id; the columns are those of `statements.HEADS`, `COPIES` and `TRIES`."""
    history: dict[int, list[Attempt]] = defaultdict(list)
    for delivery_id, *attempt in tries:
        history[delivery_id].append(_attempt(*attempt))
    deliveries: dict[str, list[DeliveryStatus]] = defaultdict(list)
    for mail_id, delivery_id, *copy in copies:
        deliveries[mail_id].append(_delivery_status(delivery_id, *copy, history=tuple(history[delivery_id])))
    return {
        mail_id: MailStatus(
            id=mail_id,
            message_id=message_id,
            subject=subject,
            created_at=when(created_at),
            sensitive=bool(sensitive),
            erased_at=None if erased_at is None else when(erased_at),
            deliveries=tuple(deliveries[mail_id]),
        )
        for mail_id, message_id, subject, created_at, sensitive, erased_at in heads
    }


def pause(row: Row) -> tuple[str, Pause]:
    """What is paused, and how; the columns are those of `statements.PAUSES`."""
    key, until, failures, reason, since = row
    return key, Pause(until=until, failures=failures, reason=reason, since=when(since))


def _attempt(at: float, verdict: str, phase: str, reply: str, relay: str) -> Attempt:
    return Attempt(at=when(at), verdict=Verdict(verdict), phase=Phase(phase), reply=reply, relay=relay)


def _delivery_status(
    number: int,
    recipient: str,
    status: str,
    lane: int,
    attempts: int,
    due_at: float | None,
    finished_at: float | None,
    reply: str | None,
    relay: str | None,
    *,
    history: tuple[Attempt, ...],
) -> DeliveryStatus:
    return DeliveryStatus(
        id=number,
        recipient=recipient,
        status=Status(status),
        lane=Lane(lane),
        attempts=attempts,
        due_at=None if due_at is None else when(due_at),
        finished_at=None if finished_at is None else when(finished_at),
        reply=reply,
        relay=relay,
        history=history,
    )


def when(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
