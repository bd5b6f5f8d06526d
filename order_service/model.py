"""The saga: the effect of each message on an order. Messages may arrive in any order and any number of times.

`handle` is the entry point: from an order, its waiting (early) messages and one more message it computes events,
replies and the messages that still wait. A message without news results in no event. Commands to other services are
not decided here: `steps.owed` computes them from the folded state, so they can be sent again at any time.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Final, Literal, NamedTuple

from infrastructure.ids import derived
from inventory_service import messages as inventory
from inventory_service.messages import Money
from order_service import messages as orders
from order_service import outcomes
from order_service.delivery import messages as deliveries
from order_service.messages import Event
from order_service.outcomes import Outcome
from order_service.payment import messages as payments
from order_service.state import Order, Story, Stray


@dataclass(frozen=True, slots=True)
class Rules:
    """The timeouts of the saga: how long an order waits for other services."""

    payment_patience: timedelta = timedelta(minutes=10)
    """The age at which an open charge is voided and its order cancelled."""
    ask_again: timedelta = timedelta(seconds=30)
    """The pause before the first retry of open commands; it doubles with each retry."""
    longest_pause: timedelta = timedelta(minutes=10)
    """The upper bound of the pause between two retries."""


@dataclass(frozen=True, slots=True)
class Deadline:
    """The message that the deadline of an order has passed."""


Asked = orders.Cancel | orders.Refund | orders.Pay
"""A request of a shopper or of support about an existing order."""
Message = orders.Request | Outcome | payments.Event | deliveries.Event | Deadline


@dataclass(frozen=True, slots=True)
class Came:
    """A message about the order `order_id` of the shopper `user_id`, with the `request_id` of its envelope."""

    order_id: str
    user_id: str
    request_id: str
    message: Message


RefusedBecause = Literal[
    "unknown_order", "not_cancellable", "already_refunded", "refund_too_large", "already_paid", "not_paid"
]


class Answer(NamedTuple):
    """The reply to a request about an order; the request is accepted if `refused` is `None`."""

    came: Came
    """The request."""
    order: Order | None
    """The order after the request, `None` if it is unknown."""
    refused: RefusedBecause | None = None
    """The reason of a refusal."""
    replayed: bool = False
    """True if the request was handled before: the stored reply is sent again without any effect."""


RequestKey = tuple[str, str, str]
"""The user id, request id and message type of a request about an order."""
Answered = Mapping[RequestKey, RefusedBecause | None]
"""The stored replies: the reason of a refusal, `None` for an accepted request."""
NOTHING_YET: Final[Answered] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Handled:
    """The result of handling one message."""

    state: Order | None
    """The order after the message, `None` if it is not placed yet."""
    waiting: tuple[Came, ...] = ()
    """The early messages that still wait for the order to advance."""
    events: tuple[Event, ...] = ()
    """The new events, the oldest first."""
    answers: tuple[Answer, ...] = ()
    """The replies to send."""


def key_of(incoming: Came) -> RequestKey:
    """Return the key under which the reply to a request is stored."""
    return incoming.user_id, incoming.request_id, type(incoming.message).__name__


def is_forged(incoming: Came) -> bool:
    """Return True if the order id is not the one derived from the user id and the request id."""
    return incoming.order_id != derived(incoming.user_id, incoming.request_id, "order")


# ---- one message ----------------------------------------------------------------------------------------------------


def handle(
    state: Order | None,
    waiting: Sequence[Came],
    incoming: Came,
    *,
    now: datetime,
    rules: Rules,
    answered: Answered = NOTHING_YET,
) -> Handled:
    """Apply one message, then the waiting messages that it makes applicable. Raise `Stray` for an impossible one."""
    if isinstance(incoming.message, Asked) and key_of(incoming) in answered:
        # A refused request might be possible by now, but its sender has the reply and no longer expects an effect.
        repeated = Answer(incoming, state, answered[key_of(incoming)], replayed=True)
        return Handled(state, tuple(waiting), (), (repeated,))
    if state is None and isinstance(incoming.message, Deadline):
        return _refuse_waiting_cancellations(waiting)
    recorder, answers = Story(state, now), []
    remaining, advanced = [*waiting, incoming], True
    while advanced:
        advanced = False
        for each in remaining:
            if not is_early(recorder.state, each):
                remaining = [other for other in remaining if other is not each]
                answers += decide(recorder, each, rules)
                advanced = True
                break
    return Handled(recorder.state, tuple(dict.fromkeys(remaining)), tuple(recorder.events), tuple(answers))


def _refuse_waiting_cancellations(waiting: Sequence[Came]) -> Handled:
    """Refuse the cancellations that waited for an order that was never placed. Decisions keep waiting."""
    cancels = tuple(each for each in waiting if isinstance(each.message, orders.Cancel))
    remaining = tuple(each for each in waiting if each not in cancels)
    return Handled(None, remaining, (), tuple(Answer(each, None, "unknown_order") for each in cancels))


def is_early(state: Order | None, incoming: Came) -> bool:
    """Return True if a message must wait: a decision for its order, a cancellation for the decision."""
    match incoming.message:
        case inventory.Committed(purpose="order") | inventory.Refused() | inventory.IdReused():
            return state is None and not is_forged(incoming)  # an id that is not derived belongs to a reservation
        case orders.Cancel():
            return state is None or (state.user_id == incoming.user_id and state.status == "placed")
        case _:
            return False


def decide(recorder: Story, incoming: Came, timeouts: Rules) -> list[Answer]:
    """Record the events that result from a message, directly and indirectly. Return the reply if it is a request."""
    message, answers = incoming.message, []
    if isinstance(message, orders.Place):
        _handle_place(recorder, incoming, message)
    elif isinstance(message, Deadline):
        _handle_deadline(recorder, timeouts)
    elif isinstance(message, Asked):
        refused = _handle_request(recorder, incoming, recorder.state, message)
        outcomes.settle(recorder)  # before the reply, which states the resulting order
        answers.append(Answer(incoming, recorder.state, refused))
    else:
        _handle_report(recorder, incoming, message)
    outcomes.settle(recorder)
    return answers


def _handle_report(recorder: Story, incoming: Came, message: Outcome | payments.Event | deliveries.Event) -> None:
    """Record the result that inventory, the provider or the carrier reports."""
    order, name = recorder.state, type(message).__name__
    if order is None:
        if isinstance(message, payments.Event | deliveries.Event):
            raise Stray(f"{name} about the order {incoming.order_id}, which does not exist")
        return  # inventory reports on reservations, too
    if incoming.user_id != order.user_id:
        raise Stray(
            f"{name} of the user {incoming.user_id} about the order {incoming.order_id} of the user {order.user_id}"
        )
    if isinstance(message, payments.Event):
        outcomes.paid(recorder, order, message)
    elif isinstance(message, deliveries.Event):
        outcomes.delivered(recorder, order, message)
    else:
        outcomes.decided(recorder, order, message)


def _handle_deadline(recorder: Story, timeouts: Rules) -> None:
    """Begin to cancel an order whose payment is still open after `payment_patience`; the first step is its void."""
    order = recorder.state
    if order is not None and is_unpaid(order) and recorder.now - order.since >= timeouts.payment_patience:
        recorder.tell(orders.Cancelling, reason="payment_unavailable")


def is_unpaid(order: Order) -> bool:
    """Return True if the order waits for its payment."""
    return order.status == "committed" and order.reason is None


def _handle_place(recorder: Story, incoming: Came, place: orders.Place) -> None:
    if is_forged(incoming):
        raise Stray(
            f"the order id {incoming.order_id} is not derived from {incoming.user_id} and {incoming.request_id}"
        )
    if recorder.state is None:
        recorder.tell(
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


def _handle_request(recorder: Story, incoming: Came, order: Order | None, request: Asked) -> RefusedBecause | None:
    """Record the events of a request; return the reason if it is refused."""
    if order is None or order.user_id != incoming.user_id:
        return "unknown_order"  # also for an order of another shopper, so that ids cannot be probed
    match request:
        case orders.Cancel():
            if order.reason is not None:
                return None
            if order.status in {"shipped", "delivered"}:
                return "not_cancellable"
            recorder.tell(orders.Cancelling, reason="cancelled")
            return None
        case orders.Pay():  # open commands are sent again after every request
            return "already_paid" if order.captured is not None else None
        case orders.Refund(amount=amount):
            return _handle_refund(recorder, incoming, order, amount)


def _handle_refund(recorder: Story, incoming: Came, order: Order, amount: Money | None) -> RefusedBecause | None:
    refund_id = derived(order.order_id, incoming.request_id, "refund")
    if any(refund.refund_id == refund_id for refund in order.refunds):
        return None
    if order.captured is None:
        return "not_paid"
    if order.reason is not None or order.left <= 0:  # a cancellation refunds the payment by itself
        return "already_refunded"
    requested = amount or order.captured.model_copy(update={"amount": order.left})
    if requested.amount > order.left or requested.currency != order.captured.currency:
        return "refund_too_large"
    recorder.tell(orders.RefundAsked, refund_id=refund_id, amount=requested)
    return None
