"""The shell of the orders: take a batch of messages, decide it in one transaction, then say and ask what follows.

Everything that is sent is computed from what is stored, so whoever comes next can send it again: the events that the
topics may not know, the shopper's frames of them, and the steps that are owed.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from cart_service import messages as cart
from infrastructure import clock, metrics
from infrastructure.crashpoints import crashpoint
from infrastructure.envelope import Envelope, Message
from infrastructure.guard import Received
from infrastructure.topics import Topic
from infrastructure.trace import child
from inventory_service import messages as inventory
from order_service import messages as orders
from order_service.delivery import messages as deliveries
from order_service.model import Answer, Came
from order_service.outcomes import Outcome
from order_service.payment import messages as payments
from order_service.state import Order
from order_service.steps import Step, owed
from order_service.store import OrderStore, Turn

LOOK_EVERY: Final = 0.5
AT_ONCE: Final = 100
TOLD_BY_THE_CART: Final = 2
"""Up to this version, a shopper hears of an order with the decision about the cart."""
SOURCE: Final = "/orders"
_ORDER_ID: Final = re.compile(rb'"order_id"\s*:\s*"')

Publish = Callable[[Topic, Sequence[Envelope]], Awaitable[None]]
Outbox = dict[Topic, list[Envelope]]


class Saga:
    """What one agent does with messages about orders; each has a store, and so a connection, of its own."""

    def __init__(self, store: OrderStore, publish: Publish, now: Callable[[], datetime] = clock.now) -> None:
        self.store = store
        self.publish = publish
        self.now = now

    async def on_requests(self, batch: Sequence[Received[orders.Request]]) -> None:
        """What shoppers and support want of orders."""
        await self._take(batch, [each.message for each in batch])

    async def on_decisions(self, batch: Sequence[Received[inventory.Decided]]) -> None:
        """What inventory says; most of it is about carts, and passed over."""
        await self._take(batch, [about_an_order(each.message) for each in batch])

    async def on_payments(self, batch: Sequence[Received[payments.Event]]) -> None:
        """What the provider did."""
        await self._take(batch, [each.message for each in batch])

    async def on_deliveries(self, batch: Sequence[Received[deliveries.Event]]) -> None:
        """Where parcels have come to."""
        await self._take(batch, [each.message for each in batch])

    async def look(self) -> int:
        """Look at the orders whose deadline has come; how many that were."""
        due = await self.store.due(AT_ONCE)
        if due:
            crashpoint("orders.claimed")
            await self.turn(due, {})
        return len(due)

    async def keep_looking(self) -> None:
        """Look twice a second; raises when Postgres is lost."""
        while True:
            if await self.look() < AT_ONCE:
                await asyncio.sleep(LOOK_EVERY)

    async def fail(self, received: Received[Any], error: Exception) -> None:
        """What can't be true, or can't be done, lies in the dead letters; nobody is told otherwise."""

    async def _take(self, batch: Sequence[Received[Any]], messages: Iterable[Any]) -> None:
        about = [
            (Came(message.order_id, each.message.user_id, each.event.request_id, message), each.event)
            for each, message in zip(batch, messages, strict=True)
            if message is not None
        ]
        if about:
            traces = {came.order_id: event.traceparent for came, event in about}
            await self.turn([came for came, _ in about], traces)

    async def turn(self, batch: Sequence[Came], traces: Mapping[str, str | None]) -> None:
        """Decide a batch in one transaction, then send what follows; raises what the store raises, and `Stray`."""
        turns = await self.store.transact(batch)
        crashpoint("orders.committed")
        outbox: Outbox = {}
        for turn in turns:
            for topic, events in sent_for(turn, traces.get(turn.order_id), self.now()).items():
                outbox.setdefault(topic, []).extend(events)
        await asyncio.gather(*(self.publish(topic, events) for topic, events in outbox.items()))
        crashpoint("orders.told")
        await self.store.mark_published(
            {turn.order_id: turn.state.version for turn in turns if turn.state is not None and turn.untold}
        )
        crashpoint("orders.marked")
        for turn in turns:
            for event, _ in turn.untold:
                metrics.ORDER_EVENTS.labels(event.TYPE.rpartition(".")[2], getattr(event, "reason", "")).inc()


def about_an_order(decided: inventory.Decided) -> Outcome | None:
    """The outcome, when it is one of an order; a service settles its reservations itself."""
    outcome = decided.outcome
    if not isinstance(outcome, Outcome) or not outcome.order_id:
        return None
    return None if isinstance(outcome, inventory.Committed) and outcome.purpose != "order" else outcome


def may_be_about_an_order(value: bytes) -> bool:
    """A look at an inventory decision's bytes, so that the many about carts need not be read.

    In those, `order_id` is missing or null. JSON from elsewhere may have spaces there, or an escape for any character.
    """
    return _ORDER_ID.search(value) is not None or b"\\u" in value


# ---- what is sent ---------------------------------------------------------------------------------------------------


def sent_for(turn: Turn, trace: str | None, now: datetime) -> Outbox:
    """All that follows from a turn, by topic."""
    outbox: Outbox = {}
    order, untold = turn.state, turn.untold
    frames = [_answer(answer, trace, now) for answer in turn.answers]
    if order is not None:
        for event, at in untold:
            outbox.setdefault(orders.EVENTS, []).append(published(order, event, at, trace))
        frames += [frame for event, at in untold if (frame := _frame(order, event, at, trace))]
        # Not after news that brings nothing: two who answer each other would never end.
        if untold or turn.asked:
            for step in owed(order, turn.private, late=turn.late):
                outbox.setdefault(step.topic, []).append(_step(step, trace, now))
    if frames:
        outbox[cart.RESPONSES] = frames
    return outbox


def published(order: Order, event: orders.Event, at: datetime, trace: str | None = None) -> Envelope:
    """An event as `orders.events` has it."""
    return _envelope(event, order.order_id, f"{order.order_id}/{event.version}", at, order.request_id, trace)


def _frame(order: Order, event: orders.Event, at: datetime, trace: str | None) -> Envelope | None:
    """What the shopper's sockets are told of an event; none, when its status is as it was before."""
    if event.version <= TOLD_BY_THE_CART or VISIBLE.get(type(event)) != event.status:
        return None
    frame = cart.Order(
        user_id=order.user_id,
        id=order.request_id,
        order_id=order.order_id,
        status=event.status,
        order_version=event.version,
        reason=getattr(event, "reason", None),
    )
    return _tell(frame, at, trace)


