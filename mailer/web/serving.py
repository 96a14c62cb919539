"""`flask mail inbox`: an SMTP server that accepts every mail, and a page that shows them."""

import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path

from werkzeug.serving import WSGIRequestHandler, make_server

from mailer.errors import ConfigurationError
from mailer.message.text import printable
from mailer.smtpd.faults import BY_ADDRESS
from mailer.smtpd.inbox import Inbox
from mailer.web.inbox import create_inbox_app

_HOST = "127.0.0.1"
_STOP_SIGNALS = frozenset({signal.SIGINT, signal.SIGTERM})


def serve_inbox(
    folder: Path, smtp_port: int, web_port: int | None, say: Callable[[str], None]
) -> None:
    """Keep the mails that arrive at the SMTP port in the folder, until SIGINT or SIGTERM.

    With a `web_port`, a page shows them. Both servers listen on 127.0.0.1 only.
    """
    if find_spec("aiosmtpd") is None:
        raise ConfigurationError(
            "The inbox needs aiosmtpd, which is not installed. Install it with: pip install"
            " 'flask-mailer-queue[inbox]'"
        )
    from mailer.smtpd.server import InboxServer  # noqa: PLC0415 -- aiosmtpd is an extra

    inbox = Inbox(folder)

    def keep(sender: str, recipients: list[str], raw: bytes) -> str:
        mail_id = inbox.add(sender, recipients, raw)
        envelope = f"from={sender or '<>'} to={','.join(recipients)}"
        say(printable(f"{mail_id} {envelope} bytes={len(raw)}"))
        return mail_id

    # Blocked before the first thread starts, so that every thread leaves them to sigwait().
    former = signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
    try:
        with ExitStack() as servers:
            with _named(smtp_port, "--smtp-port"):
                servers.enter_context(
                    InboxServer(keep, host=_HOST, port=smtp_port, faults=BY_ADDRESS)
                )
            say(f"SMTP on {_HOST}:{smtp_port}, mails are kept in {folder}")
            if web_port is not None:
                with _named(web_port, "--web-port"):
                    servers.enter_context(
                        _page(inbox, web_port, smtp_address=f"{_HOST}:{smtp_port}")
                    )
                say(f"See them at http://{_HOST}:{web_port}. Stop with Ctrl-C.")
            signal.sigwait(_STOP_SIGNALS)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, former)


class _QuietHandler(WSGIRequestHandler):
    """A request handler without an access log: the open page asks every second."""

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        pass


@contextmanager
def _page(inbox: Inbox, port: int, *, smtp_address: str) -> Iterator[None]:
    with socket.create_server((_HOST, port)) as listener:
        app = create_inbox_app(inbox, smtp_address=smtp_address)
        server = make_server(
            _HOST, port, app, threaded=True, request_handler=_QuietHandler, fd=listener.fileno()
        )
        thread = threading.Thread(target=server.serve_forever, name="inbox page", daemon=True)
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


@contextmanager
def _named(port: int, option: str) -> Iterator[None]:
    """Name the option that chooses another port, if this one can't be used."""
    try:
        yield
    except OSError as error:
        raise ConfigurationError(
            f"Port {port} can't be used: {error.strerror}. Choose another one with {option}."
        ) from error
