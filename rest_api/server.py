"""How connections are served: uvicorn's protocols, with the bounds that it does not have by itself.

- A request, headers and body, must be in within ten seconds, and an answer that nobody reads is given up after thirty;
  uvicorn has no such deadlines.
- What is no HTTP is refused with a problem document, and headers that are too large with 431. What two readers of one
  message may read differently (RFC 9112, section 11.2) is refused, too.
- A peer that does not answer a ping is closed with 4408, and one that won't read its close is cut off.
- Of what a socket sends, a little at a time is made into frames; the rest waits as bytes.
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

from infrastructure import metrics
from infrastructure.ids import uuid7
from rest_api.messages import MAX_FRAME_BYTES
from rest_api.problems import MEDIA_TYPE, Problem
from rest_api.settings import EdgeSettings
from rest_api.shield import MAX_HEAD_BYTES

REQUEST_SECONDS: Final = 10.0
HEADERS_TOO_LARGE: Final = 431
MAX_FRAGMENTS: Final = 64
CLOSE_SECONDS: Final = 5.0
UNREAD_SECONDS: Final = 30.0
SOCKET_BUFFER_BYTES: Final = 64 * 1024
"""Of the kernel, for each connection and direction: a slow reader shall fill our short queue, not megabytes of it."""
WRITE_BUFFER_BYTES: Final = 16 * 1024
MAX_UNREAD_BYTES: Final = 128 * 1024
"""Of ours, for each connection. Frames wait for room in the buffer; past this it is pongs that nobody reads."""
BITE_BYTES: Final = 4096


class Head(ReceiveBuffer):
    """Lines of a request that everybody reads alike: h11 is more generous than a proxy before it may be."""

    def maybe_extract_lines(self) -> list[bytearray] | None:
        """The lines of a request's head, or of a chunked body's trailer, once they are all there."""
        received = bytes(self)
        lines = super().maybe_extract_lines()
        if lines:
            ends = received[: len(received) - len(self)].replace(b"\r\n", b"")
            if b"\n" in ends or b"\r" in ends:
                raise h11.LocalProtocolError("a line ends with CR LF")
            if any(line.startswith((b" ", b"\t")) for line in lines):
                raise h11.LocalProtocolError("a header is one line")
            if sum(line.lower().startswith(b"content-length:") for line in lines) > 1:
                raise h11.LocalProtocolError("a body has one length")
        return lines


class Requests(H11Protocol):
    """HTTP with a deadline for what is being received, and one for what is being read."""

    _deadline: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self.conn._receive_buffer = Head()  # noqa: SLF001 - h11 has no other way to be strict

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn does
        """A peer connected: its first request is awaited."""
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=WRITE_BUFFER_BYTES)
        self._await_request()

    def data_received(self, data: bytes) -> None:
        """Some of a request came: it is whole, or the rest must be in before the deadline."""
        super().data_received(data)
        if self.transport.get_protocol() is not self or self.conn.their_state not in {h11.IDLE, h11.SEND_BODY}:
            self._forget_deadline()
        elif self._deadline is None:
            self._await_request()

    def connection_lost(self, exc: Exception | None) -> None:
        """The peer is gone."""
        self._forget_deadline()
        self._forget_unread()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """The peer does not read."""
        super().pause_writing()
        if self._unread is None:
            self._unread = self.loop.call_later(UNREAD_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        """It does again."""
        self._forget_unread()
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP/1.1 message; h11 says whether it was too large."""
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

    def _await_request(self) -> None:
        self._deadline = self.loop.call_later(REQUEST_SECONDS, self.transport.abort)

    def _forget_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _forget_unread(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None


class Sockets(WebSocketsSansIOProtocol):
    """WebSockets with the contract's closes."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self._received = bytearray()

    def data_received(self, data: bytes) -> None:
        """Some frames came: perhaps thousands, of a few bytes each."""
        self._received += data
        self._bite()

    def _bite(self) -> None:
        """Make frames of as much as the application takes: none while it still has one."""
        while self._received and not self.read_paused and not self.transport.is_closing():
            part = bytes(self._received[:BITE_BYTES])
            del self._received[:BITE_BYTES]
            super().data_received(part)
        if self.transport.get_write_buffer_size() > MAX_UNREAD_BYTES:
            self.transport.abort()

    async def receive(self) -> Any:
        """The next message for the application."""
        message = await super().receive()
        self._bite()
        return message

    def keepalive_timeout(self) -> None:
        """No pong came."""
        self.pong_timer = None
        self.pending_ping_payload = None
        if self.close_sent or self.transport.is_closing():
            return
        self._fail(4408, "no pong")

    def handle_cont(self, event: Frame) -> None:
        """A message in many tiny fragments is a way to cost much with little."""
        if len(self.frames) >= MAX_FRAGMENTS:
            self._fail(1009, "too many fragments")
            return
        super().handle_cont(event)

    def send_receive_event_to_app(self) -> None:
        """A message is whole; one that is not UTF-8 closes the socket without a stack trace in the log."""
        if self.curr_msg_data_type == "text":
            try:
                b"".join(self.frames).decode()
            except UnicodeDecodeError:
                self.frames = []
                self._fail(1007, "not UTF-8")
                return
        super().send_receive_event_to_app()

    async def send(self, message: Any) -> None:
        """Send for the application. A close does not wait for a reader that may never read again."""
        if message["type"] == "websocket.close":
            self.writable.set()
            self.loop.call_later(CLOSE_SECONDS, self.transport.abort)
        await super().send(message)
        if message["type"] == "websocket.http.response.body" and not message.get("more_body", False):
            self.handshake_complete = True  # it ended in a refusal, which uvicorn would log as an error

    def _fail(self, code: int, reason: str) -> None:
        metrics.EDGE_CLOSES.labels(str(code)).inc()
        self.queue.put_nowait({"type": "websocket.disconnect", "code": code, "reason": reason})
        self.conn.fail(code, reason)
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.close_sent = True
        self.transport.close()
        self.loop.call_later(CLOSE_SECONDS, self.transport.abort)


class Server(uvicorn.Server):
    """uvicorn on a socket that is bound already, so that its port is known before the application is built."""

    def __init__(self, app: FastAPI, settings: EdgeSettings) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=Requests,
                ws=Sockets,
                loop="uvloop",
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=bool(settings.proxies()),
                forwarded_allow_ips=list(settings.proxies()),
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
        """Stop when told to, and then end as a process that did what it was told, not as one that was killed."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        yield


def bind(settings: EdgeSettings) -> socket.socket:
    """A listening socket; port 0 becomes one that the system chose."""
    family = socket.AF_INET6 if ":" in settings.http_host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    for buffer in (socket.SO_SNDBUF, socket.SO_RCVBUF):
        listening.setsockopt(socket.SOL_SOCKET, buffer, SOCKET_BUFFER_BYTES)
    listening.bind((settings.http_host, settings.http_port))
    listening.setblocking(False)  # noqa: FBT003 - the standard library has it so
    return listening


for _name in ("uvicorn.error", "uvicorn.access", "websockets.server"):
    logging.getLogger(_name).setLevel(logging.WARNING)  # their INFO tells addresses with their query strings
