"""What nobody may smuggle into a header or a command of SMTP."""

#: Each ends a line somewhere, hides what follows, or is no character at all.
FORBIDDEN = [
    "\r",
    "\n",
    "\r\n",
    "\r\n ",
    "\x00",
    "\t",
    "\x0b",
    "\x0c",
    "\x1b",
    "\x1c",
    "\x7f",
    "\x85",
    "\x9b",
    "\u2028",
    "\u2029",
    "\ud800",
]


def injected(before: str = "a", after: str = "Bcc: eve@example.com") -> list[str]:
    """Texts with one of them in the middle, and one each with a line break at its ends."""
    return [*(f"{before}{forbidden}{after}" for forbidden in FORBIDDEN), f"\n{before}", f"{before}\n"]
