"""Lean WebSockets for measuring: frames in and out of a socket with no task, queue or stream between.

`Line` is a client, `Peer` a server; both drive the sans-I/O protocol of `websockets` straight from the transport, so
that what a driver spends on a frame is small beside what it measures. Unlike `client.Shopper`, a line that is cut stays
cut, and is counted.
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Final, cast

from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.http11 import Request, Response
from websockets.protocol import OPEN, Protocol
from websockets.server import ServerProtocol
from websockets.typing import Subprotocol
from websockets.uri import parse_uri

from load.protocol import SUBPROTOCOL

SWITCHING: Final = 101
MAX_FRAME: Final = 1 << 20


class _Wire(asyncio.Protocol):
    """Bytes to events and back."""

    def __init__(self, protocol: Protocol, hear: Callable[[bytes], None]) -> None:
        self._protocol = protocol
        self._hear = hear
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The socket is open; the handshake is not done."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Hand on each text frame that is whole."""
        self._protocol.receive_data(data)
        for event in self._protocol.events_received():
            if not isinstance(event, Frame):
                self._shook(event)
            elif event.opcode is Opcode.TEXT:
                self._hear(bytes(event.data))
        self._flush()

    def send(self, text: bytes) -> None:
        """Send one text frame at once; raises `ConnectionError` when the line is cut."""
        if self._protocol.state is not OPEN or self._transport is None or self._transport.is_closing():
            raise ConnectionResetError("the line is cut")
        self._protocol.send_text(text)
        self._flush()

    def close(self) -> None:
        """Hang up."""
        if self._transport is not None:
            if self._protocol.state is OPEN:
                self._protocol.send_close(1000)
                self._flush()
            self._transport.close()

    def _flush(self) -> None:
        if self._transport is not None:
            for data in self._protocol.data_to_send():
                if data:
                    self._transport.write(data)
                else:
                    self._transport.close()

    def _shook(self, event: Any) -> None:
        raise NotImplementedError


class Line(_Wire):
    """A client on one socket. `hear` gets each text frame, `cut` is called when the socket is gone."""

    def __init__(
        self, url: str, headers: Mapping[str, str], hear: Callable[[bytes], None], cut: Callable[[], None]
    ) -> None:
        offered = [Subprotocol(SUBPROTOCOL)]  # a bare server selects none, which is as well
        client = ClientProtocol(parse_uri(url), subprotocols=offered, max_size=MAX_FRAME)
        super().__init__(client, hear)
        self._client = client
        self._headers = headers
        self._cut = cut
        self.opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask for the upgrade."""
        super().connection_made(transport)
        request = self._client.connect()
        request.headers.update(self._headers)
        self._client.send_request(request)
        self._flush()

    def connection_lost(self, exc: Exception | None) -> None:
        """The socket is gone."""
        if not self.opened.done():
            self.opened.set_exception(exc or ConnectionResetError("closed in the handshake"))
        self._cut()

    def _shook(self, event: Any) -> None:
        if isinstance(event, Response) and not self.opened.done():
            if event.status_code == SWITCHING and self._client.handshake_exc is None:
                self.opened.set_result(None)
            else:
                self.opened.set_exception(ConnectionRefusedError(f"the upgrade was answered {event.status_code}"))


async def dial(url: str, headers: Mapping[str, str], hear: Callable[[bytes], None], cut: Callable[[], None]) -> Line:
    """An open line to `url` (`ws://host:port/path`); raises `OSError` when there is none."""
    uri = parse_uri(url)
    loop = asyncio.get_running_loop()
    _, line = await loop.create_connection(lambda: Line(url, headers, hear, cut), uri.host, uri.port)
    await line.opened
    return line


class Peer(_Wire):
    """The server's end of one socket: takes any upgrade. `hear` gets this peer and each text frame."""

    def __init__(self, hear: Callable[["Peer", bytes], None]) -> None:
        server = ServerProtocol(max_size=MAX_FRAME)
        super().__init__(server, lambda text: hear(self, text))
        self._server = server

    def _shook(self, event: Any) -> None:
        if isinstance(event, Request):
            self._server.send_response(self._server.accept(event))
