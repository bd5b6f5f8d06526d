"""Minimal WebSockets for measuring: frames in and out of a socket without a task, queue or stream in between.

`RawClientConnection` is a client and `RawServerConnection` a server. Both drive the sans-I/O protocol of `websockets`
directly from the transport, so that the driver's own cost per frame is small compared with the latency it measures.
Unlike `client.Shopper`, a lost connection stays lost and is counted.
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

SWITCHING_PROTOCOLS: Final = 101
MAX_FRAME_BYTES: Final = 1 << 20


class _RawWebSocket(asyncio.Protocol):
    """WebSocket endpoint that converts between bytes and frames."""

    def __init__(self, protocol: Protocol, on_message: Callable[[bytes], None]) -> None:
        self._protocol = protocol
        self._on_message = on_message
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport; the handshake is not done yet."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Pass on each complete text frame."""
        self._protocol.receive_data(data)
        for event in self._protocol.events_received():
            if not isinstance(event, Frame):
                self._on_handshake(event)
            elif event.opcode is Opcode.TEXT:
                self._on_message(bytes(event.data))
        self._flush()

    def send(self, text: bytes) -> None:
        """Send one text frame at once; raise `ConnectionError` if the connection is lost."""
        if self._protocol.state is not OPEN or self._transport is None or self._transport.is_closing():
            raise ConnectionResetError("the connection is lost")
        self._protocol.send_text(text)
        self._flush()

    def close(self) -> None:
        """Send a close frame and close the connection."""
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

    def _on_handshake(self, event: Any) -> None:
        raise NotImplementedError


class RawClientConnection(_RawWebSocket):
    """Client end of one socket. It calls `on_message` with each text frame, and `on_close` once when it is closed."""

    def __init__(
        self, url: str, headers: Mapping[str, str], on_message: Callable[[bytes], None], on_close: Callable[[], None]
    ) -> None:
        offered = [Subprotocol(SUBPROTOCOL)]  # a minimal server selects none, which is fine
        client = ClientProtocol(parse_uri(url), subprotocols=offered, max_size=MAX_FRAME_BYTES)
        super().__init__(client, on_message)
        self._client = client
        self._headers = headers
        self._on_close = on_close
        self.handshake: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the upgrade request."""
        super().connection_made(transport)
        request = self._client.connect()
        request.headers.update(self._headers)
        self._client.send_request(request)
        self._flush()

    def connection_lost(self, exc: Exception | None) -> None:
        """Report that the socket is closed."""
        if not self.handshake.done():
            self.handshake.set_exception(exc or ConnectionResetError("closed during the handshake"))
        self._on_close()

    def _on_handshake(self, event: Any) -> None:
        if isinstance(event, Response) and not self.handshake.done():
            if event.status_code == SWITCHING_PROTOCOLS and self._client.handshake_exc is None:
                self.handshake.set_result(None)
            else:
                self.handshake.set_exception(
                    ConnectionRefusedError(f"the WebSocket upgrade was rejected with {event.status_code}")
                )


async def open_connection(
    url: str, headers: Mapping[str, str], on_message: Callable[[bytes], None], on_close: Callable[[], None]
) -> RawClientConnection:
    """Return an open connection to `url` (`ws://host:port/path`); raise `OSError` if that fails."""
    uri = parse_uri(url)
    loop = asyncio.get_running_loop()
    _, connection = await loop.create_connection(
        lambda: RawClientConnection(url, headers, on_message, on_close), uri.host, uri.port
    )
    await connection.handshake
    return connection


class RawServerConnection(_RawWebSocket):
    """Server end of one socket, which accepts any upgrade. It calls `on_message` with itself and each text frame."""

    def __init__(self, on_message: Callable[["RawServerConnection", bytes], None]) -> None:
        server = ServerProtocol(max_size=MAX_FRAME_BYTES)
        super().__init__(server, lambda text: on_message(self, text))
        self._server = server

    def _on_handshake(self, event: Any) -> None:
        if isinstance(event, Request):
            self._server.send_response(self._server.accept(event))
