"""OpenDKIM, which verifies the signatures of a mail with keys from a file instead of DNS."""

import re
import subprocess
from pathlib import Path

from tests.services.requirement import find_program, require
from tests.signing import Records

_SBIN = [Path("/usr/sbin"), Path("/usr/local/sbin")]
_RESULT = re.compile(r"dkim=(\w+) .*?header\.s=([\w.-]+)")


def program(name: str) -> Path:
    return require(f"{name} of OpenDKIM", find_program(name, also_in=_SBIN))


def verified_by_opendkim(mail: bytes, in_dns: Records, folder: Path) -> dict[str, str]:
    """Return "pass" or "fail" for each signature, by selector."""
    (folder / "mail.eml").write_bytes(mail)
    (folder / "dns").write_text(
        "".join(f"{name} {record}\n" for name, record in in_dns.items()), encoding="ascii"
    )
    (folder / "conf").write_text(f"Mode v\nTestPublicKeys {folder / 'dns'}\n", encoding="utf-8")
    command: list[str | Path] = [
        program("opendkim"),
        "-x",
        folder / "conf",
        "-t",
        folder / "mail.eml",
        "-vv",
    ]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {selector: result for result, selector in _RESULT.findall(said)}
