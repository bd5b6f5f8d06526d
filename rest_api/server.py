"""The HTTP and WebSocket server: uvicorn's protocols, with limits that uvicorn lacks.

- A request (headers and body) must arrive within ten seconds; a response that the peer does not read is aborted after
  thirty.
- Malformed HTTP is refused with a problem document, and oversized headers with 431. Messages that two parsers could
  read differently (request smuggling: RFC 9112, section 11.2) are refused as well.
- A WebSocket peer that does not answer a ping is closed with 4408. A peer that does not read its close frame is
  disconnected.
- Bytes received on a WebSocket are parsed in small chunks, only as fast as the application consumes the frames.
"""

import asyncio
import contextlib
import logging
import signal
import socket
import sys
from collections.abc import Iterator
from typing import Any, Final

import h11
import uvicorn
from fastapi import FastAPI
from h11._receivebuffer import ReceiveBuffer
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import Frame

from contracts.ids import uuid7
from infrastructure.observability import metrics
from rest_api.http.middleware.request_limits import MAX_HEAD_BYTES
from rest_api.protocol.client_frames import MAX_FRAME_BYTES
from rest_api.protocol.problems import MEDIA_TYPE, Problem
from rest_api.settings import EdgeSettings

REQUEST_SECONDS: Final = 10.0
HEADERS_TOO_LARGE: Final = 431
MAX_FRAGMENTS: Final = 64
CLOSE_SECONDS: Final = 5.0
UNREAD_SECONDS: Final = 30.0
SOCKET_BUFFER_BYTES: Final = 64 * 1024
"""Kernel buffer per connection and direction. Small, so that a slow reader fills our bounded queue, not megabytes."""
WRITE_BUFFER_BYTES: Final = 16 * 1024
MAX_UNREAD_BYTES: Final = 128 * 1024
"""Limit of the transport's write buffer. Frames wait until the buffer drains, so only unread pongs can exceed it."""
PARSE_CHUNK_BYTES: Final = 4096


class StrictReceiveBuffer(ReceiveBuffer):
    """A receive buffer that rejects ambiguous lines: h11 accepts lines that a proxy in front may read differently."""

    def maybe_extract_lines(self) -> list[bytearray] | None:
        """Return the lines of a request's head, or of a chunked body's trailer, once complete.

        Raise `h11.LocalProtocolError` for bare CR or LF, folded headers, or more than one Content-Length.
        """
        received = bytes(self)
        lines = super().maybe_extract_lines()
        if lines:
            line_breaks = received[: len(received) - len(self)].replace(b"\r\n", b"")
            if b"\n" in line_breaks or b"\r" in line_breaks:
                raise h11.LocalProtocolError("lines must end with CR LF")
            if any(line.startswith((b" ", b"\t")) for line in lines):
                raise h11.LocalProtocolError("a header must be a single line")
            if sum(line.lower().startswith(b"content-length:") for line in lines) > 1:
                raise h11.LocalProtocolError("only one Content-Length is allowed")
        return lines


