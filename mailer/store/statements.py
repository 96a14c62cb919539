"""The statements, in words that `spelling` spells for SQLite and for PostgreSQL.

States stand in them as literals: the partial indexes are found only so.

What takes many rows takes them in two steps of one statement. The first chooses, guards and locks; the second has nothing
but ids to go by. With the guard in it as well, PostgreSQL compares every row of the queue with every chosen one whenever its
statistics are from a time when the queue was empty.

Only `leftover`, which reads a file that is no store, has a statement of its own.
"""

from collections.abc import Iterable

_MESSAGE_COLUMNS = (
    *("id", "message_id", "created_at", "date", "sender", "envelope_from", "subject", "to", "cc", "reply_to", "headers"),
    *("text", "html", "alternatives", "tags", "mail_options", "rcpt_options", "sensitive"),
)
_ATTACHMENT_COLUMNS = ("mail_id", "position", "sha256", "filename", "content_type", "content_id", "disposition", "headers")
_JSON = frozenset({"to", "cc", "reply_to", "headers", "alternatives", "tags", "mail_options", "rcpt_options"})
_DELIVERY_COLUMNS = (
    *("mail_id", "recipient", "domain", "status", "lane", "on_doubt", "queued_at", "due_at", "expires_at"),
    *("size", "attempts", "doubts"),
)


def _as_text(column: str) -> str:
    """JSON as it is stored: most of it is "[]", which nobody has to parse."""
    return f'CAST("{column}" AS text) AS "{column}"' if column in _JSON else f'"{column}"'


def _insert(table: str, columns: Iterable[str]) -> str:
    columns = [*columns]
    names = ", ".join(f'"{column}"' for column in columns)
    return f"INSERT INTO {table} ({names}) VALUES ({', '.join(f':{column}' for column in columns)})"


# --- intake -----------------------------------------------------------------------------------------------------------

INSERT_MESSAGE = _insert("mailer_message", _MESSAGE_COLUMNS)
INSERT_KEYED_MESSAGE = f"""
{_insert("mailer_message", (*_MESSAGE_COLUMNS, "idempotency_key", "fingerprint", "fingerprint_key"))}
ON CONFLICT (idempotency_key) WHERE idempotency_key IS NOT NULL DO NOTHING
RETURNING id
"""
HAS_KEY = """
SELECT id, message_id, fingerprint, fingerprint_key FROM mailer_message WHERE idempotency_key = :idempotency_key
"""
INSERT_DELIVERY = _insert("mailer_delivery", _DELIVERY_COLUMNS)
INSERT_ATTACHMENT = _insert("mailer_attachment", _ATTACHMENT_COLUMNS)
# What is there is kept: the purge steps over it until this transaction has ended. Any number of transactions can do so.
KEEP_BLOBS = "SELECT sha256, used_at FROM mailer_blob WHERE sha256 {hashes} ORDER BY sha256 {keep}"
INSERT_BLOB = """
INSERT INTO mailer_blob (sha256, used_at, data) VALUES (:sha256, :used_at, :data) ON CONFLICT (sha256) DO NOTHING
"""
# Whoever is ahead has the same date in mind.
RENEW_BLOBS = """
WITH mine AS MATERIALIZED (SELECT sha256 FROM mailer_blob WHERE sha256 {hashes} AND used_at < :used_at {skip})
UPDATE mailer_blob SET used_at = :used_at WHERE sha256 IN (SELECT sha256 FROM mine)
"""
#: What a wait for a lock may last in this transaction: as long as before, or this, if that is shorter. Returns what it was.
LIMIT_WAITS = """
SELECT current_setting('lock_timeout'), set_config('lock_timeout', CASE
    WHEN CAST(current_setting('lock_timeout') AS interval) > INTERVAL '0'
        AND CAST(current_setting('lock_timeout') AS interval) < CAST(CAST(:limit AS text) AS interval)
    THEN current_setting('lock_timeout') ELSE CAST(:limit AS text) END, true)
"""
RESTORE_WAITS = "SELECT set_config('lock_timeout', :limit, true)"

# --- the application's own transaction --------------------------------------------------------------------------------

