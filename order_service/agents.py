"""The Kafka shell of the order service: handle a batch in one transaction, then publish the results.

Every sent record is computed from stored data, so any process can send it again after a crash: unpublished events, the
frames about them for the shopper, and the open commands.
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
"""Seconds between two polls for passed deadlines."""
AT_ONCE: Final = 100
"""The greatest number of due orders, and of unpublished ones, in one batch."""
SOURCE: Final = "/orders"
_ORDER_ID: Final = re.compile(rb'"order_id"\s*:\s*"')

Publish = Callable[[Topic, Sequence[Envelope]], Awaitable[None]]
Outbox = dict[Topic, list[Envelope]]


class Saga:
    """The handlers of messages about orders. Each agent needs its own instance, and so its own store and connection."""

    def __init__(self, store: OrderStore, publish: Publish, now: Callable[[], datetime] = clock.now) -> None:
        self.store = store
        self.publish = publish
        self.now = now

    async def on_requests(self, batch: Sequence[Received[orders.Request]]) -> None:
        """Handle requests of shoppers and support about orders."""
        await self._process(batch, [each.message for each in batch])

    async def on_decisions(self, batch: Sequence[Received[inventory.Decided]]) -> None:
        """Handle decisions of inventory about orders; decisions about carts are skipped."""
        await self._process(batch, [about_an_order(each.message) for each in batch])

    async def on_payments(self, batch: Sequence[Received[payments.Event]]) -> None:
        """Handle the results of payments."""
        await self._process(batch, [each.message for each in batch])

    async def on_deliveries(self, batch: Sequence[Received[deliveries.Event]]) -> None:
        """Handle the state changes of parcels."""
        await self._process(batch, [each.message for each in batch])

    async def look(self) -> int:
        """Handle the orders whose deadline has passed. Return their number."""
        due = await self.store.due(AT_ONCE)
        if due:
            crashpoint("orders.claimed")
            await self.turn(due, {})
        return len(due)

    async def keep_looking(self) -> None:
        """Handle passed deadlines until cancelled, polling twice per second. Raise when Postgres is lost."""
        while True:
            if await self.look() < AT_ONCE:
                await asyncio.sleep(LOOK_EVERY)

    async def fail(self, received: Received[Any], error: Exception) -> None:
        """Do nothing: the dead letter is the only report of a message that fails permanently."""

    async def _process(self, batch: Sequence[Received[Any]], messages: Iterable[Any]) -> None:
        relevant = [
            (Came(message.order_id, each.message.user_id, each.event.request_id, message), each.event)
            for each, message in zip(batch, messages, strict=True)
            if message is not None
        ]
        if relevant:
            traces = {incoming.order_id: event.traceparent for incoming, event in relevant}
            await self.turn([incoming for incoming, _ in relevant], traces)

    async def turn(self, batch: Sequence[Came], traces: Mapping[str, str | None]) -> None:
        """Handle a batch in one transaction, then publish the results. Raise `Stray` and the errors of the store."""
        results = await self.store.transact(batch)
        crashpoint("orders.committed")
        outbox: Outbox = {}
        for result in results:
            for topic, events in sent_for(result, traces.get(result.order_id), self.now()).items():
                outbox.setdefault(topic, []).extend(events)
        await asyncio.gather(*(self.publish(topic, events) for topic, events in outbox.items()))
        crashpoint("orders.told")
        await self.store.mark_published(
            {result.order_id: result.state.version for result in results if result.state is not None and result.untold}
        )
        crashpoint("orders.marked")
        for result in results:
            for event, _ in result.untold:
                metrics.ORDER_EVENTS.labels(event.TYPE.rpartition(".")[2], getattr(event, "reason", "")).inc()


def about_an_order(decided: inventory.Decided) -> Outcome | None:
    """Return the outcome if it concerns an order, else `None`; reservations are settled by their own service."""
    outcome = decided.outcome
    if not isinstance(outcome, Outcome) or not outcome.order_id:
        return None
    return None if isinstance(outcome, inventory.Committed) and outcome.purpose != "order" else outcome


def may_be_about_an_order(value: bytes) -> bool:
    """Return False if the bytes of a decision cannot concern an order, so that most cart decisions are not parsed.

    A cart decision has no `order_id`, or `null`. Other producers may write spaces around the colon, or escape any
    character of the key.
    """
    return _ORDER_ID.search(value) is not None or b"\\u" in value


# ---- outgoing records -----------------------------------------------------------------------------------------------


def sent_for(result: Turn, trace: str | None, now: datetime) -> Outbox:
    """Return the records to send after the batch of one order, by topic."""
    outbox: Outbox = {}
    order, unpublished = result.state, result.untold
    frames = [_reply_envelope(answer, trace, now) for answer in result.answers]
    if order is not None:
        for event, at in unpublished:
            outbox.setdefault(orders.EVENTS, []).append(published(order, event, at, trace))
        frames += [frame for event, at in unpublished if (frame := _status_frame(order, event, at, trace))]
        # No commands after a message without effect: two services that reply to each other would never stop.
        if unpublished or result.asked:
            for step in owed(order, result.private, late=result.late):
                outbox.setdefault(step.topic, []).append(_command_envelope(step, trace, now))
    if frames:
        outbox[cart.RESPONSES] = frames
    return outbox


def published(order: Order, event: orders.Event, at: datetime, trace: str | None = None) -> Envelope:
    """Return the envelope of an event for `orders.events`."""
    return _envelope(event, order.order_id, f"{order.order_id}/{event.version}", at, order.request_id, trace)


def _status_frame(order: Order, event: orders.Event, at: datetime, trace: str | None) -> Envelope | None:
    """Return the frame about an event, `None` if the cart service reports it or the status is unchanged."""
    if event.version <= orders.COMMITTED_VERSION or VISIBLE.get(type(event)) != event.status:
        return None
    frame = cart.Order(
        user_id=order.user_id,
        id=order.request_id,
        order_id=order.order_id,
        status=event.status,
        order_version=event.version,
        reason=getattr(event, "reason", None),
    )
    return _frame_envelope(frame, at, trace)


VISIBLE: Final[Mapping[type[orders.Event], orders.Status]] = {
    orders.Captured: "paid",
    orders.Confirmed: "confirmed",
    orders.Shipped: "shipped",
    orders.Delivered: "delivered",
    orders.Cancelled: "cancelled",
}
"""The events that are reported to the shopper, each with the status that it must have reached."""


def _reply_envelope(answer: Answer, trace: str | None, now: datetime) -> Envelope:
    incoming, order, refused, replayed = answer
    ids: dict[str, Any] = {"user_id": incoming.user_id, "id": incoming.request_id, "order_id": incoming.order_id}
    if refused is not None or order is None:
        return _frame_envelope(cart.OrderRefused(**ids, reason=refused or "unknown_order"), now, trace)
    accepted = cart.Order(
        **ids, status=order.status, order_version=order.version, reason=order.reason, replayed=replayed
    )
    return _frame_envelope(accepted, now, trace)


def _frame_envelope(frame: cart.Order | cart.OrderRefused, at: datetime, trace: str | None) -> Envelope:
    kind = frame.TYPE.rpartition(".")[2]
    version = f"/{frame.order_version}" if isinstance(frame, cart.Order) else ""
    return _envelope(frame, frame.user_id, f"{frame.user_id}/{frame.id}/{kind}{version}", at, frame.id, trace)


def _command_envelope(step: Step, trace: str | None, now: datetime) -> Envelope:
    message = step.message
    order_id = getattr(message, "order_id", "")
    kind = message.TYPE.rpartition(".")[2]
    id_ = f"{order_id}/{kind}/{step.request_id}"
    return _envelope(message, getattr(message, message.KEY), id_, step.at or now, step.request_id, trace)


def _envelope(message: Message, subject: str, id_: str, time: datetime, request_id: str, trace: str | None) -> Envelope:
    return Envelope.of(
        message,
        source=SOURCE,
        subject=subject,
        event_id=id_,
        request_id=request_id,
        time=time,
        traceparent=child(trace),
    )
