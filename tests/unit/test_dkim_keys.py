"""DKIM keys are checked when the app starts, and never shown."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateNumbers, RSAPublicNumbers
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from mailer.errors import ConfigurationError
from mailer.mime import make_signer, signer
from mailer.settings import Settings
from mailer.settings.dkim import DkimKey
from tests.signing import ED25519, RSA, dkim_key, rsa_pem

RSA_TEXT = RSA.pem.decode()


def load(given: Any) -> Settings:
    return Settings.load({"MAILER_DKIM_KEYS": given}, {}, default_database_url="sqlite://")


def entry(**changes: Any) -> dict[str, Any]:
    given = {"domain": "example.com", "selector": "2026a", "key": RSA_TEXT, **changes}
    return {name: value for name, value in given.items() if value is not None}


# --- what is taken ------------------------------------------------------------------------------


def test_a_key_comes_as_a_text_or_in_a_file(tmp_path: Path) -> None:
    """A key is given as text or as a file, and its domain may have non-ASCII letters."""
    file = tmp_path / "ed.pem"
    file.write_bytes(ED25519.pem)
    settings = load(
        [entry(), entry(domain="Bücher.example", selector="2026B", key=None, key_file=str(file))]
    )

    assert [(key.domain, key.selector, key.pem) for key in settings.dkim_keys] == [
        ("example.com", "2026a", RSA.pem),
        ("xn--bcher-kva.example", "2026b", ED25519.pem),
    ]


@pytest.mark.parametrize(
    "text",
    [
        json.dumps([entry()]),
        json.dumps([entry(key=RSA_TEXT.replace("\n", "\\n"))]),  # escaped twice, as some panels do
        json.dumps([entry()]).replace("\\n", "\n"),  # not at all
    ],
    ids=["once", "twice", "not escaped"],
)
def test_the_environment_has_them_as_json(text: str) -> None:
    """Keys in the environment are JSON, with the key's line ends escaped or not."""
    settings = Settings.load({}, {"MAILER_DKIM_KEYS": text}, default_database_url="sqlite://")

    assert [(str(key), key.pem) for key in settings.dkim_keys] == [
        ("2026a of example.com", RSA.pem)
    ]
    assert make_signer(settings.dkim_keys) is not None


@pytest.mark.parametrize(
    "pem",
    [RSA.pem, ED25519.pem, rsa_pem(1024), rsa_pem(2048, PrivateFormat.TraditionalOpenSSL)],
    # The keys themselves differ from process to process.
    ids=["RSA", "Ed25519", "short RSA", "the older format"],
)
def test_a_key_that_can_sign(pem: bytes) -> None:
    """RSA keys in both formats of OpenSSL and Ed25519 keys can sign."""
    assert make_signer([dkim_key("example.com", "2026a", pem)]) is not None


def test_two_keys_of_one_domain() -> None:
    """A domain may have two keys, and two domains keys of the same selector."""
    assert len(load([entry(), entry(selector="2026b"), entry(domain="example.org")]).dkim_keys) == 3


# --- what is refused ----------------------------------------------------------------------------