#: What tells one database from another, however it was reached; nothing, if nobody else can reach it.
WHICH_SQLITE = "SELECT file FROM pragma_database_list WHERE name = 'main' AND file <> ''"
WHICH_POSTGRESQL = """
SELECT EXTRACT(EPOCH FROM pg_postmaster_start_time()), current_database(), CAST(to_regclass('mailer_message') AS oid)
"""
ARE_THERE = "SELECT id FROM mailer_message WHERE id {mails}"

# --- a worker's -------------------------------------------------------------------------------------------------------

CLAIM = """
WITH due AS MATERIALIZED (
    SELECT id FROM mailer_delivery
    WHERE status = 'queued' AND lane = :lane AND due_at <= :now AND (expires_at IS NULL OR expires_at > :now) {unless_paused}
    ORDER BY due_at LIMIT {most_unless_paused} {lock})
UPDATE mailer_delivery
SET status = 'claimed', token = :token, lease_until = :lease_until, attempts = attempts + 1
WHERE id IN (SELECT id FROM due)
RETURNING {delivery}
"""
# COALESCE, here and below, keeps PostgreSQL from looking through all leases, or all that is queued, for a few ids.
MARK = """
UPDATE mailer_delivery SET status = 'transmitting', lease_until = :lease_until
WHERE id {ids} AND token = :token AND status = 'claimed' AND COALESCE(lease_until, 0) > :now
RETURNING id
"""
# A doubtful one keeps its token: should the reply come after all, its worker may still record it.
RECORD = """
UPDATE mailer_delivery
SET status = results.status, due_at = results.due_at, finished_at = results.finished_at, reply = results.reply, relay = :relay,
    attempts = mailer_delivery.attempts - results.uncounted, doubts = mailer_delivery.doubts + results.doubts,
    token = CASE WHEN results.status = 'doubtful' THEN mailer_delivery.token END, lease_until = NULL
FROM {results}
WHERE {among_results} AND mailer_delivery.token = results.token
    AND (mailer_delivery.status = 'transmitting' OR (mailer_delivery.status = 'doubtful' AND results.status <> 'doubtful'))
RETURNING mailer_delivery.id
"""
# In doubt is by then what the sweep gave up: its worker had been frozen for too long, and nobody else knew that it never began.
RELEASE = """
UPDATE mailer_delivery
SET status = 'queued', attempts = attempts - 1, token = NULL, lease_until = NULL,
    due_at = COALESCE(waits.due_at, CASE WHEN status = 'doubtful' THEN queued_at ELSE mailer_delivery.due_at END),
    doubts = CASE WHEN status = 'doubtful' THEN doubts - 1 ELSE doubts END,
    reply = CASE WHEN status = 'doubtful' THEN NULL ELSE reply END
FROM {waits}
WHERE {among_waits} AND token = :token AND status IN ('claimed', 'transmitting', 'doubtful')
RETURNING mailer_delivery.id
"""
# Two steps: no single index has them all, and few rows have a lease.
HELD = """
SELECT {delivery} FROM mailer_delivery WHERE lease_until IS NOT NULL AND token = :token
UNION ALL
SELECT {delivery} FROM mailer_delivery WHERE status = 'doubtful' AND token = :token
"""
# As RECORD, of a mail that could not be made ready: no relay was told of it.
SET_ASIDE = """
UPDATE mailer_delivery
SET status = results.status, due_at = results.due_at, finished_at = results.finished_at, reply = results.reply,
    attempts = mailer_delivery.attempts - results.uncounted, token = NULL, lease_until = NULL
FROM {results}
WHERE {among_results} AND mailer_delivery.token = results.token AND mailer_delivery.status = 'claimed'
RETURNING mailer_delivery.id
"""
INSERT_ATTEMPT = _insert("mailer_attempt", ("delivery_id", "at", "verdict", "phase", "reply", "relay"))
LOAD = f"""
SELECT {", ".join(_as_text(column) for column in _MESSAGE_COLUMNS)},
    EXISTS (SELECT 1 FROM mailer_attachment WHERE mail_id = mailer_message.id)
FROM mailer_message WHERE id {{mails}} AND erased_at IS NULL
"""
LOAD_ATTACHMENTS = """
SELECT mail_id, mailer_attachment.sha256, data, filename, content_type, content_id, disposition, CAST(headers AS text)
FROM mailer_attachment LEFT JOIN mailer_blob ON mailer_blob.sha256 = mailer_attachment.sha256
WHERE mail_id {mails}
ORDER BY mail_id, position
"""
# For those that were queued without a size. Neither database reads what it only measures.
SIZES = """
SELECT id, {octets_of_text} + COALESCE((
    SELECT SUM({octets_of_file}) FROM mailer_attachment JOIN mailer_blob ON mailer_blob.sha256 = mailer_attachment.sha256
    WHERE mail_id = mailer_message.id), 0)
FROM mailer_message WHERE id {mails}
"""
SENDERS = "SELECT id, sender FROM mailer_message WHERE id {mails}"
HEAD = """
SELECT {delivery} FROM mailer_delivery
WHERE status = 'queued' AND lane = :lane AND due_at <= :now
ORDER BY due_at LIMIT :most
"""
# What another worker has claimed and is about to give back waits as well.
IS_WAITING = """
SELECT 1 WHERE EXISTS (
    SELECT 1 FROM mailer_delivery
    WHERE status = 'queued' AND lane = :lane AND due_at > :now AND due_at <= :until AND due_at > queued_at
        AND (:domain = '' OR domain = :domain))
OR EXISTS (
    SELECT 1 FROM mailer_delivery
    WHERE lease_until IS NOT NULL AND status = 'claimed' AND lane = :lane AND token <> :token
        AND (:domain = '' OR domain = :domain))
"""
POSTPONE = """
UPDATE mailer_delivery SET due_at = waits.due_at
FROM {waits}
WHERE {among_waits} AND COALESCE(status, '') = 'queued' AND COALESCE(mailer_delivery.due_at, 0) <= :now
RETURNING mailer_delivery.id
"""

