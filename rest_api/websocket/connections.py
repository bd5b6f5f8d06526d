"""Open sockets of an edge: executes the effects of sessions, and routes Kafka's responses to sockets and REST."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Final

from contracts import cart
from contracts.envelope import Envelope
from contracts.topics import Topic
from infrastructure.observability import metrics
from infrastructure.process import clock
from infrastructure.security.tokens import Identity
from rest_api.kafka.gateway import RETRY_AFTER, KafkaGateway, Records, cart_request_envelope, decode_record
from rest_api.protocol import frame_encoder
from rest_api.protocol.effects import Close, Effect, Publish, StartWatching, StopWatching
from rest_api.protocol.problems import Problem
from rest_api.security.admission import Admission
from rest_api.websocket.duplicate_filter import RecentFrames
from rest_api.websocket.in_flight import InFlight, Reply
from rest_api.websocket.send_queue import SendQueue
from rest_api.websocket.session import Session
from rest_api.websocket.stock_broadcaster import StockBroadcaster
from rest_api.websocket.user_state import UserLimits, UserState

log = logging.getLogger(__name__)

SWEEP_INTERVAL_SECONDS: Final = 1.0
MAX_USERS: Final = 50_000
"""Users that an edge knows at a time, about 2 KiB each; a user without a socket is forgotten two minutes later."""
FRESH_SECONDS: Final = 30.0
"""A response older than this is marked `replayed`, unless a request here waits for it: it was sent before."""

CloseOfEnded = Callable[[Identity], Close | None]
"""Returns how to close the sockets of a token that has ended before its time; `None` if it has not."""
ProductNames = Callable[[Iterable[str]], Awaitable[Mapping[str, str]]]
"""Returns the names of products, as far as they are known."""
OrdersClosed = Callable[[str], Awaitable[bool]]
"""Returns True if new orders are refused (payment provider down). An order id that already exists is exempt."""


async def orders_never_closed(_: str) -> bool:
    """Accept every order."""
    return False


@dataclass(slots=True)
class Connection:
    """An open socket: its session and its send queue."""

    session: Session
    queue: SendQueue
    identity: Identity | None = None
    """The claims of the token that opened the socket."""


class ConnectionManager:
    """The users and sockets of this edge.

    `execute` is the only interpreter of effects, `_send` the only way to a socket, `send` and `execute` the only ways
    to Kafka.
    """

    def __init__(  # noqa: PLR0913 - the parts that the connection manager joins
        self,
        gateway: KafkaGateway,
        *,
        product_names: ProductNames,
        currency: str,
        user_limits: UserLimits,
        stock_broadcaster: StockBroadcaster,
        orders_closed: OrdersClosed = orders_never_closed,
        admission: Admission | None = None,
        close_of_ended: CloseOfEnded = lambda _: None,
    ) -> None:
        self.product_names = product_names
        self.orders_closed = orders_closed
        self.currency = currency
        self.user_limits = user_limits
        self.stock_broadcaster = stock_broadcaster
        self.gateway = gateway
        self.close_of_ended = close_of_ended
        self.in_flight = InFlight(admission)
        self._users: dict[str, UserState] = {}
        self._connections: dict[str, Connection] = {}
        """Open sockets by session id."""
        self._recent_frames = RecentFrames()
        self._measures_turn = False

    @property
    def fault(self) -> str | None:
        """The reason for which no new request is accepted; `None` while requests are accepted."""
        return self.gateway.fault

    # ---- users and sockets ------------------------------------------------------------------------------------------

    def user_state(self, user_id: str) -> UserState:
        """Return the state that the sockets and requests of a user share, created on first use.

        Raise `Problem` if `MAX_USERS` are active: a new user costs its client nothing.
        """
        user = self._users.get(user_id)
        if user is None:
            if len(self._users) >= MAX_USERS:
                raise Problem("overloaded", "too many users are active; send the request again", retry_after=5)
            user = self._users[user_id] = UserState(user_id, self.user_limits, clock.now().timestamp(), self.in_flight)
        user.seen_at = clock.now().timestamp()
        return user

    async def connect(self, session: Session, send_queue: SendQueue, identity: Identity | None = None) -> None:
        """Add an open socket and greet it. Call `disconnect` when the socket is gone, on every path.

        If the token of `identity` has ended since it was verified, the socket is closed instead.
        """
        connection = self._connections[session.id] = Connection(session, send_queue, identity)
        metrics.EDGE_SOCKETS.inc()
        if not self._close_if_ended(connection):
            await self.execute(session, session.open(clock.now().timestamp()))

    def close_ended(self, user_id: str) -> None:
        """Close the sockets of a user whose tokens have ended before their time."""
        user = self._users.get(user_id)
        for connection in [self._connections[session_id] for session_id in user.sessions] if user else []:
            self._close_if_ended(connection)

    def _close_if_ended(self, connection: Connection) -> bool:
        close = self.close_of_ended(connection.identity) if connection.identity is not None else None
        if close is not None:
            connection.queue.close(close)
        return close is not None

    def disconnect(self, session: Session) -> None:
        """Remove a socket that is gone."""
        connection = self._connections.pop(session.id, None)
        if connection is not None:
            metrics.EDGE_SOCKETS.dec()
            self.stock_broadcaster.unwatch(connection.queue, None)
            session.close()

    async def execute(self, session: Session, effects: Iterable[Effect]) -> None:
        """Execute the effects of a session in order. For a socket that is gone only requests are sent."""
        for effect in effects:
            connection = self._connections.get(session.id)
            match effect:
                case Publish():
                    await self._publish(session, effect)
                case bytes():
                    self._send(session.id, [effect])
                case Close() if connection:
                    connection.queue.close(effect)
                case StartWatching() if connection:
                    self.stock_broadcaster.watch(connection.queue, effect.products)
                case StopWatching() if connection:
                    self.stock_broadcaster.unwatch(connection.queue, effect.products)

    def measure_turn(self) -> None:
        """Measure how long the present turn of the event loop lasts. Call this for each request that arrives.

        So the load of the loop is known while there is any, and an idle edge does not wake up to measure it.
        """
        if not self._measures_turn:
            self._measures_turn = True
            asyncio.get_running_loop().call_soon(self._end_turn, time.monotonic())

    def _end_turn(self, since: float) -> None:
        self._measures_turn = False
        self.in_flight.observe_turn(time.monotonic() - since, clock.now().timestamp())

    async def _publish(self, session: Session, request: Publish) -> None:
        def done(acknowledged: bool) -> None:  # noqa: FBT001 - the broker's yes or no
            if acknowledged:
                to_send = session.on_acknowledged(request.request_id)
            else:
                to_send = session.on_unacknowledged(request.request_id, RETRY_AFTER)
            self._send(session.id, to_send)

        self.measure_turn()
        user_id = session.user.user_id
        if request.verb == "checkout" and await self.orders_closed(request.data["order_id"]):
            refused = cart.Refused(user_id=user_id, id=request.request_id, reason="payment_unavailable")
            self._send(session.id, session.on_outcome(request.request_id, frame_encoder.outcome(refused)))
            self.in_flight.detach(user_id, request.request_id, session.id)
            return
        await self.gateway.publish(cart_request_envelope(user_id, request), done)

    def _send(self, session_id: str, to_send: Iterable[bytes | str]) -> None:
        """Send frames to a socket, unless it is gone.

        A frame for several sockets is passed as one `str`, so that their queues share it.
        """
        connection = self._connections.get(session_id)
        if connection is not None:
            for frame in to_send:
                connection.queue.put(frame if isinstance(frame, str) else frame.decode())

    def _broadcast(self, user: UserState, frame: bytes) -> None:
        text = frame.decode()
        for session_id in user.sessions:
            self._send(session_id, [text])

    # ---- REST requests ----------------------------------------------------------------------------------------------

    def wait_for_reply(self, user_id: str, request_id: str) -> "AbstractContextManager[asyncio.Future[Reply]]":
        """Return a context with a future for the answer to a request. Enter it before the request is sent."""
        self.user_state(user_id)
        return self.in_flight.wait(user_id, request_id, asyncio.get_running_loop().create_future())

    async def send(self, event: Envelope, topic: Topic = cart.REQUESTS) -> bool:
        """Send a request to a service; False if Kafka did not acknowledge it in time."""
        sent: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        await self.gateway.publish(
            event, lambda acknowledged: None if sent.done() else sent.set_result(acknowledged), topic
        )
        return await sent

    # ---- responses --------------------------------------------------------------------------------------------------

    async def dispatch_responses(self, records: Records) -> None:
        """Route the responses of one poll to their users. Responses to users who are not here are not even decoded."""
        messages: list[tuple[UserState, cart.Response, bool]] = []
        now = clock.now().timestamp()
        for record in records:
            user = self._users.get(record.key.decode(errors="replace")) if record.key else None
            if user is None:
                continue
            decoded = decode_record(record, cart.RESPONSE_REGISTRY)
            if decoded is not None:
                event, message = decoded
                messages.append((user, message, event.time.timestamp() < now - FRESH_SECONDS))
        views = [message.cart for _, message, _ in messages if isinstance(message, cart.Snapshot | cart.Resumed)]
        codes = {line.product for view in views for line in view.lines}
        names = await self.product_names(codes) if codes else {}
        for user, message, old in messages:
            try:
                self._dispatch_response(user, message, names, now, old=old)
            except Exception:  # the next response belongs to another user
                log.exception("a response could not be delivered")

    def _dispatch_response(
        self, user: UserState, message: cart.Response, names: Mapping[str, str], now: float, *, old: bool
    ) -> None:
        match message:
            case cart.Held() | cart.Refused() | cart.Removed() | cart.Expired() | cart.Order():
                self._send_outcome(user, message, now, old=old)
            case cart.Snapshot():
                user.observe_cart(message.cart)
                self._send_snapshot(user, message, names, now, old=old or message.replayed)
            case cart.Availability():
                self._answer_read(user, message.session, message.id, message, [frame_encoder.availability(message)])
            case cart.Resumed():
                user.observe_cart(message.cart)
                self._send_resumed(user, message, names)
            case cart.Error():
                for session in self._open_sessions(user):
                    self._send(session.id, session.on_rejected(message))
                self.in_flight.settle(user.user_id, message.id, Reply(message))
            case cart.OrderRefused() | cart.Reservation():
                self.in_flight.settle(user.user_id, message.id, Reply(message))
            case cart.Notice():
                self._broadcast(user, self._mark_if_repeated(user, frame_encoder.notice(message), now, old=old))

    def _open_sessions(self, user: UserState) -> list[Session]:
        return [self._connections[session_id].session for session_id in user.sessions]

    def _mark_if_repeated(self, user: UserState, frame: bytes, now: float, *, old: bool) -> bytes:
        """Return a frame for all sockets of a user, marked `replayed` if it is `old` or was sent before."""
        is_repeat = self._recent_frames.seen(user.user_id, frame, now)
        return frame_encoder.mark_replayed(frame) if old or is_repeat else frame

    def _send_outcome(self, user: UserState, message: frame_encoder.OutcomeMessage, now: float, *, old: bool) -> None:
        frame = frame_encoder.outcome(message)
        user.observe_cart(message)
        request_id = None if isinstance(message, cart.Expired) else message.id
        since = None if request_id is None else self.in_flight.accepted_at(user.user_id, request_id)
        if not message.replayed:
            frame = self._mark_if_repeated(user, frame, now, old=old and since is None)
        if since is not None:
            metrics.EDGE_OUTCOME_SECONDS.observe(max(0.0, now - since))
        text = frame.decode()
        for session in self._open_sessions(user):
            to_send = session.on_outcome(request_id, frame)
            self._send(session.id, [text if each is frame else each for each in to_send])
        if request_id is not None:
            self.in_flight.settle(user.user_id, request_id, Reply(message, frame))

    def _send_snapshot(
        self, user: UserState, message: cart.Snapshot, names: Mapping[str, str], now: float, *, old: bool
    ) -> None:
        body = frame_encoder.cart_body(user.user_id, message.cart, names, self.currency)
        if message.session is None:
            self._broadcast(user, self._mark_if_repeated(user, frame_encoder.cart_frame(body), now, old=old))
            return
        request_id = message.id or ""
        connection = self._connection(user, message.session)
        if connection is not None and request_id == f"{message.session}/end":
            self._answer_read(user, message.session, request_id, message, [])
            self._warn_of_expiry(user)
            return
        if connection is not None and request_id == connection.session.cart_read_id:
            self._answer_new_sockets(user, connection, message, frame_encoder.cart_frame(body))
            return
        shown = connection.session.client_id(request_id) if connection else request_id
        self._answer_read(user, message.session, request_id, message, [frame_encoder.cart_frame(body, shown)])

    def _answer_new_sockets(
        self, user: UserState, connection: Connection, message: cart.Snapshot, frame: bytes
    ) -> None:
        """Send the cart to the new socket that read it, and to the user's other sockets that wait for theirs."""
        reader = connection.session
        waits = self.in_flight.is_reading(reader.id, reader.cart_read_id)
        self._answer_read(user, reader.id, reader.cart_read_id, message, [frame])
        for session in self._open_sessions(user) if waits else []:
            if self.in_flight.is_reading(session.id, session.cart_read_id):
                self._send(session.id, session.on_read_answered(session.cart_read_id, [frame]))

    def _send_resumed(self, user: UserState, message: cart.Resumed, names: Mapping[str, str]) -> None:
        connection = self._connection(user, message.session)
        if connection is not None:
            connection.session.on_resumed(message)
        body = frame_encoder.cart_body(user.user_id, message.cart, names, self.currency)
        outcomes = [
            frame_encoder.outcome(stored.outcome, stored.id, replayed=True)
            for stored in message.outcomes
            if isinstance(stored.outcome, frame_encoder.ShownOutcome)
        ]
        to_send = [frame_encoder.cart_frame(body, message.id), *outcomes, frame_encoder.resumed(message)]
        self._answer_read(user, message.session, message.id, message, to_send)

    def _connection(self, user: UserState, session_id: str) -> Connection | None:
        """Return the socket with this session id, if it is one of this user's."""
        return self._connections[session_id] if session_id in user.sessions else None

    def _answer_read(
        self, user: UserState, session_id: str, request_id: str, message: cart.Response, to_send: list[bytes]
    ) -> None:
        """Answer a read: to the session that sent it, or to the REST request that did."""
        connection = self._connection(user, session_id)
        if connection is not None:
            self._send(session_id, connection.session.on_read_answered(request_id, to_send))
        self.in_flight.resolve(user.user_id, request_id, Reply(message, to_send[0] if to_send else b""))

    def resolve_reply(self, user_id: str, request_id: str, answer: Reply) -> None:
        """Give a REST request an answer that did not come from `cart.responses`."""
        self.in_flight.resolve(user_id, request_id, answer)

    def _warn_of_expiry(self, user: UserState) -> None:
        frame = user.take_expiry_warning(clock.now().timestamp())
        if frame is not None:
            self._broadcast(user, frame)

    # ---- time -------------------------------------------------------------------------------------------------------

    async def run_sweeps(self) -> None:
        """Run indefinitely: once per second wake due sessions, warn of carts about to expire, and drop idle users."""
        while True:
            await asyncio.sleep(SWEEP_INTERVAL_SECONDS)
            now = clock.now().timestamp()
            for session in [each.session for each in self._connections.values() if each.session.next_wakeup <= now]:
                await self.execute(session, session.tick(now))
            for user in [user for user in self._users.values() if user.needs_expiry_warning(now)]:
                for session in self._open_sessions(user)[:1]:  # none if the last socket left while another was served
                    await self.execute(session, session.read_before_expiry_warning(now))
            for user_id, user in list(self._users.items()):
                if user.is_idle(now):
                    del self._users[user_id]
