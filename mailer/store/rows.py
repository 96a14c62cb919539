"""Rows of the tables, and the values that they are read into."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, get_type_hints

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
    is_bulk_id,
    own_message_id,
)
from mailer.message.bulk import BulkProgress, BulkSend, BulkState, BulkZone, wait_of
from mailer.message.calendar import Calendar
from mailer.message.events import Event, EventKind
from mailer.policy import Move
from mailer.store.sql import DELIVERY_SELECTION
from mailer.store.transactions import Row

# --- messages ------------------------------------------------------------------------------------


def _json(values: Sequence[Any]) -> str:
    return json.dumps(values) if values else _EMPTY


def _strings(text: str) -> tuple[str, ...]:
    return tuple(json.loads(text)) if text != _EMPTY else ()


def _pairs(text: str) -> tuple[tuple[str, str], ...]:
    return tuple((name, value) for name, value in json.loads(text)) if text != _EMPTY else ()


def _addresses(text: str) -> tuple[Address, ...]:
    return tuple(map(_address, json.loads(text))) if text != _EMPTY else ()


def _readable(read: Callable[[str], tuple[Any, ...]], text: str) -> tuple[Any, ...]:
    """Read what only describes a mail. If it is damaged, that must not hide or stop the mail."""
    try:
        return read(text)
    except (TypeError, ValueError):
        return ()


_EMPTY = "[]"
_address = lru_cache(4096)(Address.stored)

#: The fields of a message that have a column of the same name, each with its type. A new field
#: needs only its line in `Message`, and the column.
_FIELDS = {name: hint for name, hint in get_type_hints(Message).items() if name != "attachments"}
_JSON_READERS: dict[Any, Callable[[str], Any]] = {
    tuple[str, ...]: _strings,
    tuple[tuple[str, str], ...]: _pairs,
    tuple[Address, ...]: _addresses,
}
_READERS: dict[Any, Callable[[Any], Any]] = {Address: _address, bool: bool, **_JSON_READERS}
_WRITERS: dict[Any, Callable[[Any], Any]] = {
    Address: str,
    tuple[str, ...]: _json,
    tuple[tuple[str, str], ...]: _json,
    tuple[Address, ...]: lambda addresses: _json([*map(str, addresses)]),
}
MESSAGE_COLUMNS = tuple(_FIELDS)
#: These columns in a SELECT. JSON is selected as text: most of it is "[]", which is not parsed.
MESSAGE_SELECTION = ", ".join(
    f'CAST("{name}" AS text) AS "{name}"' if hint in _JSON_READERS else f'"{name}"'
    for name, hint in _FIELDS.items()
)
_TO_READ = [(name, _READERS[hint]) for name, hint in _FIELDS.items() if hint in _READERS]
_TO_WRITE = [(name, _WRITERS[hint]) for name, hint in _FIELDS.items() if hint in _WRITERS]


def message_row(message: Message) -> dict[str, Any]:
    row = {name: getattr(message, name) for name in MESSAGE_COLUMNS}
    for name, write in _TO_WRITE:
        row[name] = write(row[name])
    return row


def message(row: Row, attachments: Sequence[Row]) -> Message:
    """Return the message of a row that begins with the columns of `MESSAGE_SELECTION`."""
    values = dict(zip(MESSAGE_COLUMNS, row, strict=False))
    for name, read in _TO_READ:
        values[name] = read(values[name])
    found = Message(**values)
    if not attachments:
        return found
    return replace(found, attachments=tuple(attachment(one, found) for one in attachments))


def keyed(row: Row) -> Keyed:
    """Return the mail with a key, from a row of `keys.HAS_KEY`."""
    mail_id, message_id, digest, key_id = row
    return Keyed(mail_id, message_id, None if digest is None else Fingerprint(digest, key_id))


def attachment_row(
    mail_id: str, position: int, sha256: str, attachment: Attachment
) -> dict[str, Any]:
    return {
        "mail_id": mail_id,
        "position": position,
        "sha256": sha256,
        "filename": attachment.filename,
        "content_type": attachment.content_type,
        "content_id": attachment.content_id,
        "disposition": attachment.disposition,
        "headers": _json(attachment.headers),
    }


def blob_hash(data: bytes, message: Message) -> str:
    """Return the hash that bytes are stored under. A sensitive mail has a copy of its own."""
    return own_blob_hash(data, message) if message.sensitive else hashlib.sha256(data).hexdigest()


def own_blob_hash(data: bytes, message: Message) -> str:
    """Return the hash of a copy that no other mail shares."""
    digest = hashlib.sha256(message.id.encode())
    digest.update(data)
    return digest.hexdigest()


def attachment(row: Row, message: Message) -> Attachment:
    """Return an attachment, from a row of `loading.LOAD_ATTACHMENTS`. Leave out damaged bytes."""
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
    """Return whether the bytes have their hash, as shared ones or as this mail's own copy."""
    return blob_hash(data, message) == sha256 or own_blob_hash(data, message) == sha256


