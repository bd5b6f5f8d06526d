"""`GET /v1/stream`: authenticates a WebSocket, then moves frames between it and a `Session`."""

import asyncio
import contextlib
import logging
from collections.abc import MutableMapping
from typing import Any, Final

from starlette.requests import HTTPConnection
from starlette.types import Receive, Scope, Send

from contracts.ids import uuid7
from contracts.trace_context import child_traceparent, trace_id
from infrastructure.observability import metrics
from infrastructure.process import clock
from infrastructure.security.tokens import Identity
from rest_api.kafka.gateway import RETRY_AFTER
from rest_api.protocol import frame_encoder
from rest_api.protocol.client_frames import SUBPROTOCOL
from rest_api.protocol.effects import Close
from rest_api.protocol.problems import Problem, request_id
from rest_api.security.address_limiter import AddressLimiter, enforce_limit
from rest_api.security.authentication import Authenticator
from rest_api.security.costs import HANDSHAKE
from rest_api.websocket.connections import ConnectionManager
from rest_api.websocket.send_queue import SendQueue
from rest_api.websocket.session import Session
from rest_api.websocket.user_state import UserState

log = logging.getLogger(__name__)

_TICKET_PREFIX: Final = "ticket."


class StreamEndpoint:
    """The ASGI application of the route; one call serves one socket until it closes."""

    def __init__(
        self, connections: ConnectionManager, identities: Authenticator, limiter: AddressLimiter, *, ping: int
    ) -> None:
        """`ping` is the number of seconds between pings, which `welcome` reports."""
        self._ping = ping
        self._connections = connections
        self._identities = identities
        self._limiter = limiter

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse with a problem document before the upgrade, or accept and serve until the socket is gone."""
        connection = HTTPConnection(scope)
        await receive()  # websocket.connect
        try:
            subprotocol = _subprotocol(scope["subprotocols"])
            identity = await self._authenticate(connection, scope["subprotocols"])
            user = self._connections.user_state(identity.user_id)
            self._count_handshake(connection, user)
        except Problem as problem:
            await _deny(problem, request_id(connection), scope, receive, send)
            return
        await send({"type": "websocket.accept", "subprotocol": subprotocol, "headers": []})
        with self._limiter.count_socket(scope) as free:
            most = user.limits.sockets
            if self._connections.fault is not None:
                await _close_unserved(send, receive, RETRY_AFTER)
            elif not free or (most is not None and len(user.sessions) >= most):
                await _close_unserved(send, receive, 5)
            else:
                session = Session(
                    uuid7(),
                    user,
                    expires_at=identity.expires_at.timestamp(),
                    ping=self._ping,
                    network=self._limiter.allowances(scope),
                )
                await self._serve(session, identity, receive, send)

    async def _authenticate(self, connection: HTTPConnection, offered: list[str]) -> Identity:
        tickets = [protocol.removeprefix(_TICKET_PREFIX) for protocol in offered if protocol.startswith(_TICKET_PREFIX)]
        try:
            self._identities.check_origin(connection)
            return await self._identify(connection, tickets)
        except Problem:
            self._limiter.count_request(connection)
            raise

    def _count_handshake(self, connection: HTTPConnection, user: UserState) -> None:
        """Count a handshake against the limits of its user and network; raise `Problem` if one is exceeded."""
        allowance = user.other_allowance
        if allowance is not None:
            cost = HANDSHAKE.of(allowance.size)
            enforce_limit(connection, allowance, allowance.size, clock.now().timestamp(), cost)
            self._limiter.count_any(connection, cost=cost)

    async def _identify(self, connection: HTTPConnection, tickets: list[str]) -> Identity:
        if tickets and "authorization" not in connection.headers:
            if len(tickets) > 1:
                raise Problem("unauthenticated", "one ticket opens one socket")
            return await self._identities.redeem_ticket(tickets[0])
        identity = await self._identities.authenticate(connection)
        if identity is None:
            raise Problem("unauthenticated", "a WebSocket needs a token, a cookie or a ticket")
        return identity

    async def _serve(self, session: Session, identity: Identity, receive: Receive, send: Send) -> None:
        connections = self._connections
        send_queue = SendQueue(send, connections.stock_broadcaster.stock_frame)
        send_queue.start()
        try:
            await connections.connect(session, send_queue, identity)
            while (message := await receive())["type"] == "websocket.receive":
                metrics.EDGE_FRAMES_IN.inc()
                text = message.get("text")
                if text is None:
                    send_queue.close(Close(1003, "frames are text"))
                    continue
                await self._receive_frame(session, send_queue, text)
                await asyncio.sleep(0)  # many frames may have arrived at once: let other tasks run
        finally:
            connections.disconnect(session)
            send_queue.stop()

    async def _receive_frame(self, session: Session, send_queue: SendQueue, text: str) -> None:
        if send_queue.is_closing:
            return
        try:
            await self._connections.execute(session, session.receive(text, clock.now().timestamp()))
        except Exception:
            trace = trace_id(child_traceparent(None))
            log.exception("a frame could not be handled", extra={"trace": trace})
            send_queue.put(frame_encoder.error(None, "internal", "internal error", trace_id=trace).decode())


def _subprotocol(offered: list[str]) -> str | None:
    """Return the subprotocol to select from those offered; a ticket is a credential, not a subprotocol."""
    spoken = [protocol for protocol in offered if not protocol.startswith(_TICKET_PREFIX)]
    if SUBPROTOCOL in spoken:
        return SUBPROTOCOL
    if spoken:
        raise Problem("bad-request", f"unsupported subprotocol; use {SUBPROTOCOL}")
    return None


async def _close_unserved(send: Send, receive: Receive, retry_after: int) -> None:
    """Close at once with 1013: a browser can read the reason of a close, but not the status of a failed upgrade."""
    metrics.EDGE_CLOSES.labels("1013").inc()
    with contextlib.suppress(OSError, RuntimeError):  # the client is gone, or was disconnected for a bad frame
        await send({"type": "websocket.close", "code": 1013, "reason": f"retry_after={retry_after}"})
        while (await receive())["type"] != "websocket.disconnect":
            pass


async def _deny(problem: Problem, instance: str, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
    """Answer the upgrade with a problem document (the ASGI extension for denial responses)."""
    response = problem.response(instance)
    response.headers["X-Request-ID"] = instance
    await response(scope, receive, send)
