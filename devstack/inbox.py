"""`python -m devstack.inbox`: the SMTP server of the local stack. The web process has its page."""

import os
from pathlib import Path

from mailer.web.serving import serve_inbox

if __name__ == "__main__":
    serve_inbox(Path(os.environ["MAILER_INBOX_DIR"]), int(os.environ["MAIL_PORT"]), None, print)
