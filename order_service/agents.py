"""The Kafka shell of the order service: handle a batch in one transaction, then publish the results.

Every sent record is computed from stored data, so any process can send it again after a crash: unpublished events, the
frames about them for the shopper, and the open commands.
"""

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from contracts import cart, deliveries, inventory, orders, payments
from contracts.envelope import Envelope, Message
from contracts.topics import Topic
from contracts.trace_context import child_traceparent
from infrastructure.messaging.batch_processor import TRANSIENT_ERRORS, ReceivedMessage
from infrastructure.observability import metrics
from infrastructure.process import clock
from infrastructure.process.failpoints import failpoint
from infrastructure.storage import postgres
from order_service.commands import SagaCommand, next_commands
from order_service.model import Incoming, RequestReply
from order_service.outcomes import InventoryOutcome
from order_service.state import Order
from order_service.store import OrderBatch, OrderStore

log = logging.getLogger(__name__)

POLL_INTERVAL: Final = 0.5
"""Seconds between two polls for passed deadlines."""
MAX_DUE_PER_POLL: Final = 100
"""The greatest number of due orders, and of unpublished ones, in one batch."""
SOURCE: Final = "/orders"
_ORDER_ID: Final = re.compile(rb'"order_id"\s*:\s*"')

Publish = Callable[[Topic, Sequence[Envelope]], Awaitable[None]]
Outbox = dict[Topic, list[Envelope]]


class OrderAgents:
    """The handlers of messages about orders. Each agent needs its own instance, and so its own store and connection."""

    def __init__(self, store: OrderStore, publish: Publish, now: Callable[[], datetime] = clock.now) -> None:
        self.store = store
        self.publish = publish
        self.now = now

    async def on_order_requests(self, batch: Sequence[ReceivedMessage[orders.Request]]) -> None:
        """Handle requests of shoppers and support about orders."""
        await self._process(batch, [each.message for each in batch])

    async def on_inventory_responses(self, batch: Sequence[ReceivedMessage[inventory.Decided]]) -> None:
        """Handle decisions of inventory about orders; decisions about carts are skipped."""
        await self._process(batch, [order_outcome(each.message) for each in batch])

    async def on_payment_events(self, batch: Sequence[ReceivedMessage[payments.Event]]) -> None:
        """Handle the results of payments."""
        await self._process(batch, [each.message for each in batch])

    async def on_delivery_events(self, batch: Sequence[ReceivedMessage[deliveries.Event]]) -> None:
        """Handle the state changes of parcels."""
        await self._process(batch, [each.message for each in batch])

    async def handle_due_orders(self) -> int:
        """Handle the orders whose deadline has passed. Return their number."""
        due = await self.store.claim_due(MAX_DUE_PER_POLL)
        if due:
            failpoint("orders.claimed")
            await self._handle_deadlines(due)
        return len(due)

    async def run_deadlines(self) -> None:
        """Handle passed deadlines until cancelled, polling twice per second. Raise when Postgres is lost."""
        while True:
            if await self.handle_due_orders() < MAX_DUE_PER_POLL:
                await asyncio.sleep(POLL_INTERVAL)

    async def _handle_deadlines(self, due: Sequence[Incoming]) -> None:
        """Handle deadlines together; if that fails permanently, one by one, without the order that it fails for."""
        try:
            await self.handle_batch(due, {})
        except (*TRANSIENT_ERRORS, *postgres.TRANSIENT_ERRORS):
            raise
        except Exception as error:
            if len(due) == 1:
                log.exception("the deadline of order %s cannot be handled", due[0].order_id)
                return
            log.warning("handling deadlines one by one, since %r", error)
            for each in due:
                await self._handle_deadlines([each])

    async def on_permanent_failure(self, received: ReceivedMessage[Any], error: Exception) -> None:
        """Do nothing: the dead letter is the only report of a message that fails permanently."""

    async def _process(self, batch: Sequence[ReceivedMessage[Any]], messages: Iterable[Any]) -> None:
        relevant = [
            (Incoming(message.order_id, each.message.user_id, each.event.request_id, message), each.event)
            for each, message in zip(batch, messages, strict=True)
            if message is not None
        ]
        if relevant:
            traces = {incoming.order_id: event.traceparent for incoming, event in relevant}
            await self.handle_batch([incoming for incoming, _ in relevant], traces)

    async def handle_batch(self, batch: Sequence[Incoming], traces: Mapping[str, str | None]) -> None:
        """Handle a batch in one transaction, then publish. Raise `UnexpectedMessage` or an error of the store."""
        results = await self.store.transact(batch)
        failpoint("orders.committed")
        outbox: Outbox = {}
        for result in results:
            for topic, events in records_to_send(result, traces.get(result.order_id), self.now()).items():
                outbox.setdefault(topic, []).extend(events)
        await asyncio.gather(*(self.publish(topic, events) for topic, events in outbox.items()))
        failpoint("orders.told")
        await self.store.mark_published(
            {
                result.order_id: result.state.version
                for result in results
                if result.state is not None and result.unpublished
            }
        )
        failpoint("orders.marked")
        for result in results:
            for event, _ in result.unpublished:
                metrics.ORDER_EVENTS.labels(event.TYPE.rpartition(".")[2], getattr(event, "reason", "")).inc()


