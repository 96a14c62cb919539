"""An SMTP server that is far away.

`python -m bench.relay PORT SECONDS` delays all replies by that round trip.

It offers PIPELINING, accepts every mail, and prints "mesg=N" and a carriage return for each, as
smtp-sink does.
"""

import asyncio
import os
import selectors
import sys
from collections import deque

_END = b"\r\n.\r\n"
_HELLO = b"250-relay\r\n250-PIPELINING\r\n250-8BITMIME\r\n250 SIZE 10000000\r\n"
_REPLIES = {b"EHLO": _HELLO, b"DATA": b"354 go on\r\n", b"QUIT": b"221 bye\r\n"}


class Session(asyncio.Protocol):
    """One connection."""

    received = 0  # of all connections

    def __init__(self, round_trip: float) -> None:
        self._round_trip = round_trip
        self._on_the_way: deque[bytes] = deque()
        self._read = b""
        self._recipient = b""
        self._in_data = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._loop.call_later(self._round_trip, transport.write, b"220 relay\r\n")

    def data_received(self, data: bytes) -> None:
        self._on_the_way.append(data)
        self._loop.call_later(self._round_trip, self._arrive)

    def _arrive(self) -> None:
        self._read += self._on_the_way.popleft()
        replies = b"".join(iter(self._reply, b""))
        if replies:
            self._transport.write(replies)

    def _reply(self) -> bytes:
        """Return the reply to the next command or mail, or nothing if it is incomplete."""
        taken, end, rest = self._read.partition(_END if self._in_data else b"\r\n")
        if not end:
            return b""
        self._read = rest
        if self._in_data:
            self.receive(self._recipient)
        verb = b"" if self._in_data else taken[:4].upper()
        if verb == b"RCPT":
            self._recipient = taken
        self._in_data = verb == b"DATA"
        return _REPLIES.get(verb, b"250 ok\r\n")

    def receive(self, _recipient: bytes) -> None:
        """Count a mail whose last byte has arrived."""
        Session.received += 1
        os.write(1, b"mesg=%d\r" % Session.received)


async def serve(session: type[Session], port: int, round_trip: float) -> None:
    server = await asyncio.get_running_loop().create_server(
        lambda: session(round_trip), "127.0.0.1", port
    )
    await server.serve_forever()


def main(session: type[Session] = Session) -> None:
    # Time-outs of select are exact to the microsecond; epoll rounds them up to a millisecond.
    loop = asyncio.SelectorEventLoop(selectors.SelectSelector())
    loop.run_until_complete(serve(session, int(sys.argv[1]), float(sys.argv[2])))


if __name__ == "__main__":
    main()
