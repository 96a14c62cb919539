"""How TLS is spoken with a relay: verified, and no older than is allowed."""

import ssl
import warnings

from mailer.settings import RelaySettings

_VERSIONS = {
    "TLSv1": ssl.TLSVersion.TLSv1,
    "TLSv1.1": ssl.TLSVersion.TLSv1_1,
    "TLSv1.2": ssl.TLSVersion.TLSv1_2,
    "TLSv1.3": ssl.TLSVersion.TLSv1_3,
}


def make_context(settings: RelaySettings) -> ssl.SSLContext:
    """Reading the authorities takes milliseconds: one is made for all connections of a relay."""
    context = ssl.create_default_context(cafile=settings.tls_ca_file)
    if settings.tls_client_certificate:
        context.load_cert_chain(settings.tls_client_certificate)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # who asks for an old version knows
        context.minimum_version = _VERSIONS[settings.tls_minimum]
    if context.minimum_version < ssl.TLSVersion.TLSv1_2:
        context.set_ciphers("DEFAULT:@SECLEVEL=0")  # without this, OpenSSL 3 offers the old versions and can't speak them
    return context
