"""The HTTP protocol: uvicorn's, with a deadline for every connection and a strict reading of requests."""

import asyncio
import sys
from functools import partial
from typing import Any, Final

import h11
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from contracts.ids import uuid7
from rest_api.http.middleware.request_limits import PROBES
from rest_api.protocol.problems import MEDIA_TYPE, Problem
from rest_api.server.connection_pool import ClientConnection, ConnectionPool
from rest_api.server.deadline import Phase
from rest_api.server.request_head import HEADERS_TOO_LARGE, TOO_LARGE, VERSION_NOT_SUPPORTED, StrictReceiveBuffer
from rest_api.server.websocket_protocol import WebSocketProtocol

WRITE_BUFFER_BYTES: Final = 16 * 1024
_PROBLEMS: Final = {
    TOO_LARGE: Problem("too-large", "a body has 65536 bytes at most"),
    HEADERS_TOO_LARGE: Problem("headers-too-large", "a head has 16384 bytes and 100 headers at most"),
    VERSION_NOT_SUPPORTED: Problem("http-version-not-supported", "use HTTP/1.1"),
}
"""The problem documents of malformed requests by status; the others are `bad-request`."""
_INCOMPLETE: Final = frozenset({h11.IDLE, h11.SEND_BODY})


class HttpProtocol(H11Protocol):
    """The HTTP side of a connection; it hands the connection over to `WebSocketProtocol` at an upgrade."""

    _connection: ClientConnection

    def __init__(self, *arguments: Any, pool: ConnectionPool, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._pool = pool
        self._buffer = StrictReceiveBuffer()
        self.conn._receive_buffer = self._buffer  # noqa: SLF001 - h11 has no public option for this
        self._timed: tuple[Phase, object] = (Phase.CONNECTED, None)
        """The phase whose deadline is running, and the request that it belongs to, if its head is complete."""
        self._is_upgraded = False
        self._is_refused = False

    # ---- events of the transport ------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn does
        """Count the connection and start its deadline."""
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=WRITE_BUFFER_BYTES)
        self._connection = ClientConnection(transport, self._pool, self.loop)
        if self._connection.refusal is not None:
            self.app = SurplusApp(self.app, self._connection.refusal)

    def data_received(self, data: bytes) -> None:
        """Parse received bytes, unless the rest of a refused message is discarded."""
        if not self._is_refused:
            super().data_received(data)

    def eof_received(self) -> bool:  # type: ignore[override]  # uvicorn returns `None`, which means False
        """Close the connection, but first send the response of a request that is complete."""
        is_responding = self.cycle is not None and not self.cycle.response_complete
        self._connection.enter(Phase.CLOSING)
        if is_responding and self.conn.their_state not in _INCOMPLETE:
            self.cycle.keep_alive = False
            return True
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._connection.lost()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Start the deadline for the peer to read the response."""
        super().pause_writing()
        self._connection.pause()

    def resume_writing(self) -> None:
        """Stop that deadline: the peer reads again."""
        self._connection.resume()
        super().resume_writing()

    # ---- requests and responses -------------------------------------------------------------------------------------

    def handle_events(self) -> None:
        """Handle the requests that are complete, then set the deadline that fits what is left."""
        super().handle_events()
        self._update_deadline()

    def on_response_complete(self) -> None:
        """Continue with the next request, which may have arrived long ago, in the same packet."""
        super().on_response_complete()
        self._update_deadline()

    def _should_upgrade(self) -> bool:
        is_allowed = self._connection.refusal is None and self.scope["http_version"] != "1.0"
        return is_allowed and super()._should_upgrade()

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        """Hand the connection over, with the bytes that arrived behind the handshake."""
        self._is_upgraded = True
        self._connection.enter(Phase.HANDSHAKING)
        self.ws_protocol_class = partial(WebSocketProtocol, connection=self._connection)  # type: ignore[assignment]
        super().handle_websocket_upgrade(event)
        protocol = self.transport.get_protocol()
        assert isinstance(protocol, WebSocketProtocol)
        if self._buffer:
            protocol.data_received(bytes(self._buffer))

    def send_400_response(self, msg: str) -> None:
        """Refuse a malformed or oversized message with a problem document, then close the connection."""
        error = sys.exc_info()[1]
        status = error.error_status_hint if isinstance(error, h11.RemoteProtocolError) else 0
        problem = _PROBLEMS.get(status) or Problem("bad-request", msg)
        if self.conn.our_state not in {h11.IDLE, h11.SEND_RESPONSE}:
            self.transport.close()
            return
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True  # its response would follow this one
            self.cycle.message_event.set()
        body = problem.body(uuid7())
        headers = [("content-type", MEDIA_TYPE), ("content-length", str(len(body))), ("connection", "close")]
        response = h11.Response(status_code=problem.status, headers=headers)
        for part in (response, h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(part) or b"")
        # The peer may still be sending. A `close` would reset the connection, and the peer might not see the response.
        self._is_refused = True
        self._unset_keepalive_if_required()
        self.flow.resume_reading()
        self.transport.write_eof()
        self._connection.enter(Phase.CLOSING)

    def shutdown(self) -> None:
        """Close the connection after the response that is being sent, if any."""
        if self._is_refused:
            self.transport.close()
            return
        super().shutdown()
        self._connection.note_closing()

    def _update_deadline(self) -> None:
        """Start the deadline of the present phase, unless it is running already."""
        if self._is_upgraded or self._is_refused:
            return
        self._connection.note_closing()
        phase, request = self._phase()
        timed, timed_request = self._timed
        self._timed = (phase, request)
        is_same_request = request is timed_request or (phase is Phase.RECEIVING and timed_request is None)
        if phase is not timed or not is_same_request:
            self._connection.enter(phase)

    def _phase(self) -> tuple[Phase, object]:
        state = self.conn.their_state
        if state is h11.SEND_BODY:
            return Phase.RECEIVING, self.cycle
        if state is not h11.IDLE:
            return Phase.RESPONDING, self.cycle
        if self._buffer:
            return Phase.RECEIVING, None
        return (Phase.CONNECTED if self.cycle is None else Phase.IDLE), None


class SurplusApp:
    """The ASGI application of a connection for which there is no room: it answers probes, and refuses the rest."""

    def __init__(self, app: ASGIApp, refusal: Problem) -> None:
        self._app = app
        self._refusal = refusal

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; the connection is closed after it."""
        if scope["path"] not in PROBES:
            request_id = uuid7()
            response = self._refusal.response(request_id)
            response.headers["X-Request-ID"] = request_id
            await response(scope, receive, send)
            return

        async def send_and_close(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["Connection"] = "close"
            await send(message)

        await self._app(scope, receive, send_and_close)