# --- the sweep's ------------------------------------------------------------------------------------------------------

# Whoever is frozen in a transaction still holds its rows: the sweep steps over them, here as everywhere.
REQUEUE_LAPSED = """
WITH lapsed AS MATERIALIZED (
    SELECT id FROM mailer_delivery WHERE status = 'claimed' AND lease_until <= :now {lock})
UPDATE mailer_delivery SET status = 'queued', attempts = attempts - 1, token = NULL, lease_until = NULL
WHERE id IN (SELECT id FROM lapsed)
RETURNING id
"""
DOUBT_LAPSED = """
WITH lapsed AS MATERIALIZED (
    SELECT id FROM mailer_delivery WHERE status = 'transmitting' AND lease_until <= :now {lock})
UPDATE mailer_delivery
SET status = 'doubtful', doubts = doubts + 1, lease_until = NULL,
    reply = 'the worker died or lost its connection before the reply was recorded',
    due_at = CASE WHEN on_doubt = 'resend' AND doubts = 0 THEN :resend_at END
WHERE id IN (SELECT id FROM lapsed)
RETURNING id
"""
RESEND = """
WITH again AS MATERIALIZED (
    SELECT id FROM mailer_delivery
    WHERE status = 'doubtful' AND due_at <= :now AND NOT EXISTS (SELECT 1 FROM mailer_pause WHERE scope = 'all') {lock})
UPDATE mailer_delivery SET status = 'queued', token = NULL
WHERE id IN (SELECT id FROM again)
RETURNING id
"""
RECALL = """
WITH early AS MATERIALIZED (
    SELECT id FROM mailer_delivery
    WHERE status = 'queued' AND lane = :lane AND due_at > :now AND due_at <= :was
    ORDER BY due_at LIMIT :most {lock})
UPDATE mailer_delivery SET due_at = :now
WHERE id IN (SELECT id FROM early)
RETURNING id
"""
OVERDUE = """
SELECT id, {private} FROM mailer_delivery
WHERE status = 'queued' AND expires_at IS NOT NULL AND expires_at <= :now
ORDER BY expires_at LIMIT :most
"""
EXPIRE = """
WITH overdue AS MATERIALIZED (
    SELECT id FROM mailer_delivery
    WHERE id {ids} AND COALESCE(status, '') = 'queued' AND COALESCE(expires_at, :now) <= :now {lock})
UPDATE mailer_delivery
SET status = 'expired', due_at = NULL, finished_at = :now
WHERE id IN (SELECT id FROM overdue)
RETURNING id
"""
IS_DUE = """
SELECT 1 FROM mailer_delivery
WHERE status = 'queued' AND lane = :lane AND due_at <= :now AND (expires_at IS NULL OR expires_at > :now) {unless_paused}
LIMIT {most_unless_paused}
"""
NEXT_DUE = """
SELECT MIN(due_at) FROM mailer_delivery
WHERE status = 'queued' AND lane = :lane AND due_at > :now AND due_at <= :before AND NOT {paused}
"""
# A date beyond the next one, and more than clocks differ, was written by a clock that ran ahead: it must not stop the chore
# until then.
CHORE_IS_DONE = "SELECT 1 FROM mailer_chore WHERE name = :name AND due_at > :now AND due_at <= :latest"
TAKE_CHORE = """
INSERT INTO mailer_chore (name, due_at) VALUES (:name, :next)
ON CONFLICT (name) DO UPDATE SET due_at = :next WHERE mailer_chore.due_at <= :now OR mailer_chore.due_at > :latest
RETURNING name
"""
SOME_OLD = """
SELECT mailer_delivery.id, mail_id FROM mailer_delivery {unless_locked}
WHERE finished_at <= :before
ORDER BY finished_at LIMIT :most
"""
PURGE = """
WITH old AS MATERIALIZED (
    SELECT id FROM mailer_delivery WHERE id {ids} AND COALESCE(finished_at, :before + 1) <= :before {lock})
DELETE FROM mailer_delivery
WHERE id IN (SELECT id FROM old)
RETURNING id
"""
PURGE_MAILS = """
WITH empty AS MATERIALIZED (
    SELECT id FROM mailer_message
    WHERE id {mails} AND NOT EXISTS (SELECT 1 FROM mailer_delivery WHERE mail_id = mailer_message.id) {lock})
DELETE FROM mailer_message
WHERE id IN (SELECT id FROM empty)
RETURNING id
"""
# Not NOT EXISTS: for that, PostgreSQL may read all deliveries into a hash table, once for each of these steps.
SOME_MAILS = """
SELECT id, (SELECT 1 FROM mailer_delivery WHERE mail_id = mailer_message.id LIMIT 1) IS NULL FROM mailer_message
WHERE id > :after ORDER BY id LIMIT :most
"""
SOME_BLOBS = "SELECT sha256 FROM mailer_blob WHERE sha256 > :after ORDER BY sha256 LIMIT :most"
LOCK_UNUSED_BLOBS = """
SELECT sha256 FROM mailer_blob
WHERE sha256 {hashes} AND used_at <= :unused_since
    AND NOT EXISTS (SELECT 1 FROM mailer_attachment WHERE mailer_attachment.sha256 = mailer_blob.sha256)
{lock}
"""
PURGE_BLOBS = """
DELETE FROM mailer_blob
WHERE sha256 {hashes}
    AND NOT EXISTS (SELECT 1 FROM mailer_attachment WHERE mailer_attachment.sha256 = mailer_blob.sha256)
"""

