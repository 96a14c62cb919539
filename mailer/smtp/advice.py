"""Advice on failures that our own configuration causes: which key to change, and how."""

import smtplib
import socket
import ssl

from mailer.settings import INBOX_PORT, RelaySettings
from mailer.smtp.names import NameTimeout
from mailer.smtp.oauth import NoToken
from mailer.smtp.session import Step
from mailer.smtp.sockets import Misconfigured

_UNKNOWN_NAME = (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME))
# The errors of OpenSSL for a port without TLS, and for versions of TLS that do not match.
_NO_TLS = frozenset(
    {
        "WRONG_VERSION_NUMBER",
        "UNKNOWN_PROTOCOL",
        "RECORD_LAYER_FAILURE",
        "PACKET_LENGTH_TOO_LONG",
        "HTTP_REQUEST",
    }
)
_OLD_TLS = frozenset(
    {
        "UNSUPPORTED_PROTOCOL",
        "TLSV1_ALERT_PROTOCOL_VERSION",
        "NO_PROTOCOLS_AVAILABLE",
        "WRONG_SSL_VERSION",
    }
)
# X509_V_ERR_…: errors of certificates.
_NOT_IN_TIME = frozenset({9, 10})
_OTHER_NAME = frozenset({62, 64})
_OAUTH_ADVICE = "MAILER_OAUTH: there is no token to log in with: correct the error in the reply."
_PORTS = "port 587 with MAIL_USE_TLS, port 465 with MAIL_USE_SSL"
_SMTP_PORT = 25


def for_error(error: Exception, step: Step, settings: RelaySettings) -> str:
    """Return advice on an error of the login sequence. It is empty if no setting is wrong."""
    match error:
        case Misconfigured():
            return error.advice
        case NoToken():
            return "" if error.passing else _OAUTH_ADVICE
        case ssl.SSLCertVerificationError():
            return _for_certificate(error, settings)
        case ssl.SSLError():
            return _for_tls(error, settings)
    return _AT[step](error, settings)


def _at_connect(error: Exception, settings: RelaySettings) -> str:
    match error:
        case socket.gaierror() if error.errno in _UNKNOWN_NAME:
            return f"MAIL_SERVER: the DNS does not know {settings.mail_server!r}: correct the name."
        case UnicodeError():
            return f"MAIL_SERVER: {settings.mail_server!r} is not a host name: correct it."
        case FileNotFoundError() | PermissionError() | ConnectionRefusedError() if settings.is_unix:
            return (
                f"MAIL_SERVER: the socket {settings.mail_server!r} can't be used: correct the path,"
                " or who may use it."
            )
        case NameTimeout():
            return ""
    return _for_port(error, settings)


def _for_port(error: Exception, settings: RelaySettings) -> str:
    match error:
        case ConnectionRefusedError() if settings.is_local and settings.mail_port == INBOX_PORT:
            return (
                f"MAIL_PORT: nothing listens on port {INBOX_PORT} of this machine: start the inbox"
                " with `flask mail inbox`, or set MAIL_SERVER and MAIL_PORT to your relay."
            )
        case ConnectionRefusedError() if settings.is_local and settings.mail_port == _SMTP_PORT:
            return (
                "MAIL_SERVER: nothing listens on port 25 of this machine: set MAIL_SERVER and"
                " MAIL_PORT to your relay, or start the relay of this machine."
            )
        case TimeoutError() if not settings.is_local and settings.mail_port == _SMTP_PORT:
            return (
                "MAIL_PORT: port 25 of the relay does not answer, and many networks block it:"
                f" usual are {_PORTS}."
            )
    return ""


def _at_greeting(error: Exception, settings: RelaySettings) -> str:
    if (
        isinstance(error, TimeoutError | smtplib.SMTPServerDisconnected)
        and not settings.mail_use_ssl
        and settings.mail_port == 465
    ):
        instead = " instead of MAIL_USE_TLS" if settings.mail_use_tls else ""
        return f"MAIL_USE_SSL: port 465 begins with TLS: set it{instead}; usual are {_PORTS}."
    return ""


def _at_tls(error: Exception, settings: RelaySettings) -> str:
    if isinstance(error, smtplib.SMTPNotSupportedError):
        return (
            f"MAIL_USE_TLS: the relay offers no STARTTLS on port {settings.mail_port}: usual are"
            f" {_PORTS}."
        )
    return ""


def _at_login(error: Exception, settings: RelaySettings) -> str:
    if isinstance(error, smtplib.SMTPResponseException):
        return for_reply(error.smtp_code, str(error.smtp_error), settings)
    if not isinstance(error, smtplib.SMTPNotSupportedError):
        return ""
    if not settings.uses_tls and not settings.is_local:
        return (
            f"MAIL_USE_TLS: the relay offers no login that we know without TLS: usual are {_PORTS}."
        )
    return (
        "MAIL_USERNAME: the relay offers no login that we know: unset it if the relay needs none,"
        " or use its port for logins."
    )


_AT = {
    Step.CONNECT: _at_connect,
    Step.GREET: _at_greeting,
    Step.SECURE: _at_tls,
    Step.LOGIN: _at_login,
}


def for_reply(code: int, text: str, settings: RelaySettings) -> str:
    """Return advice on a reply that is about us and not about the mail."""
    if not 500 <= code < 600:
        return ""
    if not settings.uses_tls and (code == 538 or "starttls" in text.lower()):
        return f"MAIL_USE_TLS: the relay takes nothing without TLS: usual are {_PORTS}."
    if settings.mail_username is None:
        return "MAIL_USERNAME and MAIL_PASSWORD: the relay requires a login: set them."
    if settings.lacks_password:
        return "MAIL_PASSWORD: the relay requires a login, and MAIL_USERNAME alone is none: set it."
    if settings.oauth is not None:
        return (
            "MAILER_OAUTH: the relay refuses the token: see that it is for SMTP, and for the"
            f" mailbox {settings.mail_username!r}."
        )
    return "MAIL_USERNAME and MAIL_PASSWORD: the relay refuses this login: correct it."


def _for_certificate(error: ssl.SSLCertVerificationError, settings: RelaySettings) -> str:
    if error.verify_code in _OTHER_NAME:
        return (
            f"MAIL_SERVER: the relay's certificate is not for {settings.mail_server!r}: use the"
            " name that it is for."
        )
    if error.verify_code in _NOT_IN_TIME:
        return (
            "The relay's certificate is not valid at this time: check this machine's clock, or let"
            " the relay's owner renew it."
        )
    if settings.tls_ca_file:
        return (
            f"MAILER_TLS_CA_FILE: none of the authorities in {settings.tls_ca_file!r} has signed"
            " the relay's certificate."
        )
    return (
        "MAILER_TLS_CA_FILE: no known authority has signed the relay's certificate: if it is your"
        " own, name its PEM file."
    )


def _for_tls(error: ssl.SSLError, settings: RelaySettings) -> str:
    if error.reason in _NO_TLS:
        return (
            f"MAIL_USE_SSL: port {settings.mail_port} of the relay does not begin with TLS: usual"
            f" are {_PORTS}."
        )
    if error.reason in _OLD_TLS:
        return (
            f"MAILER_TLS_MINIMUM: the relay speaks no {settings.tls_minimum}: lower it, or let the"
            " relay's owner upgrade."
        )
    return ""
