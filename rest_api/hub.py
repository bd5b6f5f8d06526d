"""Who is here: brings what Kafka answers to the shopper's sockets, and to the REST requests that wait for it."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Final

from cart_service import messages as cart
from infrastructure import metrics
from infrastructure.envelope import Envelope, Undecodable
from infrastructure.topics import Topic
from rest_api import frames
from rest_api.admission import Admission
from rest_api.gateway import RETRY_AFTER, Gateway, Records
from rest_api.model import Session
from rest_api.outbound import cart_request
from rest_api.outlet import Outlet
from rest_api.shopper import Close, Publish, Rules, Shopper, StartWatching, StopWatching
from rest_api.ticker import Ticker
from rest_api.told import Told
from rest_api.waiting import Answer, Waiting

log = logging.getLogger(__name__)

SWEEP_SECONDS: Final = 1.0
NEWS_SECONDS: Final = 30.0
"""What happened longer ago is news only to who waits for it here: by then it was told, and comes from a replay."""

Names = Callable[[Iterable[str]], Awaitable[Mapping[str, str]]]
Refuses = Callable[[str], Awaitable[bool]]
"""Whether no order may be begun now, given the id that it would have: one that is there already goes on."""


async def refuses_none(_: str) -> bool:
    """Every order may be begun."""
    return False


@dataclass(slots=True)
class Seat:
    """A socket that is here: its session and its way out."""

    session: Session
    outlet: Outlet


class Hub:
    """The shoppers of this edge, by user id."""

    def __init__(
        self,
        gateway: Gateway,
        *,
        names: Names,
        currency: str,
        rules: Rules,
        ticker: Ticker,
        refuses: Refuses = refuses_none,
    ) -> None:
        self.names = names
        self.refuses = refuses
        self.currency = currency
        self.rules = rules
        self.ticker = ticker
        self.gateway = gateway
        self.admission = Admission(None)
        self._shoppers: dict[str, Shopper] = {}
        self._seats: dict[str, Seat] = {}
        self._waiting = Waiting()
        self._told = Told()

    @property
    def fault(self) -> str | None:
        """Why nothing new is accepted; None when all is well."""
        return self.gateway.fault

    # ---- shoppers and sockets ---------------------------------------------------------------------------------------

    def shopper(self, user_id: str) -> Shopper:
        """What the sockets and requests of a user share; made when first asked for."""
        shopper = self._shoppers.get(user_id)
        if shopper is None:
            shopper = self._shoppers[user_id] = Shopper(user_id, self.rules, time.time(), self.admission)
        shopper.seen_at = time.time()
        return shopper

    async def enter(self, session: Session, outlet: Outlet) -> None:
        """A socket is open."""
        seat = self._seats[session.id] = Seat(session, outlet)
        metrics.EDGE_SOCKETS.inc()
        await self.do(seat.session, seat.outlet, session.open(time.time()))

    def leave(self, session: Session) -> None:
        """A socket is gone."""
        seat = self._seats.pop(session.id, None)
        if seat is not None:
            metrics.EDGE_SOCKETS.dec()
            self.ticker.stop(seat.outlet, None)
            session.close()

    async def do(self, session: Session, outlet: Outlet, effects: Iterable[object]) -> None:
        """Carry out what a session says, in its order."""
        for effect in effects:
            match effect:
                case bytes():
                    outlet.put(effect.decode())
                case Publish():
                    await self._send(session, outlet, effect)
                case Close():
                    outlet.close(effect)
                case StartWatching():
                    self.ticker.start(outlet, effect.products)
                case StopWatching():
                    self.ticker.stop(outlet, effect.products)

    async def _send(self, session: Session, outlet: Outlet, request: Publish) -> None:
        def done(acknowledged: bool) -> None:  # noqa: FBT001 - the broker's yes or no
            if acknowledged:
                effects = session.acknowledged(request.request_id)
            else:
                effects = session.unacknowledged(request.request_id, RETRY_AFTER)
            self._put(outlet, effects)

        if request.verb == "checkout" and await self.refuses(request.data["order_id"]):
            session.shopper.settle(request.request_id)
            refused = cart.Refused(user_id=session.shopper.user_id, id=request.request_id, reason="payment_unavailable")
            self._put(outlet, session.outcome(request.request_id, frames.outcome(refused)))
            return
        await self.gateway.publish(cart_request(session.shopper.user_id, request), done)

    def _put(self, outlet: Outlet, effects: Iterable[object]) -> None:
        for effect in effects:
            if isinstance(effect, bytes):
                outlet.put(effect.decode())
            elif isinstance(effect, Close):
                outlet.close(effect)

    # ---- REST requests ----------------------------------------------------------------------------------------------

    def wait(self, user_id: str, request_id: str) -> "AbstractContextManager[asyncio.Future[Answer]]":
        """A future for the answer to a request, to be entered before the request is sent."""
        self.shopper(user_id)
        return self._waiting.wait(user_id, request_id)

    async def publish(self, user_id: str, request: Publish) -> bool:
        """Send a request to the carts that no socket asked for; False when Kafka did not say in time that it has it."""
        return await self.send(cart_request(user_id, request), cart.REQUESTS)

    async def send(self, event: Envelope, topic: Topic) -> bool:
        """Send a request to any service; False when Kafka did not say in time that it has it."""
        sent: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        await self.gateway.publish(
            event, lambda acknowledged: None if sent.done() else sent.set_result(acknowledged), topic
        )
        return await sent

    # ---- what Kafka answers -----------------------------------------------------------------------------------------

    async def handle(self, records: Records) -> None:
        """Bring the responses of one poll to those who are here; what is for others is not even read."""
        messages: list[tuple[Shopper, cart.Response, bool]] = []
        horizon = time.time() - NEWS_SECONDS
        for record in records:
            shopper = self._shoppers.get(record.key.decode(errors="replace")) if record.key else None
            if shopper is None:
                continue
            try:
                event = Envelope.decode(record.key, record.value)
                messages.append((shopper, cart.RESPONSE_VOCABULARY.parse(event), event.time.timestamp() < horizon))
            except Undecodable as error:
                metrics.IGNORED.labels(record.topic).inc()
                log.warning("%s %s/%s: %s", record.topic, record.partition, record.offset, error)
        views = [message.cart for _, message, _ in messages if isinstance(message, cart.Snapshot | cart.Resumed)]
        codes = {line.product for view in views for line in view.lines}
        names = await self.names(codes) if codes else {}
        for shopper, message, old in messages:
            try:
                self._deliver(shopper, message, names, old=old)
            except Exception:  # whatever one response holds, the next one is somebody else's
                log.exception("a response could not be delivered")

    def _deliver(self, shopper: Shopper, message: cart.Response, names: Mapping[str, str], *, old: bool) -> None:
        match message:
            case cart.Held() | cart.Refused() | cart.Removed() | cart.Expired() | cart.Order():
                self._outcome(shopper, message, old=old)
            case cart.Snapshot():
                shopper.note(message.cart)
                self._snapshot(shopper, message, names, old=old or message.replayed)
            case cart.Availability():
                self._answer(shopper, message.session, message.id, message, [frames.availability(message)])
            case cart.Resumed():
                shopper.note(message.cart)
                self._resumed(shopper, message, names)
            case cart.Error():
                shopper.settle(message.id)
                for session in list(shopper.sessions.values()):
                    self._put(self._seats[session.id].outlet, session.rejected(message))
                self._resolve(shopper, message.id, Answer(message))
            case cart.OrderRefused() | cart.Reservation():
                shopper.settle(message.id)
                self._resolve(shopper, message.id, Answer(message))
            case cart.Notice():
                self._tell_all(shopper, self._marked(shopper, frames.notice(message), old=old))

    def _marked(self, shopper: Shopper, frame: bytes, *, old: bool) -> bytes:
        """A frame for all of a shopper's sockets; with its mark when it is `old`, or was told before."""
        told = self._told.before(shopper.user_id, frame, time.time())
        return frames.again(frame) if old or told else frame

    def _tell_all(self, shopper: Shopper, frame: bytes) -> None:
        text = frame.decode()
        for session in shopper.sessions.values():
            self._seats[session.id].outlet.put(text)

    def _outcome(self, shopper: Shopper, message: frames.Outcome, *, old: bool) -> None:
        frame = frames.outcome(message)
        shopper.note(message)
        request_id = None if isinstance(message, cart.Expired) else message.id
        if not message.replayed:
            frame = self._marked(shopper, frame, old=old and request_id not in shopper.unanswered)
        if request_id is not None:
            since = shopper.unanswered.get(request_id)
            if since is not None:
                metrics.EDGE_OUTCOME_SECONDS.observe(max(0.0, time.time() - since))
            shopper.settle(request_id)
            self._resolve(shopper, request_id, Answer(message, frame))
        text = frame.decode()
        for session in shopper.sessions.values():
            outlet = self._seats[session.id].outlet
            for effect in session.outcome(request_id, frame):
                if isinstance(effect, bytes):
                    outlet.put(text if effect is frame else effect.decode())

    def _snapshot(self, shopper: Shopper, message: cart.Snapshot, names: Mapping[str, str], *, old: bool) -> None:
        body = frames.cart_body(shopper.user_id, message.cart, names, self.currency)
        if message.session is None:
            self._tell_all(shopper, self._marked(shopper, frames.cart_frame(body), old=old))
            return
        request_id = message.id or ""
        session = shopper.sessions.get(message.session)
        if session is not None and request_id == f"{session.id}/end":
            self._answer(shopper, session.id, request_id, message, [])
            self._warn(shopper)
            return
        shown = session.client_id(request_id) if session else request_id
        self._answer(shopper, message.session, request_id, message, [frames.cart_frame(body, shown)])

    def _resumed(self, shopper: Shopper, message: cart.Resumed, names: Mapping[str, str]) -> None:
        session = shopper.sessions.get(message.session)
        if session is not None:
            session.resolved(message)
        body = frames.cart_body(shopper.user_id, message.cart, names, self.currency)
        outcomes = [
            frames.outcome(stored.outcome, stored.id, replayed=True)
            for stored in message.outcomes
            if isinstance(stored.outcome, frames.Stored)
        ]
        told = [frames.cart_frame(body, message.id), *outcomes, frames.resumed(message)]
        self._answer(shopper, message.session, message.id, message, told)

    def _answer(
        self, shopper: Shopper, session_id: str, request_id: str, message: cart.Response, told: list[bytes]
    ) -> None:
        """Answer a read: to the one session that asked, or to the REST request that did."""
        session = shopper.sessions.get(session_id)
        if session is not None:
            self._put(self._seats[session_id].outlet, session.answered(request_id, told))
        self._resolve(shopper, request_id, Answer(message, told[0] if told else b""))

    def answer(self, user_id: str, request_id: str, answer: Answer) -> None:
        """An answer that came another way than by the carts' responses, to whoever waits for it here."""
        self._waiting.resolve(user_id, request_id, answer)

    def _resolve(self, shopper: Shopper, request_id: str, answer: Answer) -> None:
        self._waiting.resolve(shopper.user_id, request_id, answer)

    def _warn(self, shopper: Shopper) -> None:
        frame = shopper.warning(time.time())
        if frame is not None:
            self._tell_all(shopper, frame)

    # ---- time -------------------------------------------------------------------------------------------------------

    async def sweep(self) -> None:
        """Once a second: what is due in the sessions, carts that near their end, shoppers that are long gone."""
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            now = time.time()
            for seat in [seat for seat in self._seats.values() if seat.session.due <= now]:
                await self.do(seat.session, seat.outlet, seat.session.tick(now))
            for shopper in [shopper for shopper in self._shoppers.values() if shopper.nears_its_end(now)]:
                session = next(iter(shopper.sessions.values()))
                await self.do(session, self._seats[session.id].outlet, session.look_at_end(now))
            waited_for = self._waiting.users()
            for user_id, shopper in list(self._shoppers.items()):
                if shopper.idle(now) and user_id not in waited_for:
                    del self._shoppers[user_id]
