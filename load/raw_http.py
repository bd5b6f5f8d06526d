"""Minimal HTTP client for measuring systems that have no WebSocket: one connection per shopper, one request at a time.

`RawHttpConnection` takes the frames of `RawClientConnection` and posts each to `URL/SHOPPER/TYPE`, such as
`http://127.0.0.1:8080/cart/shopper-7/add`, with the frame as its body and its id as idempotency key. A response is
passed on as a frame with that id. A response that is not a success becomes a frame of type `error`.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Final, cast
from urllib.parse import urlsplit

import httptools
import orjson

SUCCESS: Final = 200


class RawHttpConnection(asyncio.Protocol):
    """Client end of one connection. It calls `on_message` with each outcome, and `on_close` once when it is closed."""

    def __init__(
        self, url: str, shopper: str, on_message: Callable[[bytes], None], on_close: Callable[[], None]
    ) -> None:
        parts = urlsplit(url)
        self._head = f"HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Type: application/json\r\n"
        self._path = f"{parts.path.rstrip('/')}/{shopper}"
        self._on_message = on_message
        self._on_close = on_close
        self._transport: asyncio.Transport | None = None
        self._queue: deque[tuple[str, bytes]] = deque()
        """Ids of requests and their bytes, the one in flight first."""
        self._parser: Any = httptools.HttpResponseParser(self)
        self._body = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the reason changes nothing
        """Report that the connection is closed."""
        self._on_close()

    def data_received(self, data: bytes) -> None:
        """Pass on each complete response."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.close()

    def send(self, text: bytes) -> None:
        """Post one frame, after those before it; raise `ConnectionError` if the connection is lost."""
        if self._transport is None or self._transport.is_closing():
            raise ConnectionResetError("the connection is lost")
        frame = orjson.loads(text)
        head = f"POST {self._path}/{frame['type']} {self._head}Idempotency-Key: {frame['id']}\r\n"
        self._queue.append((frame["id"], f"{head}Content-Length: {len(text)}\r\n\r\n".encode() + text))
        if len(self._queue) == 1:
            self._transport.write(self._queue[0][1])

    def close(self) -> None:
        """Close the connection."""
        if self._transport is not None:
            self._transport.close()

    def on_message_begin(self) -> None:
        """Begin a response."""
        self._body.clear()

    def on_body(self, body: bytes) -> None:
        """Add a part of the response's body."""
        self._body += body

    def on_message_complete(self) -> None:
        """Pass the response on as a frame, and post the next one."""
        if not self._queue:
            return  # an answer to nothing
        id_, _ = self._queue.popleft()
        status = self._parser.get_status_code()
        frame: Mapping[str, Any] = orjson.loads(self._body) if status == SUCCESS else {"type": "error", "code": status}
        if self._queue and self._transport is not None and not self._transport.is_closing():
            self._transport.write(self._queue[0][1])
        self._on_message(orjson.dumps({**frame, "id": id_}))


async def open_http_connection(
    url: str, headers: Mapping[str, str], on_message: Callable[[bytes], None], on_close: Callable[[], None]
) -> RawHttpConnection:
    """Return an open connection to `url` for the shopper named by the header `Authorization`; raise `OSError`."""
    parts = urlsplit(url)
    host, port = parts.hostname or "127.0.0.1", parts.port or 80
    _, connection = await asyncio.get_running_loop().create_connection(
        lambda: RawHttpConnection(url, headers["Authorization"], on_message, on_close), host, port
    )
    return connection
