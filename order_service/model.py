"""The saga: what each message does to an order, in whatever order and however often messages come.

`handle` is all of it: an order, the messages that came too early for it, and one more message give events, answers and
what still waits. A message that says nothing new gives no event. What is to be asked of others next is not decided
here: `steps.owed` computes it from the folded state, so it can be asked again at any time.
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
    """How long an order waits for others."""

    payment_patience: timedelta = timedelta(minutes=10)
    """A charge that is still open after this is voided, and the order cancelled."""
    ask_again: timedelta = timedelta(seconds=30)
    """What is owed is asked again after this, then after twice as long, and so on."""
    longest_pause: timedelta = timedelta(minutes=10)


@dataclass(frozen=True, slots=True)
class Deadline:
    """The time at which the order was to be looked at again has come."""


Asked = orders.Cancel | orders.Refund | orders.Pay
"""What people ask of an order that is there."""
Message = orders.Request | Outcome | payments.Event | deliveries.Event | Deadline


@dataclass(frozen=True, slots=True)
class Came:
    """A message about `order_id`, of the shopper `user_id`; `request_id` is what it was asked or answered under."""

    order_id: str
    user_id: str
    request_id: str
    message: Message


RefusedBecause = Literal[
    "unknown_order", "not_cancellable", "already_refunded", "refund_too_large", "already_paid", "not_paid"
]


class Answer(NamedTuple):
    """The answer to a request about an order: accepted, when `refused` is none. `order` is as it was then."""

    came: Came
    order: Order | None
    refused: RefusedBecause | None = None
    replayed: bool = False
    """It was answered before: nothing is done, and it is told the same again."""


RequestKey = tuple[str, str, str]
"""Shopper, id and kind of a request about an order."""
Answered = Mapping[RequestKey, RefusedBecause | None]
"""What was answered before; none: accepted."""
NOTHING_YET: Final[Answered] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Handled:
    """What came of a message: the order now, the events that brought it there, answers, and what still waits."""

    state: Order | None
    waiting: tuple[Came, ...] = ()
    events: tuple[Event, ...] = ()
    answers: tuple[Answer, ...] = ()


def key_of(came: Came) -> RequestKey:
    """What a request about an order is known by."""
    return came.user_id, came.request_id, type(came.message).__name__


def is_forged(came: Came) -> bool:
    """Whether a place names an order that is not of its shopper's own request."""
    return came.order_id != derived(came.user_id, came.request_id, "order")


# ---- one message ----------------------------------------------------------------------------------------------------


def handle(
    state: Order | None,
    waiting: Sequence[Came],
    came: Came,
    *,
    now: datetime,
    rules: Rules,
    answered: Answered = NOTHING_YET,
) -> Handled:
    """Take one message in, then those that waited for what it brought. Raises `Stray`."""
    if isinstance(came.message, Asked) and key_of(came) in answered:
        # What was refused then might be possible by now, and nobody asks for it any more.
        again = Answer(came, state, answered[key_of(came)], replayed=True)
        return Handled(state, tuple(waiting), (), (again,))
    if state is None and isinstance(came.message, Deadline):
        return _never_came(waiting)
    story, answers = Story(state, now), []
    left, moved = [*waiting, came], True
    while moved:
        moved = False
        for each in left:
            if not is_early(story.state, each):
                left = [other for other in left if other is not each]
                answers += decide(story, each, rules)
                moved = True
                break
    return Handled(story.state, tuple(dict.fromkeys(left)), tuple(story.events), tuple(answers))


def _never_came(waiting: Sequence[Came]) -> Handled:
    """Whoever wanted an order cancelled has waited for it long enough; a decision goes on waiting."""
    cancels = tuple(each for each in waiting if isinstance(each.message, orders.Cancel))
    left = tuple(each for each in waiting if each not in cancels)
    return Handled(None, left, (), tuple(Answer(each, None, "unknown_order") for each in cancels))