VISIBLE: Final[Mapping[type[orders.Event], orders.Status]] = {
    orders.Captured: "paid",
    orders.Confirmed: "confirmed",
    orders.Shipped: "shipped",
    orders.Delivered: "delivered",
    orders.Cancelled: "cancelled",
}


def _answer(answer: Answer, trace: str | None, now: datetime) -> Envelope:
    came, order, refused, replayed = answer
    ids: dict[str, Any] = {"user_id": came.user_id, "id": came.request_id, "order_id": came.order_id}
    if refused is not None or order is None:
        return _tell(cart.OrderRefused(**ids, reason=refused or "unknown_order"), now, trace)
    accepted = cart.Order(
        **ids, status=order.status, order_version=order.version, reason=order.reason, replayed=replayed
    )
    return _tell(accepted, now, trace)


def _tell(frame: cart.Order | cart.OrderRefused, at: datetime, trace: str | None) -> Envelope:
    verb = frame.TYPE.rpartition(".")[2]
    version = f"/{frame.order_version}" if isinstance(frame, cart.Order) else ""
    return _envelope(frame, frame.user_id, f"{frame.user_id}/{frame.id}/{verb}{version}", at, frame.id, trace)


def _step(step: Step, trace: str | None, now: datetime) -> Envelope:
    message = step.message
    order_id = getattr(message, "order_id", "")
    verb = message.TYPE.rpartition(".")[2]
    id_ = f"{order_id}/{verb}/{step.request_id}"
    return _envelope(message, getattr(message, message.KEY), id_, step.at or now, step.request_id, trace)


def _envelope(message: Message, subject: str, id_: str, time: datetime, request_id: str, trace: str | None) -> Envelope:
    return Envelope(
        id=id_,
        source=SOURCE,
        type=message.TYPE,
        subject=subject,
        time=time,
        requestid=request_id,
        traceparent=child(trace),
        data=message.model_dump(mode="json", exclude_none=True),
    )