def order_outcome(decided: inventory.Decided) -> InventoryOutcome | None:
    """Return the outcome if it concerns an order, else `None`; reservations are settled by their own service."""
    outcome = decided.outcome
    if not isinstance(outcome, InventoryOutcome) or not outcome.order_id:
        return None
    return None if isinstance(outcome, inventory.Committed) and outcome.purpose != "order" else outcome


def may_concern_order(value: bytes) -> bool:
    """Return False if the bytes of a decision cannot concern an order, so that most cart decisions are not parsed.

    A cart decision has no `order_id`, or `null`. Other producers may write spaces around the colon, or escape any
    character of the key.
    """
    return _ORDER_ID.search(value) is not None or b"\\u" in value


# ---- outgoing records -----------------------------------------------------------------------------------------------


def records_to_send(result: OrderBatch, trace: str | None, now: datetime) -> Outbox:
    """Return the records to send after the batch of one order, by topic."""
    outbox: Outbox = {}
    order, unpublished = result.state, result.unpublished
    frames = [_reply_envelope(answer, trace, now) for answer in result.replies]
    if order is not None:
        for event, at in unpublished:
            outbox.setdefault(orders.EVENTS, []).append(event_envelope(order, event, at, trace))
        frames += [frame for event, at in unpublished if (frame := _status_frame(order, event, at, trace))]
        # No commands after a message without effect: two services that reply to each other would never stop.
        if unpublished or result.must_send_commands:
            for step in next_commands(order, result.personal_data, overdue=result.overdue):
                outbox.setdefault(step.topic, []).append(_command_envelope(step, trace, now))
    if frames:
        outbox[cart.RESPONSES] = frames
    return outbox


def event_envelope(order: Order, event: orders.Event, at: datetime, trace: str | None = None) -> Envelope:
    """Return the envelope of an event for `orders.events`."""
    return _envelope(event, order.order_id, f"{order.order_id}/{event.version}", at, order.request_id, trace)


def _status_frame(order: Order, event: orders.Event, at: datetime, trace: str | None) -> Envelope | None:
    """Return the frame about an event, `None` if the cart service reports it or the status is unchanged."""
    if event.version <= orders.COMMITTED_VERSION or REPORTED_STATUSES.get(type(event)) != event.status:
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


REPORTED_STATUSES: Final[Mapping[type[orders.Event], orders.Status]] = {
    orders.Captured: "paid",
    orders.Confirmed: "confirmed",
    orders.Shipped: "shipped",
    orders.Delivered: "delivered",
    orders.Cancelled: "cancelled",
}
"""The events that are reported to the shopper, each with the status that it must have reached."""


def _reply_envelope(answer: RequestReply, trace: str | None, now: datetime) -> Envelope:
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


def _command_envelope(step: SagaCommand, trace: str | None, now: datetime) -> Envelope:
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
        traceparent=child_traceparent(trace),
    )