# --- who delivers -----------------------------------------------------------------------------------------------------

BEAT = """
INSERT INTO mailer_worker (id, machine, pid, version, lanes, started_at, seen_at, delivered_at)
VALUES (:id, :machine, :pid, :version, :lanes, :started_at, :seen_at, :delivered_at)
ON CONFLICT (id) DO UPDATE SET seen_at = excluded.seen_at, delivered_at = excluded.delivered_at
"""
LEAVE = "DELETE FROM mailer_worker WHERE id = :id"
FORGET_WORKERS = "DELETE FROM mailer_worker WHERE seen_at < :before OR seen_at > :after"
WORKERS = """
SELECT id, machine, pid, version, lanes, started_at, seen_at, delivered_at FROM mailer_worker
WHERE seen_at >= :since AND seen_at <= :until ORDER BY seen_at DESC
"""
LAST_SEEN = """
SELECT (SELECT MAX(seen_at) FROM mailer_worker WHERE seen_at <= :until),
    (SELECT due_at FROM mailer_chore WHERE name = :sweep AND due_at <= :until)
"""
COUNT_DUE = """
SELECT COUNT(*), COUNT(DISTINCT mail_id) FROM (
    SELECT mail_id FROM mailer_delivery
    WHERE status = 'queued' AND lane = :lane AND due_at <= :now AND (expires_at IS NULL OR expires_at > :now) {unless_paused}
    LIMIT {most_unless_paused}) AS counted
"""