A_LIST = (
    "allowed: a list, in the environment as JSON, such as"
    ' [{"domain": "example.com", "selector": "2026a", "key_file"'
)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("nonsense", f"=<hidden>: not JSON (line 1, column 1); {A_LIST}"),
        ('{"domain": "example.com"}', f"=<hidden>: {A_LIST}"),
        (3, f"=<hidden>: {A_LIST}"),
        (["example.com"], "[0]=<hidden>: allowed: an object."),
        ([entry(), entry(selektor="x")], "[1]['selektor']: unknown key; did you mean selector?"),
        (
            [entry(), entry(kee="x")],
            "[1]['kee']: unknown key; allowed: domain, key, key_file, selector.",
        ),
        ([entry(domain=None)], "[0]['domain']: missing; allowed: a text that is not empty."),
        ([entry(key=None)], "[0]=<hidden>: give domain, selector, and either key_file or key."),
        (
            [entry(key_file="/x.pem")],
            "[0]=<hidden>: give domain, selector, and either key_file or key.",
        ),
        ([entry(selector=2026)], "[0]['selector']=<hidden>: allowed: a text that is not empty."),
        ([entry(key="")], "[0]['key']=<hidden>: allowed: a text that is not empty."),
        (
            [entry(selector="a b")],
            "[0]['selector']=<hidden>: the selector 'a b' is no name in the DNS",
        ),
        (
            [entry(domain="ada@example.com")],
            "[0]['domain']=<hidden>: 'ada@example.com' is no domain",
        ),
        (
            [entry(domain="example.com; d=other")],
            "[0]['domain']=<hidden>: 'example.com; d=other' is no domain",
        ),
        (
            [entry(key=None, key_file="/nowhere/2026a.pem")],
            "[0]=<hidden>: the file '/nowhere/2026a.pem' can't be read: No such file",
        ),
        (
            [entry(key=None, key_file="/")],
            "[0]=<hidden>: the file '/' can't be read: Is a directory",
        ),
        (
            [entry(key=None, key_file="a\0b")],
            "[0]=<hidden>: the file 'a\\x00b' can't be read: embedded null byte",
        ),
        (
            [entry(), entry(selector="2026A")],
            "=<hidden>: the selector 2026a of example.com is there twice",
        ),
    ],
)
def test_an_entry_that_can_not_be_used(given: Any, words: str) -> None:
    """The error for a bad entry names it and what is allowed, and never shows the key."""
    with pytest.raises(ConfigurationError) as refused:
        load(given)
    assert str(refused.value).startswith(f"MAILER_DKIM_KEYS{words}")
    assert "PRIVATE KEY" not in str(refused.value)


def encrypted(pem: bytes) -> bytes:
    return load_pem_private_key(pem, None).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")
    )


def of_another_kind() -> bytes:
    return generate_private_key(SECP256R1()).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    )


def public(pem: bytes) -> bytes:
    return (
        load_pem_private_key(pem, None)
        .public_key()
        .public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )


def too_short() -> bytes:
    """Return an RSA key of 512 bits, which no tool here would make."""
    return of_primes(3 * 2**254 + 49, 3 * 2**254 + 119)


def too_long() -> bytes:
    """Return an RSA key of 4484 bits, which would take seconds to generate."""
    return of_primes(2**2203 - 1, 2**2281 - 1)


def of_primes(p: int, q: int) -> bytes:
    e = 65537
    d = pow(e, -1, (p - 1) * (q - 1))
    numbers = RSAPrivateNumbers(
        p, q, d, d % (p - 1), d % (q - 1), pow(q, -1, p), RSAPublicNumbers(e, p * q)
    )
    return numbers.private_key().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


@pytest.mark.parametrize(
    ("pem", "reason"),
    [
        (b"nonsense", "no private key in PEM"),
        (b"", "no private key in PEM"),
        (RSA.pem[:200], "no private key in PEM"),
        (public(RSA.pem), "no private key in PEM"),
        (encrypted(RSA.pem), "it is encrypted"),
        (of_another_kind(), "DKIM knows RSA and Ed25519 only"),
        (too_short(), "RSA of 512 bits: take 2048"),
        (too_long(), "RSA of 4484 bits: take 2048, from 1024 to 4096 are possible"),
    ],
    ids=lambda given: given if isinstance(given, str) else "",
)
def test_a_key_that_can_not_sign(pem: bytes, reason: str, tmp_path: Path) -> None:
    """A key that cannot sign is refused at start with the reason."""
    file = tmp_path / "2026a.pem"
    file.write_bytes(pem)
    unusable = DkimKey(domain="example.com", selector="2026a", key_file=str(file))
    with pytest.raises(ConfigurationError, match=re.escape(reason)) as refused:
        make_signer([RSA, unusable])
    assert str(refused.value).startswith(
        "MAILER_DKIM_KEYS=<hidden>: the key 2026a of example.com can't be used: "
    )


def test_signing_without_the_package_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the package for signing is missing, the error tells how to install it."""
    monkeypatch.setattr(signer, "find_spec", lambda _name: None)

    with pytest.raises(
        ConfigurationError, match=re.escape("pip install 'flask-mailer-queue[dkim]'")
    ):
        make_signer([RSA])


def test_a_key_is_shown_nowhere() -> None:
    """Neither the settings nor the signer show a key in their repr."""
    settings = load([entry()])
    made = make_signer(settings.dkim_keys)
    assert made is not None

    for shown in (settings, settings.dkim_keys, made, made.keys_for("example.com")):
        assert RSA_TEXT[40:60] not in repr(shown)
        assert "PRIVATE" not in repr(shown)