DELIVERY_COLUMNS = (
    "mail_id",
    "recipient",
    "domain",
    "status",
    "lane",
    "on_doubt",
    "queued_at",
    "due_at",
    "expires_at",
    "size",
    "attempts",
    "doubts",
    "tenant",
    "rank",
)


def delivery_rows(
    message: Message, envelope: Envelope, status: Status, ranks: Sequence[float | None]
) -> list[dict[str, Any]]:
    """Return the rows of a mail's deliveries, with a rank for each of them."""
    shared = {
        "mail_id": message.id,
        "status": str(status),
        "lane": int(envelope.lane),
        "on_doubt": str(envelope.on_doubt),
        "queued_at": envelope.due_at,
        "due_at": envelope.due_at,
        "expires_at": envelope.expires_at,
        "size": envelope.size,
        "attempts": 0,
        "doubts": 0,
        "tenant": envelope.tenant,
    }
    return [
        {"recipient": email, "domain": email.rpartition("@")[2], "rank": rank, **shared}
        for email, rank in zip(envelope.recipients, ranks, strict=True)
    ]


def deliveries(claimed: Sequence[Row], token: str) -> list[Delivery]:
    """Return the deliveries of a claim in their order: the databases return any order."""
    return [_delivery(*row, token=token) for row in sorted(claimed, key=_turn)]


def _delivery(
    number: int,
    mail_id: str,
    recipient: str,
    domain: str,
    lane: int,
    attempts: int,
    doubts: int,
    queued_at: float,
    on_doubt: str,
    due_at: float | None,
    expires_at: float | None,
    size: int | None,
    _rank: float | None,
    *,
    token: str,
) -> Delivery:
    """Return a delivery, from the columns of `sql.DELIVERY_SELECTION`.

    A doubtful delivery that waits for a person has no due time.
    """
    return Delivery(
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
        has_waited=due_at is not None and due_at > queued_at,
        expires_at=expires_at,
        size=size,
    )


def place(row: Row) -> Row:
    """Return the due time and the rank in a row of `sql.DELIVERY_SELECTION`."""
    return row[_DUE_AT], row[_RANK]


def first_places(places: Sequence[Row], *, if_none: float | None) -> dict[str, float | None]:
    """Return the earliest due time of mail without a rank, and the lowest rank."""
    times = [due_at for due_at, rank in places if rank is None]
    ranks = [rank for _due_at, rank in places if rank is not None]
    return {"time": min(times, default=if_none), "rank": min(ranks, default=if_none)}


def _turn(row: Row) -> tuple[float, int]:
    return row[_RANK] or row[_DUE_AT] or 0.0, row[0]


_DUE_AT, _RANK = DELIVERY_SELECTION.index("due_at"), DELIVERY_SELECTION.index("rank")
# Dictionaries are several times as fast as calls of an Enum, and a batch has hundreds of rows.
_LANES = {int(lane): lane for lane in Lane}
_ON_DOUBT = {str(on_doubt): on_doubt for on_doubt in OnDoubt}


def result_row(delivery: Delivery, outcome: Outcome, move: Move, now: float) -> tuple[Any, ...]:
    """Return a row of the table `results` in `queue.RECORD` and `SET_ASIDE`."""
    finished_at = now if move.to.is_final else None
    doubts = int(move.to is Status.DOUBTFUL)
    words = storable(outcome.reply)
    return (
        delivery.id,
        delivery.token,
        move.to.value,
        move.due_at,
        finished_at,
        words,
        int(not move.counts),
        doubts,
    )


def attempt_row(delivery_id: int, outcome: Outcome, now: float, relay: str) -> Mapping[str, Any]:
    words = {
        "verdict": str(outcome.verdict),
        "phase": str(outcome.phase),
        "reply": storable(outcome.reply),
    }
    return {"delivery_id": delivery_id, "at": now, "relay": relay, **words}


def storable(words: str) -> str:
    """Replace the characters of a reply that a database refuses: an outcome must be recorded."""
    return words.replace("\x00", "\ufffd").encode("utf-8", "replace").decode()


def mail_statuses(
    heads: Iterable[Row], copies: Iterable[Row], tries: Iterable[Row]
) -> dict[str, MailStatus]:
    """Return the status of mails by id, from rows of `mails.HEADS`, `COPIES` and `TRIES`."""
    history: dict[int, list[Attempt]] = defaultdict(list)
    for delivery_id, *attempt in tries:
        history[delivery_id].append(_attempt(*attempt))
    deliveries: dict[str, list[DeliveryStatus]] = defaultdict(list)
    for mail_id, delivery_id, *copy in copies:
        deliveries[mail_id].append(
            _delivery_status(delivery_id, *copy, history=tuple(history[delivery_id]))
        )
    return {
        mail_id: MailStatus(
            id=mail_id,
            message_id=message_id,
            subject=subject,
            created_at=when(created_at),
            sensitive=bool(sensitive),
            erased_at=None if erased_at is None else when(erased_at),
            tags=_readable(_strings, tags),
            metadata=_readable(_pairs, metadata),
            deliveries=tuple(deliveries[mail_id]),
        )
        for mail_id, message_id, subject, created_at, sensitive, erased_at, tags, metadata in heads
    }