def is_early(state: Order | None, came: Came) -> bool:
    """Whether a message must wait: a decision for its order to be placed, a cancellation for the decision."""
    match came.message:
        case inventory.Committed(purpose="order") | inventory.Refused() | inventory.IdReused():
            return state is None and not is_forged(came)  # other ids are those of reservations
        case orders.Cancel():
            return state is None or (state.user_id == came.user_id and state.status == "placed")
        case _:
            return False


def decide(story: Story, came: Came, rules: Rules) -> list[Answer]:
    """Tell what `came` brings about, and what follows from it by itself; the answer, if somebody asked."""
    message, answers = came.message, []
    if isinstance(message, orders.Place):
        _place(story, came, message)
    elif isinstance(message, Deadline):
        _waited(story, rules)
    elif isinstance(message, Asked):
        refused = _asked(story, came, story.state, message)
        outcomes.settle(story)  # the answer tells what follows, too
        answers.append(Answer(came, story.state, refused))
    else:
        _told(story, came, message)
    outcomes.settle(story)
    return answers


def _told(story: Story, came: Came, message: Outcome | payments.Event | deliveries.Event) -> None:
    """Somebody who was asked for a step says what is true by now."""
    order, name = story.state, type(message).__name__
    if order is None:
        if isinstance(message, payments.Event | deliveries.Event):
            raise Stray(f"{name} about the order {came.order_id}, which is not there")
        return  # inventory tells of reservations too
    if came.user_id != order.user_id:
        raise Stray(f"{name} of {came.user_id} about the order {came.order_id} of {order.user_id}")
    if isinstance(message, payments.Event):
        outcomes.paid(story, order, message)
    elif isinstance(message, deliveries.Event):
        outcomes.delivered(story, order, message)
    else:
        outcomes.decided(story, order, message)


def _waited(story: Story, rules: Rules) -> None:
    """The order's time has come: a payment that nobody knows about is given up, which begins with its void."""
    order = story.state
    if order is not None and is_unpaid(order) and story.now - order.since >= rules.payment_patience:
        story.tell(orders.Cancelling, reason="payment_unavailable")


def is_unpaid(order: Order) -> bool:
    """Whether its payment is what it waits for."""
    return order.status == "committed" and order.reason is None


def _place(story: Story, came: Came, place: orders.Place) -> None:
    if is_forged(came):
        raise Stray(f"the order {came.order_id} is not that of the request {came.request_id} of {came.user_id}")
    if story.state is None:
        story.tell(
            orders.Placed,
            "placed",
            order_id=came.order_id,
            user_id=came.user_id,
            request_id=came.request_id,
            cart_version=place.version,
            items=place.items,
            expect=place.expect.total if place.expect else None,
        )


# ---- what a person asks ---------------------------------------------------------------------------------------------


def _asked(story: Story, came: Came, order: Order | None, asked: Asked) -> RefusedBecause | None:
    """Do it, or say why not."""
    if order is None or order.user_id != came.user_id:
        return "unknown_order"  # also what is another's
    match asked:
        case orders.Cancel():
            if order.reason is not None:
                return None
            if order.status in {"shipped", "delivered"}:
                return "not_cancellable"
            story.tell(orders.Cancelling, reason="cancelled")
            return None
        case orders.Pay():  # the steps that are owed are sent again in any case
            return "already_paid" if order.captured is not None else None
        case orders.Refund(amount=amount):
            return _refund(story, came, order, amount)


def _refund(story: Story, came: Came, order: Order, amount: Money | None) -> RefusedBecause | None:
    refund_id = derived(order.order_id, came.request_id, "refund")
    if any(refund.refund_id == refund_id for refund in order.refunds):
        return None
    if order.captured is None:
        return "not_paid"
    if order.reason is not None or order.left <= 0:  # what is cancelled is given back by itself
        return "already_refunded"
    wanted = amount or order.captured.model_copy(update={"amount": order.left})
    if wanted.amount > order.left or wanted.currency != order.captured.currency:
        return "refund_too_large"
    story.tell(orders.RefundAsked, refund_id=refund_id, amount=wanted)
    return None
