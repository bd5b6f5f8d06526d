"""The saga: the effect of each message on an order. Messages may arrive in any order and any number of times.

`handle` is the entry point: from an order, its waiting (early) messages and one more message it computes events,
replies and the messages that still wait. A message without news results in no event. Commands to other services are
not decided here: `commands.next_commands` computes them from the folded state, so they can be sent again at any time.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Final, Literal, NamedTuple

from contracts import deliveries, inventory, orders, payments
from contracts.ids import derive_id
from contracts.inventory import Money
from contracts.orders import Event
from order_service import outcomes
from order_service.outcomes import InventoryOutcome
from order_service.state import EventRecorder, Order, UnexpectedMessage


@dataclass(frozen=True, slots=True)
class SagaTimeouts:
    """The timeouts of the saga: how long an order waits for other services."""

    payment_timeout: timedelta = timedelta(minutes=10)
    """The age at which an open charge is voided and its order cancelled."""
    retry_pause: timedelta = timedelta(seconds=30)
    """The pause before the first retry of open commands; it doubles with each retry."""
    max_retry_pause: timedelta = timedelta(minutes=10)
    """The upper bound of the pause between two retries."""


@dataclass(frozen=True, slots=True)
class Deadline:
    """The message that the deadline of an order has passed."""


FollowUpRequest = orders.Cancel | orders.Refund | orders.Pay
"""A request of a shopper or of support about an existing order."""
Message = orders.Request | InventoryOutcome | payments.Event | deliveries.Event | Deadline


@dataclass(frozen=True, slots=True)
class Incoming:
    """A message about the order `order_id` of the shopper `user_id`, with the `request_id` of its envelope."""

    order_id: str
    user_id: str
    request_id: str
    message: Message


RefusalReason = Literal[
    "unknown_order", "not_cancellable", "already_refunded", "refund_too_large", "already_paid", "not_paid"
]


class RequestReply(NamedTuple):
    """The reply to a request about an order; the request is accepted if `refusal` is `None`."""

    request: Incoming
    """The request."""
    order: Order | None
    """The order after the request, `None` if it is unknown."""
    refusal: RefusalReason | None = None
    """The reason of a refusal."""
    replayed: bool = False
    """True if the request was handled before: the stored reply is sent again without any effect."""


RequestKey = tuple[str, str, str]
"""The user id, request id and message type of a request about an order."""
StoredReplies = Mapping[RequestKey, RefusalReason | None]
"""The stored replies: the reason of a refusal, `None` for an accepted request."""
NO_STORED_REPLIES: Final[StoredReplies] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class HandleResult:
    """The result of handling one message."""

    state: Order | None
    """The order after the message, `None` if it is not placed yet."""
    waiting: tuple[Incoming, ...] = ()
    """The early messages that still wait for the order to advance."""
    events: tuple[Event, ...] = ()
    """The new events, the oldest first."""
    replies: tuple[RequestReply, ...] = ()
    """The replies to send."""


def request_key(incoming: Incoming) -> RequestKey:
    """Return the key under which the reply to a request is stored."""
    return incoming.user_id, incoming.request_id, type(incoming.message).__name__


def is_forged(incoming: Incoming) -> bool:
    """Return True if the order id is not the one derived from the user id and the request id."""
    return incoming.order_id != derive_id(incoming.user_id, incoming.request_id, "order")


# ---- one message ----------------------------------------------------------------------------------------------------


def handle(
    state: Order | None,
    waiting: Sequence[Incoming],
    incoming: Incoming,
    *,
    now: datetime,
    timeouts: SagaTimeouts,
    stored_replies: StoredReplies = NO_STORED_REPLIES,
) -> HandleResult:
    """Apply one message, then the waiting messages that it makes applicable.

    Raise `UnexpectedMessage` if the message is impossible in this state.
    """
    if isinstance(incoming.message, FollowUpRequest) and request_key(incoming) in stored_replies:
        # A refused request might be possible by now, but its sender has the reply and no longer expects an effect.
        repeated = RequestReply(incoming, state, stored_replies[request_key(incoming)], replayed=True)
        return HandleResult(state, tuple(waiting), (), (repeated,))
    if state is None and isinstance(incoming.message, Deadline):
        return _refuse_waiting_cancellations(waiting)
    recorder, answers = EventRecorder(state, now), []
    remaining, advanced = [*waiting, incoming], True
    while advanced:
        advanced = False
        for each in remaining:
            if not is_early(recorder.state, each):
                remaining = [other for other in remaining if other is not each]
                answers += decide(recorder, each, timeouts)
                advanced = True
                break
    return HandleResult(recorder.state, tuple(dict.fromkeys(remaining)), tuple(recorder.events), tuple(answers))


def _refuse_waiting_cancellations(waiting: Sequence[Incoming]) -> HandleResult:
    """Refuse the cancellations that waited for an order that was never placed. Decisions keep waiting."""
    cancels = tuple(each for each in waiting if isinstance(each.message, orders.Cancel))
    remaining = tuple(each for each in waiting if each not in cancels)
    return HandleResult(None, remaining, (), tuple(RequestReply(each, None, "unknown_order") for each in cancels))


def is_early(state: Order | None, incoming: Incoming) -> bool:
    """Return True if a message must wait: a decision for its order, a cancellation for the decision."""
    match incoming.message:
        case inventory.Committed(purpose="order") | inventory.Refused() | inventory.IdReused():
            return state is None and not is_forged(incoming)  # an id that is not derived belongs to a reservation
        case orders.Cancel():
            return state is None or (state.user_id == incoming.user_id and state.status == "placed")
        case _:
            return False


def decide(recorder: EventRecorder, incoming: Incoming, timeouts: SagaTimeouts) -> list[RequestReply]:
    """Record the events that result from a message, directly and indirectly. Return the reply if it is a request."""
    message, answers = incoming.message, []
    if isinstance(message, orders.Place):
        _handle_place(recorder, incoming, message)
    elif isinstance(message, Deadline):
        _handle_deadline(recorder, timeouts)
    elif isinstance(message, FollowUpRequest):
        refused = _handle_request(recorder, incoming, recorder.state, message)
        outcomes.finish(recorder)  # before the reply, which states the resulting order
        answers.append(RequestReply(incoming, recorder.state, refused))
    else:
        _handle_report(recorder, incoming, message)
    outcomes.finish(recorder)
    return answers


def _handle_report(
    recorder: EventRecorder, incoming: Incoming, message: InventoryOutcome | payments.Event | deliveries.Event
) -> None:
    """Record the result that inventory, the provider or the carrier reports."""
    order, name = recorder.state, type(message).__name__
    if order is None:
        if isinstance(message, payments.Event | deliveries.Event):
            raise UnexpectedMessage(f"{name} about the order {incoming.order_id}, which does not exist")
        return  # inventory reports on reservations, too
    if incoming.user_id != order.user_id:
        raise UnexpectedMessage(
            f"{name} of the user {incoming.user_id} about the order {incoming.order_id} of the user {order.user_id}"
        )
    if isinstance(message, payments.Event):
        outcomes.record_payment_event(recorder, order, message)
    elif isinstance(message, deliveries.Event):
        outcomes.record_delivery_event(recorder, order, message)
    else:
        outcomes.record_inventory_outcome(recorder, order, message)


def _handle_deadline(recorder: EventRecorder, timeouts: SagaTimeouts) -> None:
    """Begin to cancel an order whose payment is still open after `payment_timeout`; the first step is its void."""
    order = recorder.state
    if order is not None and is_unpaid(order) and recorder.now - order.changed_at >= timeouts.payment_timeout:
        recorder.record(orders.Cancelling, reason="payment_unavailable")


def is_unpaid(order: Order) -> bool:
    """Return True if the order waits for its payment."""
    return order.status == "committed" and order.reason is None


def _handle_place(recorder: EventRecorder, incoming: Incoming, place: orders.Place) -> None:
    if is_forged(incoming):
        raise UnexpectedMessage(
            f"the order id {incoming.order_id} is not derived from {incoming.user_id} and {incoming.request_id}"
        )
    if recorder.state is None:
        recorder.record(
            orders.Placed,
            "placed",
            order_id=incoming.order_id,
            user_id=incoming.user_id,
            request_id=incoming.request_id,
            cart_version=place.version,
            items=place.items,
            expect=place.expect.total if place.expect else None,
        )


# ---- requests about an existing order --------------------------------------------------------------------------------


def _handle_request(
    recorder: EventRecorder, incoming: Incoming, order: Order | None, request: FollowUpRequest
) -> RefusalReason | None:
    """Record the events of a request; return the reason if it is refused."""
    if order is None or order.user_id != incoming.user_id:
        return "unknown_order"  # also for an order of another shopper, so that ids cannot be probed
    match request:
        case orders.Cancel():
            if order.reason is not None:
                return None
            if order.status in {"shipped", "delivered"}:
                return "not_cancellable"
            recorder.record(orders.Cancelling, reason="cancelled")
            return None
        case orders.Pay():  # open commands are sent again after every request
            return "already_paid" if order.captured is not None else None
        case orders.Refund(amount=amount):
            return _handle_refund(recorder, incoming, order, amount)


def _handle_refund(
    recorder: EventRecorder, incoming: Incoming, order: Order, amount: Money | None
) -> RefusalReason | None:
    refund_id = derive_id(order.order_id, incoming.request_id, "refund")
    if any(refund.refund_id == refund_id for refund in order.refunds):
        return None
    if order.captured is None:
        return "not_paid"
    if order.reason is not None or order.refundable <= 0:  # a cancellation refunds the payment by itself
        return "already_refunded"
    requested = amount or order.captured.model_copy(update={"amount": order.refundable})
    if requested.amount > order.refundable or requested.currency != order.captured.currency:
        return "refund_too_large"
    recorder.record(orders.RefundAsked, refund_id=refund_id, amount=requested)
    return None