# --- the machine of a SQLite file -------------------------------------------------------------------------------------

HOME = "SELECT name, seen_at FROM mailer_home"
HOME_IS_OURS = "SELECT 1 FROM mailer_home WHERE machine = :machine AND seen_at > :since AND seen_at <= :now"
MARK_HOME = """
INSERT INTO mailer_home (id, machine, name, seen_at) VALUES (1, :machine, :name, :now)
ON CONFLICT (id) DO UPDATE SET machine = :machine, name = :name, seen_at = :now
WHERE mailer_home.machine = :machine OR mailer_home.seen_at <= :since OR mailer_home.seen_at > :until
RETURNING id
"""

# --- what is not to be kept -------------------------------------------------------------------------------------------

SOME_KEPT = """
SELECT id FROM mailer_message WHERE erased_at IS NULL AND id > :after AND id < :created_before ORDER BY id LIMIT :most
"""
# The last two copies of a mail may end at the same moment: whoever comes second has to see what the first one did.
LOCK_PRIVATE = """
SELECT id FROM mailer_message {indexed} WHERE id {mails} AND sensitive AND erased_at IS NULL ORDER BY id {wait}
"""
LOCK_FREE_PRIVATE = """
SELECT id FROM mailer_message {indexed} WHERE id {mails} AND sensitive AND erased_at IS NULL {skip}
"""
LOCK_MAILS = "SELECT id FROM mailer_message WHERE id {mails} ORDER BY id {wait}"
# A fingerprint that is not keyed would tell whoever tries them all which code was in a sensitive mail.
ERASE = """
UPDATE mailer_message
SET text = NULL, html = NULL, alternatives = '[]', erased_at = :now,
    subject = CASE WHEN sensitive THEN '' ELSE subject END, headers = CASE WHEN sensitive THEN '[]' ELSE headers END,
    fingerprint = CASE WHEN sensitive AND fingerprint_key IS NULL THEN NULL ELSE fingerprint END
WHERE id {mails} AND erased_at IS NULL AND NOT EXISTS (
    SELECT 1 FROM mailer_delivery
    WHERE mail_id = mailer_message.id AND (finished_at IS NULL OR finished_at > :finished_before))
RETURNING id
"""
DETACH = "DELETE FROM mailer_attachment WHERE mail_id {mails} RETURNING sha256"

# --- pauses -----------------------------------------------------------------------------------------------------------

PAUSES = "SELECT key, until, failures, reason, since FROM mailer_pause WHERE scope = :scope ORDER BY key"
STOP = """
INSERT INTO mailer_pause (scope, key, until, failures, reason, since) VALUES (:scope, :key, NULL, 0, :reason, :now)
ON CONFLICT (scope, key) DO UPDATE SET reason = :reason
"""
# A pause that another worker set a moment ago stands: workers that fail at the same time count as one failure.
PAUSE = """
INSERT INTO mailer_pause (scope, key, until, failures, reason, since) VALUES (:scope, :key, :until, 1, :reason, :now)
ON CONFLICT (scope, key) DO UPDATE SET until = :until, failures = mailer_pause.failures + 1, reason = :reason
WHERE mailer_pause.failures = :failures
RETURNING failures
"""
TAKE_PROBE = """
UPDATE mailer_pause SET until = :until WHERE scope = :scope AND key = :key AND until <= :now RETURNING key
"""
MOVE_PROBE = "UPDATE mailer_pause SET until = :until WHERE scope = :scope AND key = :key AND until = :taken_until RETURNING key"
RESUME = "DELETE FROM mailer_pause WHERE scope = :scope AND key = :key RETURNING key"

