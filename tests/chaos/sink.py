"""A relay that records each mail on disk before it replies 250.

`python -m tests.chaos.sink PORT FILE`.

A line of the file is the recipient, the Message-ID and the time. The relay is a process of its own,
so that it can be frozen and killed, and does not share a core with the installation under test.
Recipients whose name begins with "grey" are greylisted: their first mail is deferred once.

While there is a file FILE.hold, the relay records the next mail, creates FILE.held, and replies to
nobody until FILE.hold is gone.
"""

import asyncio
import os
import re
import sys
import time
from pathlib import Path

_MESSAGE_ID = re.compile(rb"^Message-ID:\s*(<[^>\r\n]*>)", re.IGNORECASE | re.MULTILINE)
_HOLD, _HELD = Path(f"{sys.argv[-1]}.hold"), Path(f"{sys.argv[-1]}.held")
_END = b"\r\n.\r\n"


class _Session(asyncio.Protocol):
    def __init__(self, file: int, greylisted: set[bytes]) -> None:
        self._file = file
        self._greylisted = greylisted
        self._arrived = b""
        self._recipient = b""
        self._in_mail = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.write(b"220 sink\r\n")

    def data_received(self, data: bytes) -> None:
        self._arrived += data
        replies: list[bytes] = []
        while (reply := self._next_reply()) is not None:
            replies.append(reply)
        self._transport.write(b"".join(replies))

    def _next_reply(self) -> bytes | None:
        if self._in_mail:
            mail, end, rest = self._arrived.partition(_END)
            if not end:
                return None
            self._arrived, self._in_mail = rest, False
            return self._take(mail)
        line, end, rest = self._arrived.partition(b"\r\n")
        if not end:
            return None
        self._arrived = rest
        return self._obey(line)

    def _obey(self, line: bytes) -> bytes:
        match line[:4].upper():
            case b"EHLO":
                return b"250-sink\r\n250-PIPELINING\r\n250 8BITMIME\r\n"
            case b"RCPT":
                self._recipient = line.partition(b"<")[2].partition(b">")[0]
                return self._greet(self._recipient)
            case b"DATA":
                self._in_mail = True
                return b"354 go on\r\n"
            case b"QUIT":
                self._transport.close()
                return b"221 bye\r\n"
            case _:
                return b"250 ok\r\n"

    def _greet(self, recipient: bytes) -> bytes:
        if not recipient.startswith(b"grey") or recipient in self._greylisted:
            return b"250 ok\r\n"
        self._greylisted.add(recipient)
        return b"450 4.7.1 greylisted, try again in 3 seconds\r\n"

    def _take(self, mail: bytes) -> bytes:
        found = _MESSAGE_ID.search(mail)
        os.write(
            self._file,
            b"%b %b %.3f\n" % (self._recipient, found[1] if found else b"-", time.time()),
        )
        while _HOLD.exists():
            _HELD.touch()
            time.sleep(0.01)
        return b"250 2.0.0 taken\r\n"


async def _serve(port: int, file: int) -> None:
    greylisted: set[bytes] = set()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: _Session(file, greylisted), "127.0.0.1", port, backlog=512
    )
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    taken = os.open(Path(sys.argv[2]), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    asyncio.run(_serve(int(sys.argv[1]), taken))
