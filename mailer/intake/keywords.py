"""Keywords of `send_email()` that are nearly options, and would else pass silently."""

from collections.abc import Iterable
from functools import lru_cache

from mailer.content import Renderer
from mailer.errors import InvalidMail
from mailer.settings.spelling import did_you_mean, near

_OPTIONS = (
    "to subject template text html cc bcc reply_to sender attachments headers lane tenant send_at"
    " undo expires_at on_doubt sensitive tags metadata idempotency_key connection context"
).split()
#: The names of an option elsewhere.
_ALIASES = {
    "template": ("template_name", "template_prefix"),
    "text": "body text_body body_text plain plain_message message msg content".split(),
    "html": ("html_body", "body_html", "html_message"),
    "to": (
        "recipients",
        "recipient",
        "recipient_list",
        "receivers",
        "receiver",
        "to_email",
        "to_emails",
        "to_addr",
        "to_addrs",
    ),
    "sender": (
        "from",
        "from_",
        "from_email",
        "from_addr",
        "from_address",
        "mail_from",
        "sent_from",
    ),
    "cc": ("carbon_copy",),
    "bcc": ("blind_copy",),
    "attachments": ("attachment", "attach", "attached", "attached_files", "file", "files"),
    "headers": ("extra_headers", "header"),
    "lane": ("priority",),
    "tenant": ("tenant_id", "tenant_name"),
    "metadata": ("meta", "custom_args", "extra_data"),
    "send_at": "countdown eta scheduled_at schedule_at deliver_at delay when".split(),
    "expires_at": ("expires", "expires_in", "expiry", "expiration", "ttl"),
    "idempotency_key": (
        "idempotency",
        "idempotence_key",
        "idempotent",
        "dedupe_key",
        "unique",
        "unique_key",
        "key",
    ),
    "connection": ("db_session", "session", "transaction"),
    "context": ("ctx", "template_context", "context_data"),
}
#: Names for which there is no option, and the remedy.
_NO_OPTION = {
    **dict.fromkeys(
        ("retry", "retries", "max_retries"),
        "Workers try again by themselves, for as long as MAILER_RETRY_AGE says.",
    ),
    "sync": "The call queues the mail, and a worker delivers it: leave it out.",
}
_KNOWN_WRONG = {alias: option for option, aliases in _ALIASES.items() for alias in aliases}


def check_keywords(renderer: Renderer, template: str | None, keywords: Iterable[str]) -> None:
    """Refuse a near miss of an option, or its name elsewhere, unless the template uses it."""
    for keyword in keywords:
        meant = _meant(keyword)
        is_wrong = meant or keyword.lower() in _NO_OPTION
        if is_wrong and not (template is not None and renderer.may_use(template, keyword)):
            raise InvalidMail(_refusal(keyword, meant, template))


def _refusal(keyword: str, meant: tuple[str, ...], template: str | None) -> str:
    question = _NO_OPTION.get(keyword.lower()) or did_you_mean(meant)
    if template is None:
        return f"{keyword}: there is no such option: {question}"
    remedy = (
        "A mail has a template, or text and html."
        if {"text", "html"} & {*meant}
        else "Pass variables for other templates in context={…}."
    )
    return (
        f"{keyword}: there is no such option, and template {template!r} has no variable of this"
        f" name: {question} {remedy}"
    )


@lru_cache(maxsize=1024)
def _meant(keyword: str) -> tuple[str, ...]:
    known_wrong = _KNOWN_WRONG.get(keyword.lower())
    return (known_wrong,) if known_wrong else tuple(near(keyword, _OPTIONS))
