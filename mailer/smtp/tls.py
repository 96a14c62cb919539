"""The TLS context of a relay: verified, with a minimum version."""

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
    """Make a context. It reads the authorities, which takes milliseconds: share it."""
    context = ssl.create_default_context(cafile=settings.tls_ca_file)
    if settings.tls_client_certificate:
        context.load_cert_chain(settings.tls_client_certificate)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the old version is in the settings
        context.minimum_version = _VERSIONS[settings.tls_minimum]
    if context.minimum_version < ssl.TLSVersion.TLSv1_2:
        context.set_ciphers("DEFAULT:@SECLEVEL=0")  # else OpenSSL 3 offers old versions in vain
    return context