class HttpProtocol(H11Protocol):
    """The HTTP protocol, with a deadline for receiving each request and one for the peer to read the response."""

    _receive_deadline: asyncio.TimerHandle | None = None
    _read_deadline: asyncio.TimerHandle | None = None

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.conn._receive_buffer = StrictReceiveBuffer()  # noqa: SLF001 - h11 has no public option for this

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn does
        """Start the deadline of the first request."""
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=WRITE_BUFFER_BYTES)
        self._start_receive_deadline()

    def data_received(self, data: bytes) -> None:
        """Parse received bytes; stop the deadline if the request is complete, else make sure that it runs."""
        super().data_received(data)
        if self.transport.get_protocol() is not self or self.conn.their_state not in {h11.IDLE, h11.SEND_BODY}:
            self._cancel_receive_deadline()
        elif self._receive_deadline is None:
            self._start_receive_deadline()

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel all deadlines."""
        self._cancel_receive_deadline()
        self._cancel_read_deadline()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Start the deadline for the peer to read the response."""
        super().pause_writing()
        if self._read_deadline is None:
            self._read_deadline = self.loop.call_later(UNREAD_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        """Cancel the deadline: the peer reads again."""
        self._cancel_read_deadline()
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """Refuse a malformed or oversized HTTP/1.1 message with a problem document, then close the connection."""
        error = sys.exc_info()[1]
        too_large = isinstance(error, h11.RemoteProtocolError) and error.error_status_hint == HEADERS_TOO_LARGE
        problem = Problem("headers-too-large" if too_large else "bad-request", msg)
        if self.conn.our_state not in {h11.IDLE, h11.SEND_RESPONSE}:
            self.transport.close()
            return
        body = problem.body(uuid7())
        headers = [("content-type", MEDIA_TYPE), ("content-length", str(len(body))), ("connection", "close")]
        response = h11.Response(status_code=problem.status, headers=headers)
        for event in (response, h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _start_receive_deadline(self) -> None:
        self._receive_deadline = self.loop.call_later(REQUEST_SECONDS, self.transport.abort)

    def _cancel_receive_deadline(self) -> None:
        if self._receive_deadline is not None:
            self._receive_deadline.cancel()
            self._receive_deadline = None

    def _cancel_read_deadline(self) -> None:
        if self._read_deadline is not None:
            self._read_deadline.cancel()
            self._read_deadline = None


class WebSocketProtocol(WebSocketsSansIOProtocol):
    """The WebSocket protocol, with the contract's close codes and with back-pressure on received bytes."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._unparsed = bytearray()

    def data_received(self, data: bytes) -> None:
        """Buffer received bytes, which may contain thousands of tiny frames, and parse as many as can be consumed."""
        self._unparsed += data
        self._parse_chunks()

    def _parse_chunks(self) -> None:
        """Parse buffered bytes in chunks until the application has a message that it has not consumed yet.

        Abort the connection if the write buffer is too full: the peer does not read its pongs.
        """
        while self._unparsed and not self.read_paused and not self.transport.is_closing():
            chunk = bytes(self._unparsed[:PARSE_CHUNK_BYTES])
            del self._unparsed[:PARSE_CHUNK_BYTES]
            super().data_received(chunk)
        if self.transport.get_write_buffer_size() > MAX_UNREAD_BYTES:
            self.transport.abort()

    async def receive(self) -> Any:
        """Return the next message for the application, then parse further bytes."""
        message = await super().receive()
        self._parse_chunks()
        return message

    def keepalive_timeout(self) -> None:
        """Close the connection with 4408: no pong arrived in time."""
        self.pong_timer = None
        self.pending_ping_payload = None
        if self.close_sent or self.transport.is_closing():
            return
        self._fail_connection(4408, "no pong")

    def handle_cont(self, event: Frame) -> None:
        """Handle a continuation frame; close the connection if a message has too many fragments.

        Tiny fragments cost the server much and the client little.
        """
        if len(self.frames) >= MAX_FRAGMENTS:
            self._fail_connection(1009, "too many fragments")
            return
        super().handle_cont(event)

    def send_receive_event_to_app(self) -> None:
        """Pass a complete message on; close the connection with 1007 if its text is not UTF-8.

        uvicorn would log a stack trace instead.
        """
        if self.curr_msg_data_type == "text":
            try:
                b"".join(self.frames).decode()
            except UnicodeDecodeError:
                self.frames = []
                self._fail_connection(1007, "not UTF-8")
                return
        super().send_receive_event_to_app()

    async def send(self, message: Any) -> None:
        """Send a message for the application. A close does not wait for the peer, which may never read again."""
        if message["type"] == "websocket.close":
            self.writable.set()
            self.loop.call_later(CLOSE_SECONDS, self.transport.abort)
        await super().send(message)
        if message["type"] == "websocket.http.response.body" and not message.get("more_body", False):
            self.handshake_complete = True  # the handshake was refused; uvicorn would log that as an error

    def _fail_connection(self, code: int, reason: str) -> None:
        metrics.EDGE_CLOSES.labels(str(code)).inc()
        self.queue.put_nowait({"type": "websocket.disconnect", "code": code, "reason": reason})
        self.conn.fail(code, reason)
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.close_sent = True
        self.transport.close()
        self.loop.call_later(CLOSE_SECONDS, self.transport.abort)


class Server(uvicorn.Server):
    """uvicorn on a socket that is already bound, so that the port is known before the application is built."""

    def __init__(self, app: FastAPI, settings: EdgeSettings) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=HttpProtocol,
                ws=WebSocketProtocol,
                loop="uvloop",
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=bool(settings.trusted_proxies()),
                forwarded_allow_ips=list(settings.trusted_proxies()),
                ws_max_size=MAX_FRAME_BYTES,
                ws_ping_interval=settings.ping_seconds,
                ws_ping_timeout=settings.ping_seconds,
                ws_per_message_deflate=False,
                h11_max_incomplete_event_size=MAX_HEAD_BYTES,
                timeout_keep_alive=15,
                timeout_graceful_shutdown=5,
                backlog=2048,
            )
        )

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop on SIGTERM and SIGINT without raising the signal again, so that the process exits with status 0."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        yield


def bind(settings: EdgeSettings) -> socket.socket:
    """Bind and return the server's socket; for port 0 the system chooses a free port."""
    family = socket.AF_INET6 if ":" in settings.http_host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    for buffer in (socket.SO_SNDBUF, socket.SO_RCVBUF):
        bound.setsockopt(socket.SOL_SOCKET, buffer, SOCKET_BUFFER_BYTES)
    bound.bind((settings.http_host, settings.http_port))
    bound.setblocking(False)  # noqa: FBT003 - the standard library's signature
    return bound


for _name in ("uvicorn.error", "uvicorn.access", "websockets.server"):
    logging.getLogger(_name).setLevel(logging.WARNING)  # at INFO they log URLs with query strings
