"""The content of mails: from templates and contexts to text and html."""

from mailer.content.bodies import Bodies, inline_css, make_bodies, text_from_html
from mailer.content.budget import Limits
from mailer.content.personal import personal_mail
from mailer.content.rendering import Renderer
from mailer.content.snapshot_rendering import RenderedMail, SnapshotRenderer
from mailer.content.snapshots import Snapshot, check_json, take_snapshot, used_names

__all__ = [
    "Bodies",
    "Limits",
    "RenderedMail",
    "Renderer",
    "Snapshot",
    "SnapshotRenderer",
    "check_json",
    "inline_css",
    "make_bodies",
    "personal_mail",
    "take_snapshot",
    "text_from_html",
    "used_names",
]