def event(row: Row, kind: EventKind, now: float) -> Event:
    """Return an event, from a row of `moves.EVENTS`."""
    delivery_id, mail_id, message_id, recipient, status, lane, tenant, attempts, *said = row
    reply, relay, tags, metadata = said
    return Event(
        kind=kind,
        at=when(now),
        mail_id=mail_id,
        delivery_id=delivery_id,
        message_id=own_message_id(message_id, delivery_id) if is_bulk_id(mail_id) else message_id,
        recipient=recipient,
        status=Status(status),
        lane=_LANES[lane],
        tenant=tenant or None,
        attempts=attempts,
        tags=_readable(_strings, tags),
        metadata=_readable(_pairs, metadata),
        reply=reply,
        relay=relay,
    )


def pause(row: Row) -> tuple[str, Pause]:
    """Return the key of a pause and the pause, from a row of `pauses.PAUSES`."""
    key, until, failures, reason, since = row
    return key, Pause(until=until, failures=failures, reason=reason, since=when(since))


#: The columns that `bulk` reads.
BULK_COLUMNS = (
    "id state reason is_complete rows_read rows_digest lane tenant max_failed_share accepted"
    " released released_to importer_until starts_at expires_at calendar started_at"
    " finished_at".split()
)


def bulk(row: Row) -> BulkSend:
    """Return a bulk send, from a row of `BULK_COLUMNS`."""
    values = dict(zip(BULK_COLUMNS, row, strict=True))
    values["state"] = _bulk_state(values["state"], values["reason"])
    values["is_complete"] = bool(values["is_complete"])
    values["lane"] = _LANES[values["lane"]]
    values["calendar"] = calendar(values["calendar"])
    return BulkSend(**values)


def _bulk_state(state: str, reason: str | None) -> BulkState:
    """Return the state of a bulk send. An import that has a reason is paused."""
    is_paused = state == BulkState.IMPORTING and reason is not None
    return BulkState.PAUSED if is_paused else BulkState(state)


def calendar(text: str | None) -> Calendar | None:
    return None if text is None else Calendar.from_json(text)


def bulk_zone(row: Row) -> BulkZone:
    """Return a zone of a bulk send, from a row of `bulk_zones.ZONES`."""
    time_zone, has_held, queued_to = row
    return BulkZone(time_zone, bool(has_held), queued_to > 0)


def bulk_progress(
    row: Row, counts: Mapping[str, int], doubtful: int, zones: Iterable[BulkZone], now: float
) -> BulkProgress:
    """Return the progress of a bulk send, from a row of `bulk.PROGRESS`, its counts and zones."""
    state, reason, imported, accepted, duplicates, refused, released, *times = row
    started_at, ended_at, starts_at, expires_at, hours = times
    ends = {
        status: int(counts.get(status, 0))
        for status in ("sent", "failed", "cancelled", "expired", "suppressed")
    }
    came_back = sum(int(counts.get(status, 0)) for status in ("bounced", "complained"))
    ends["sent"] += came_back  # a relay took them
    done = sum(ends.values())
    held = accepted - released
    seconds = 0.0 if started_at is None else (ended_at or now) - started_at
    rate = ends["sent"] / seconds if seconds > 0 and ends["sent"] else None
    left = accepted - done - doubtful
    is_running = state == BulkState.RUNNING
    waits = None
    if is_running and held:
        waits = wait_of(now, starts_at, expires_at, calendar(hours), zones)
    ends_at = when(now + left / rate) if rate and left and is_running and not waits else None
    return BulkProgress(
        state=_bulk_state(state, reason),
        reason=waits.reason if waits else reason,
        resumes_at=when(waits.until) if waits and waits.until is not None else None,
        imported=imported,
        accepted=accepted,
        duplicates=duplicates,
        refused=refused,
        held=held,
        queued=left - held,
        doubtful=doubtful,
        rate=rate,
        ends_at=ends_at,
        **ends,
    )


def _attempt(at: float, verdict: str, phase: str, reply: str, relay: str) -> Attempt:
    return Attempt(
        at=when(at), verdict=Verdict(verdict), phase=Phase(phase), reply=reply, relay=relay
    )


def _delivery_status(
    number: int,
    recipient: str,
    status: str,
    lane: int,
    tenant: str,
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
        tenant=tenant or None,
        attempts=attempts,
        due_at=None if due_at is None else when(due_at),
        finished_at=None if finished_at is None else when(finished_at),
        reply=reply,
        relay=relay,
        history=history,
    )


def when(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
