"""`flask mail inbox`, as a process."""

import os
import smtplib
import subprocess
import sys
from pathlib import Path
from urllib.request import Request, urlopen

from tests.services.ports import free_port
from tests.services.waiting import wait_until

PROJECT = Path(__file__).parents[2]
APP = "from flask import Flask\nfrom mailer import Mailer\n\napp = Flask(__name__)\nMailer(app)\n"
MAIL = b"Subject: Hello <you>\r\nMessage-ID: <1@example.com>\r\n\r\nGood \x1b[31mnews\r\n"


class Inbox:
    """The command, with an app of its own and free ports."""

    def __init__(self, folder: Path, python: Path | None = None) -> None:
        self.folder = folder
        self._python = python  # of an environment with the package; None: run the checkout
        self.smtp_port, self.web_port = free_port(), free_port()
        self._log = folder / "log"

    def start(self) -> None:
        """Return when the command prints that it is ready."""
        (self.folder / "app.py").write_text(APP)
        python = str(self._python or sys.executable)
        command = [python, "-m", "flask", "--app", "app", "--debug", "mail", "inbox"]
        command += ["--smtp-port", str(self.smtp_port), "--web-port", str(self.web_port)]
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        if self._python is None:
            environment["PYTHONPATH"] = str(PROJECT)
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                command, cwd=self.folder, env=environment, stdout=log, stderr=log
            )
        wait_until(
            lambda: "See them at" in self.said or self.process.poll() is not None, timeout=30
        )
        assert self.process.poll() is None, self.said

    @property
    def said(self) -> str:
        return self._log.read_text()

    def send(self, *recipients: str) -> None:
        with smtplib.SMTP("127.0.0.1", self.smtp_port, timeout=10) as client:
            client.sendmail("shop@example.com", recipients, MAIL)

    def get(self, path: str, host: str = "127.0.0.1") -> str:
        request = Request(
            f"http://127.0.0.1:{self.web_port}{path}", headers={"Host": f"{host}:{self.web_port}"}
        )
        with urlopen(request, timeout=10) as page:  # noqa: S310 -- it is http
            return str(page.read().decode())
