"""The token endpoints of Microsoft and Google, on this machine, over TLS."""

import json
import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

TENANT = "00000000-0000-0000-0000-00000000000a"


class TokenServer(ThreadingHTTPServer):
    """A server that returns "token 1", "token 2" and so on, with a certificate for localhost."""

    def __init__(self, context: ssl.SSLContext) -> None:
        super().__init__(("127.0.0.1", 0), _Request)
        self.socket = context.wrap_socket(self.socket, server_side=True)
        self.url = f"https://localhost:{self.server_address[1]}"
        self.expires_in = 3600
        #: A status and a body to return instead of a token.
        self.refusal: tuple[int, dict[str, str]] | None = None
        self.asked: list[dict[str, str]] = []  # form data of the requests for tokens
        self._thread = threading.Thread(
            target=self.serve_forever, args=(0.02,), name="token server"
        )

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()

    def service_account(self, file: Path) -> Path:
        """Write the key of a Google service account whose tokens come from here."""
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        pem = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        said = {
            "type": "service_account",
            "client_email": "mailer@project.iam.gserviceaccount.com",
            "private_key_id": "1",
            "private_key": pem.decode(),
            "token_uri": f"{self.url}/token",
        }
        file.write_text(json.dumps(said), encoding="utf-8")
        return file


class _Request(BaseHTTPRequestHandler):
    server: TokenServer

    def do_GET(self) -> None:
        """Answer Microsoft's library, which first asks for the token endpoint."""
        tenant = f"{self.server.url}/{TENANT}"
        endpoints = {
            "token_endpoint": f"{tenant}/oauth2/v2.0/token",
            "authorization_endpoint": f"{tenant}/oauth2/v2.0/authorize",
        }
        if self.path.startswith(f"/{TENANT}/"):
            self._answer(200, {"issuer": f"{tenant}/v2.0", **endpoints})
        else:
            self._answer(400, {"error": "invalid_tenant"})

    def do_POST(self) -> None:
        form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        self.server.asked.append({name: values[0] for name, values in form.items()})
        token = {
            "access_token": f"token {len(self.server.asked)}",
            "expires_in": self.server.expires_in,
            "token_type": "Bearer",
        }
        self._answer(*(self.server.refusal or (200, token)))

    def _answer(self, status: int, said: dict[str, Any]) -> None:
        body = json.dumps(said).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Log nothing, since the test reports failures."""
