"""Errors and results of `mail.send()`: what no longer is raised, and what is returned now."""

from collections.abc import Collection, Iterator

import libcst as cst

from mailer.migrate_code.findings import Decision, Finding, Replacement
from mailer.migrate_code.mail_functions import is_building
from mailer.migrate_code.mail_objects import MailObjects
from mailer.migrate_code.reading import File, dotted, last_name, own_nodes, walk

_SMTP = frozenset(
    """
    SMTPException SMTPServerDisconnected SMTPResponseException SMTPSenderRefused
    SMTPRecipientsRefused SMTPDataError SMTPConnectError SMTPHeloError SMTPNotSupportedError
    SMTPAuthenticationError
""".split()
)
_NETWORK = frozenset(
    """
    OSError IOError ConnectionError ConnectionRefusedError ConnectionResetError TimeoutError
    gaierror herror timeout SSLError BrokenPipeError socket.error
""".split()
)
_DETAILS = frozenset({"smtp_code", "smtp_error", "recipients", "sender"})

_REPLACED = (
    "mail.send() queues, so it raises no error of a relay: this never fires. It raises a"
    " MailerError if the mail can't be queued; a relay's reply is in the status of the mail."
)
_SEVERAL = (
    "mail.send() queues, so it raises none of these errors any more: {names}. It raises a"
    " MailerError (from mailer import MailerError), and for a bad address an InvalidAddress, which"
    " is one."
)
_NETWORK_ONLY = (
    "mail.send() queues, so it does not meet the network: {names} is not raised by it any more."
    " Catch MailerError (from mailer import MailerError)."
)
_NARROW = (
    "mail.send() queues, so it does not raise {names} any more. It raises a MailerError if the mail"
    " can't be queued, for whatever reason, and for a bad address an InvalidAddress, which is one"
    " (from mailer import InvalidAddress)."
)
_MIXED = (
    "mail.send() queues, so it does not raise {names} any more, but another call in this block may."
    " Catch MailerError (from mailer import MailerError) as well."
)
_DETAILED = (
    "mail.send() queues, so it does not raise {names} any more, and MailerError has no"
    " {details}: a relay's reply is in Mailer().status(receipt), and in the log of the workers."
)
_INDIRECT = (
    "If the mail in this block goes through mail.send(), {names} is not raised any more: catch"
    " MailerError (from mailer import MailerError) instead."
)
_RETURNED = "mail.send() returned None, and returns a receipt now: look at the use of the result."


def plan_excepts(file: File, mail: MailObjects, senders: Collection[str]) -> Iterator[Decision]:
    """Replace `except SMTPException` around `mail.send()` by `except MailerError`.

    Args:
        senders: The names of functions of the project that send mail.
    """
    sending = mail.sending_in(file)
    for node in file.every(cst.Try):
        inside = list(own_nodes(node.body))
        if {last_name(one) for one in inside} & {"SMTP", "SMTP_SSL", "LMTP"}:
            continue
        if sending & set(inside):
            only_mail = all(
                is_building(one, mail, sending, file.function(node))
                for one in inside
                if isinstance(one, cst.Call)
            )
            yield from _plan_try(file, node, only_mail)
        elif any(isinstance(one, cst.Call) and last_name(one) in senders for one in inside):
            for handler in node.handlers:
                if names := _names(handler.type, _SMTP):
                    yield Finding(file.line(handler), _INDIRECT.format(names=", ".join(names)))


def plan_results(file: File, mail: MailObjects) -> Iterator[Finding]:
    """Point to places where the result of `mail.send()` is used: it was None."""
    for call in file.every(cst.Call):
        if mail.is_sending(call) and not isinstance(
            file.parent(call), cst.Expr | cst.Return | cst.Lambda | cst.Arg
        ):
            yield Finding(file.line(call), _RETURNED)


def _plan_try(file: File, node: cst.Try, only_mail: bool) -> Iterator[Decision]:
    typed = [one for one in node.handlers if one.type is not None]
    smtp = [one for one in typed if _names(one.type, _SMTP)]
    if any(_names(one.type, {"MailerError"}) for one in typed):
        return
    network = [name for one in typed for name in _names(one.type, _NETWORK)]
    if len(smtp) > 1:
        names = ", ".join(name for one in smtp for name in _names(one.type, _SMTP))
        yield Finding(file.line(smtp[0]), _SEVERAL.format(names=names))
    elif smtp:
        yield _plan_handler(file, smtp[0], only_mail)
    elif network:
        yield Finding(file.line(node), _NETWORK_ONLY.format(names=", ".join(network)))


def _plan_handler(file: File, handler: cst.ExceptHandler, only_mail: bool) -> Decision:
    line, names = file.line(handler), ", ".join(_names(handler.type, _SMTP))
    if details := _details(handler):
        return Finding(line, _DETAILED.format(names=names, details=" or ".join(details)))
    if not _names(handler.type, {"SMTPException"}):
        return Finding(line, _NARROW.format(names=names))
    if not only_mail:
        return Finding(line, _MIXED.format(names=names))
    first, *others = _types(handler.type, _SMTP)
    caught = handler.type
    if isinstance(caught, cst.Tuple) and len(caught.elements) == 1 + len(others):
        first, others = caught, []
    return Replacement(
        Finding(line, _REPLACED),
        {first: cst.Name("MailerError", lpar=first.lpar, rpar=first.rpar)},
        frozenset(file.parent(one) for one in others),
        frozenset({("MailerError", "")}),
    )


def _details(handler: cst.ExceptHandler) -> list[str]:
    """Return the details of a relay's reply that a handler uses: `error.smtp_code`."""
    if handler.name is None:
        return []
    error = dotted(handler.name.name)
    attributes = (one for one in walk(handler.body) if isinstance(one, cst.Attribute))
    return sorted({a.attr.value for a in attributes if dotted(a.value) == error} & _DETAILS)


def _types(node: cst.BaseExpression | None, wanted: Collection[str]) -> list[cst.BaseExpression]:
    """Return the wanted errors among those of an `except`."""
    found = [one.value for one in node.elements] if isinstance(node, cst.Tuple) else [node]
    return [one for one in found if one and {last_name(one), dotted(one)} & {*wanted}]


def _names(node: cst.BaseExpression | None, wanted: Collection[str]) -> list[str]:
    return [dotted(one) for one in _types(node, wanted)]
