#!/usr/bin/env python3
"""Write docs/settings.md from the settings themselves: `python -m docs.settings_table`."""

from pathlib import Path
from typing import Any

from mailer.settings import Settings, keys
from mailer.settings.messages import allowed

PAGE = Path(__file__).with_name("settings.md")
OPENING = """\
# Settings

Written by `python -m docs.settings_table`: change `mailer/settings/`, not this page.

Each key is read from the app's configuration, and otherwise from the environment, where `True` and
`587` are converted to a boolean and a number. An unusable value is refused when the app starts,
with the key and the allowed values. A misspelled key in the app's configuration is refused as well
("MAILER_RETRY_ATEMPTS: there is no such key: did you mean MAILER_RETRY_ATTEMPTS?"). These only
cause a warning in the log: a plural of one of Flask-Mail's keys, such as `MAIL_SERVERS`, since it
may be your own key; any other unknown `MAILER_…` key; and a misspelled key in the environment,
which has the variables of other programs as well.

| Key | Default | Allowed | Purpose |
|---|---|---|---|
"""


def page() -> str:
    return OPENING + "".join(_row(key, name) for key, name in keys().items())


def _row(key: str, name: str) -> str:
    field = Settings.model_fields[name]
    default = "SQLite in the instance folder" if field.is_required() else _shown(field.default)
    return f"| `{key}` | {default} | {allowed(Settings, key)} | {field.description} |\n"


def _shown(default: Any) -> str:
    if default in (None, "", (), {}):
        return "none"
    if isinstance(default, tuple):
        default = ", ".join(default)
    return f"`{default:g}`" if isinstance(default, float) else f"`{default}`"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
