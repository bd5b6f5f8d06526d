"""The WebSocket protocol: uvicorn's, with the contract's close codes, back-pressure, and deadlines."""

import asyncio
from http import HTTPStatus
from typing import Any, Final

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.exceptions import HeaderLineTooLong, RequestLineTooLong, TooManyHeaders
from websockets.frames import Frame
from websockets.http11 import Response
from websockets.server import ServerProtocol

from contracts.ids import uuid7
from infrastructure.observability import metrics
from rest_api.protocol.client_frames import MAX_FRAME_BYTES
from rest_api.protocol.problems import MEDIA_TYPE, Problem
from rest_api.server.connection_pool import ClientConnection
from rest_api.server.deadline import Phase

MAX_FRAGMENTS: Final = 64
MAX_UNREAD_BYTES: Final = 128 * 1024
"""Limit of the transport's write buffer. Frames wait until the buffer drains, so only unread pongs can exceed it."""
PARSE_CHUNK_BYTES: Final = 4096
_SLUGS: Final = {
    400: "bad-request",
    403: "forbidden",
    405: "method-not-allowed",
    414: "headers-too-large",
    426: "websocket-required",
    431: "headers-too-large",
    505: "http-version-not-supported",
}


class HandshakeProtocol(ServerProtocol):
    """The protocol of the `websockets` library, which refuses handshakes with problem documents instead of text."""

    def reject(self, status: HTTPStatus | int, text: str) -> Response:
        """Return the response that refuses the handshake."""
        response = super().reject(status, text)
        problem = Problem(_SLUGS.get(response.status_code, "internal"), text.strip() or None)
        response.status_code, response.reason_phrase = problem.status, HTTPStatus(problem.status).phrase
        response.body = problem.body(uuid7())
        for name, value in (("Content-Type", MEDIA_TYPE), ("Content-Length", str(len(response.body)))):
            del response.headers[name]
            response.headers[name] = value
        return response


class WebSocketProtocol(WebSocketsSansIOProtocol):
    """The WebSocket side of a connection.

    Received bytes may contain thousands of tiny frames. They are parsed in small chunks, and only as fast as the
    application consumes the frames. Bytes that arrive before the handshake is accepted are parsed afterwards.
    """

    def __init__(self, *arguments: Any, connection: ClientConnection, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.conn = HandshakeProtocol(max_size=MAX_FRAME_BYTES, logger=self.logger)
        self._connection = connection
        self._has_head = False
        self._is_held = False
        """True while reading is paused because the handshake is not accepted yet."""
        self._unparsed = bytearray()

    # ---- events of the transport ------------------------------------------------------------------------------------

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._connection.lost()
        super().connection_lost(exc)

    def eof_received(self) -> None:
        """Begin to close: asyncio closes the transport after this."""
        self._connection.enter(Phase.CLOSING)

    def data_received(self, data: bytes) -> None:
        """Parse the head of the request, which is passed first and whole, or as many frames as can be consumed."""
        if not self._has_head:
            self._has_head = True
            super().data_received(data)
            self._refuse_unreadable_head()
        else:
            self._unparsed += data
            self._parse_chunks()
        self._connection.note_closing()

    def on_task_complete(self, task: asyncio.Task[None]) -> None:
        """Begin to close: the application has ended, and with it the connection."""
        super().on_task_complete(task)
        self._connection.note_closing()

    def shutdown(self) -> None:
        """Close the connection, because the server stops."""
        super().shutdown()
        self._connection.note_closing()

    def _refuse_unreadable_head(self) -> None:
        """Answer a handshake that `websockets` could not parse; uvicorn would leave it without an answer."""
        error = self.conn.handshake_exc
        if self.handshake_initiated or error is None:
            return
        self.handshake_complete = self.close_sent = True
        if not isinstance(error, RequestLineTooLong | HeaderLineTooLong | TooManyHeaders):
            self.conn.writes.clear()
            self.conn.writes.append(self.conn.reject(400, "a handshake has no body").serialize())
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.transport.close()

    def _parse_chunks(self) -> None:
        """Parse buffered bytes in chunks until the application has a message that it has not consumed yet.

        Abort the connection if the write buffer is too full: the peer does not read its pongs.
        """
        if not self.handshake_complete:
            if not self._is_held and not self.transport.is_closing():
                self._is_held = True
                self.transport.pause_reading()
            return
        while self._unparsed and not self.read_paused and not self.transport.is_closing():
            chunk = bytes(self._unparsed[:PARSE_CHUNK_BYTES])
            del self._unparsed[:PARSE_CHUNK_BYTES]
            super().data_received(chunk)
        if self.transport.get_write_buffer_size() > MAX_UNREAD_BYTES:
            self.transport.abort()

    # ---- frames -----------------------------------------------------------------------------------------------------

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

    # ---- messages of the application --------------------------------------------------------------------------------

    async def receive(self) -> Any:
        """Return the next message for the application, then parse further bytes."""
        message = await super().receive()
        if self.handshake_complete:
            self._parse_chunks()
            self._connection.note_closing()
        return message

    async def send(self, message: Any) -> None:
        """Send a message for the application. A close does not wait for the peer, which may never read again."""
        kind = message["type"]
        if kind == "websocket.close":
            self.writable.set()
            self._connection.enter(Phase.CLOSING)
        await super().send(message)
        if kind == "websocket.accept":
            self._begin_frames()
        elif kind == "websocket.http.response.body" and not message.get("more_body", False):
            self.handshake_complete = True  # the handshake was refused; uvicorn would log that as an error
        self._connection.note_closing()

    def _begin_frames(self) -> None:
        """Parse what was held back until the handshake was accepted."""
        self._connection.enter(Phase.OPEN)
        if self._is_held:
            self._is_held = False
            self.transport.resume_reading()
            self._parse_chunks()

    def _fail_connection(self, code: int, reason: str) -> None:
        metrics.EDGE_CLOSES.labels(str(code)).inc()
        self.queue.put_nowait({"type": "websocket.disconnect", "code": code, "reason": reason})
        self.conn.fail(code, reason)
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.close_sent = True
        self.transport.close()
        self._connection.enter(Phase.CLOSING)