# --- a person's -------------------------------------------------------------------------------------------------------

SETTLE = """
WITH resting AS MATERIALIZED (
    SELECT id FROM mailer_delivery
    WHERE mail_id = :mail_id AND status {leaving}
        AND (:to <> 'queued' OR EXISTS (SELECT 1 FROM mailer_message WHERE id = :mail_id AND erased_at IS NULL))
    ORDER BY id {wait})
UPDATE mailer_delivery
SET status = :to, due_at = :due_at, finished_at = :finished_at, token = NULL,
    attempts = CASE WHEN :to = 'queued' THEN 0 ELSE attempts END,
    queued_at = CASE WHEN :to = 'queued' THEN :now ELSE queued_at END
WHERE id IN (SELECT id FROM resting)
RETURNING id
"""
DUE_BEFORE = """
SELECT id, {private} FROM mailer_delivery
WHERE status = 'queued' AND lane = :lane AND due_at < :before
ORDER BY due_at LIMIT :most
"""
CANCEL = """
WITH due AS MATERIALIZED (
    SELECT id FROM mailer_delivery
    WHERE id {ids} AND COALESCE(status, '') = 'queued' AND COALESCE(due_at, :before) < :before {lock})
UPDATE mailer_delivery
SET status = 'cancelled', due_at = NULL, finished_at = :now
WHERE id IN (SELECT id FROM due)
RETURNING id
"""
HOLD = """
WITH doubtful AS MATERIALIZED (
    SELECT id FROM mailer_delivery
    WHERE status = 'doubtful' AND due_at IS NOT NULL AND lane = :lane AND queued_at < :before ORDER BY id {wait})
UPDATE mailer_delivery SET due_at = NULL
WHERE id IN (SELECT id FROM doubtful)
RETURNING id
"""
# A collation in which "aa" is a letter after z, as that of Danish, does not find ids by this index: then all are read.
BEGINS_WITH = """
SELECT id FROM mailer_message WHERE id >= :beginning AND id < :end {or_by_byte} LIMIT :most
"""
MAIL_OF = "SELECT mail_id FROM mailer_delivery WHERE id = :id"
HEADS = "SELECT id, message_id, subject, created_at, sensitive, erased_at FROM mailer_message WHERE id {mails}"
COPIES = """
SELECT mail_id, id, recipient, status, lane, attempts, due_at, finished_at, reply, relay
FROM mailer_delivery WHERE mail_id {mails}
ORDER BY id
"""
TRIES = """
SELECT delivery_id, at, verdict, phase, mailer_attempt.reply, mailer_attempt.relay
FROM mailer_attempt JOIN mailer_delivery ON mailer_delivery.id = delivery_id
WHERE mail_id {mails}
ORDER BY mailer_attempt.id
"""
OUTGOING_LANES = """
SELECT lane, status, COUNT(*), MIN(due_at), MAX(due_at) FROM mailer_delivery
WHERE {outgoing} GROUP BY lane, status ORDER BY lane, status
"""
OUTGOING_AGES = """
SELECT age, COUNT(*) FROM (SELECT {age} AS age FROM mailer_delivery WHERE {outgoing}) AS aged GROUP BY age ORDER BY age
"""
OUTGOING_DOMAINS = """
SELECT domain, COUNT(*) FROM mailer_delivery WHERE {outgoing} GROUP BY domain ORDER BY 2 DESC, 1 LIMIT :most
"""
OUTGOING_FIRST = """
SELECT mail_id, recipient, lane, mailer_delivery.due_at, CASE WHEN sensitive THEN '(sensitive)' ELSE subject END
FROM mailer_delivery JOIN mailer_message ON mailer_message.id = mail_id
WHERE {outgoing} ORDER BY lane, mailer_delivery.due_at LIMIT :most
"""
COUNT = "SELECT status, lane, COUNT(*), MIN(due_at) FROM mailer_delivery GROUP BY status, lane ORDER BY lane, status"
