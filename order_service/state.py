"""The state of an order: the fold of its events. `evolve` applies one event, `fold` applies them all.

No decision is made here. The next commands and the effect of a message are computed from this state alone. Therefore
the state records requested steps as well as confirmed ones: a charge that may have been requested must be undone like
one that was made.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Final, Literal

from contracts.ids import derive_id
from contracts.inventory import Line, Money
from contracts.orders import (
    Booked,
    Cancelled,
    Cancelling,
    CancelReason,
    Captured,
    Committed,
    Confirmed,
    Delivered,
    Event,
    Items,
    Placed,
    RefundAsked,
    Refunded,
    Shipped,
    Status,
    Undone,
)

SagaStep = Literal["delivery", "sale", "payment", "holds"]
COMPENSATION_ORDER: Final[tuple[SagaStep, ...]] = ("delivery", "sale", "payment", "holds")
"""The order of compensation: the last step is undone first."""


class BrokenStream(Exception):
    """The events of an order have a gap or a duplicate: one was lost or written twice."""


class UnexpectedMessage(Exception):
    """An impossible message: for an unknown order, of another shopper, or about a payment that was never requested.

    The message must be dead-lettered, so that an operator sees it.
    """


@dataclass(frozen=True, slots=True)
class RefundState:
    """The state of one refund."""

    refund_id: str
    """The provider's idempotency key of the refund."""
    amount: Money
    """The requested amount."""
    confirmed_amount: Money | None = None
    """The refunded amount, `None` until the provider confirms the refund."""


@dataclass(frozen=True, slots=True)
class Order:
    """The state of an order after its event number `version`."""

    order_id: str
    """The id of the order, derived from `user_id` and `request_id`."""
    user_id: str
    """The shopper who placed the order."""
    request_id: str
    """The id of the checkout request that placed the order."""
    placed_at: datetime
    """The time of the first event."""
    changed_at: datetime
    """The time of the last event."""
    version: int
    """The number of the last event."""
    status: Status
    """The status after the last event."""
    cart_version: int | None = None
    """The version of the cart to check out, `None` for an order of `items`."""
    items: Items | None = None
    """The requested items, `None` for an order of a cart."""
    expect: Money | None = None
    """The total that the shopper saw, `None` if the request named none."""
    lines: tuple[Line, ...] = ()
    """The lines with their prices, empty until the stock is held for the order."""
    total: Money | None = None
    """The sum of `lines`, `None` until the stock is held for the order."""
    captured: Money | None = None
    """The amount that the provider captured, `None` until then."""
    sale_requested: bool = False
    """True once inventory may have been asked to sell the held stock."""
    sold: bool = False
    """True once inventory has confirmed the sale."""
    booking_requested: bool = False
    """True once the carrier may have been asked to book the parcel."""
    booked: bool = False
    """True once the carrier has confirmed the booking."""
    reason: CancelReason | None = None
    """The reason of the cancellation, reset if the parcel turns out to have left already."""
    undone_steps: tuple[SagaStep, ...] = ()
    """The steps that have been undone, in the order of their events."""
    refunds: tuple[RefundState, ...] = ()
    """The refunds of the order, confirmed or not, in the order of their requests."""

    @property
    def open_refunds(self) -> tuple[RefundState, ...]:
        """The refunds that the provider has not confirmed."""
        return tuple(refund for refund in self.refunds if refund.confirmed_amount is None)

    @property
    def refunded(self) -> int:
        """The sum of the confirmed refunds, in minor units."""
        return sum(refund.confirmed_amount.amount for refund in self.refunds if refund.confirmed_amount is not None)

    @property
    def refundable(self) -> int:
        """The captured amount less confirmed and open refunds, in minor units."""
        captured = self.captured.amount if self.captured is not None else 0
        return captured - self.refunded - sum(refund.amount.amount for refund in self.open_refunds)

    @property
    def is_cancelling(self) -> bool:
        """True while the steps of a cancelled order are being undone."""
        return self.reason is not None and self.status != "cancelled"

    @property
    def next_to_undo(self) -> SagaStep | None:
        """The step to undo next, `None` if there is none."""
        return next(
            (effect for effect in COMPENSATION_ORDER if self._was_started(effect) and not self._is_undone(effect)), None
        )

    def _was_started(self, effect: SagaStep) -> bool:
        match effect:
            case "delivery":
                return self.booking_requested
            case "sale":
                return self.sale_requested
            case "payment":
                return self.total is not None
            case "holds":
                return self.total is not None and not self.sold

    def _is_undone(self, effect: SagaStep) -> bool:
        # A provider may capture a payment that it had voided: the step stays open until that money is refunded.
        owing = effect == "payment" and (self.refundable > 0 or bool(self.open_refunds))
        return effect in self.undone_steps and not owing

    @property
    def is_complete(self) -> bool:
        """True if the order waits for no other service."""
        return self.status in {"delivered", "cancelled"} and not self.open_refunds and not self._late_capture

    @property
    def _late_capture(self) -> bool:
        return self.status == "cancelled" and self.refundable > 0


def evolve(state: Order | None, event: Event, at: datetime) -> Order:
    """Return the order after `event`, which happened at `at`. Raise `BrokenStream` if `event` is not the next one."""
    if state is None:
        if not isinstance(event, Placed) or event.version != 1:
            first = f"{event.TYPE}, version {event.version}"
            raise BrokenStream(f"order {event.order_id}: the first event is {first}; expected Placed, version 1")
        return Order(
            order_id=event.order_id,
            user_id=event.user_id,
            request_id=event.request_id,
            placed_at=at,
            changed_at=at,
            version=1,
            status=event.status,
            cart_version=event.cart_version,
            items=event.items,
            expect=event.expect,
        )
    if event.version != state.version + 1 or event.order_id != state.order_id:
        following = f"{event.order_id}/{event.version}"
        raise BrokenStream(f"order {state.order_id} is at version {state.version}; the next event is {following}")
    return _apply(replace(state, version=event.version, status=event.status, changed_at=at), event)


def _apply(state: Order, event: Event) -> Order:  # noqa: C901, PLR0911 - one per kind of event
    onward = state.reason is None
    match event:
        case Committed(lines=lines, total=total):
            return replace(state, lines=lines, total=total)
        case Captured(amount=amount):
            return replace(state, captured=amount, sale_requested=onward)
        case Confirmed():
            return replace(state, sold=True, booking_requested=onward)
        case Booked():
            return replace(state, booked=True)
        case Shipped() | Delivered():  # the parcel had left already: the cancellation came too late
            return replace(state, booked=True, reason=None)
        case Cancelling(reason=reason) | Cancelled(reason=reason):
            return replace(state, reason=reason)
        case Undone(step=effect):
            return replace(state, undone_steps=(*state.undone_steps, effect))
        case RefundAsked(refund_id=refund_id, amount=amount):
            return replace(state, refunds=(*state.refunds, RefundState(refund_id, amount)))
        case Refunded(refund_id=refund_id, amount=amount):
            given = (replace(r, confirmed_amount=amount) if r.refund_id == refund_id else r for r in state.refunds)
            return replace(state, refunds=tuple(given))
        case Placed():
            raise BrokenStream(f"order {state.order_id}: Placed at version {event.version}; expected at version 1 only")


def fold(events: Iterable[tuple[Event, datetime]]) -> Order | None:
    """Return the order after all of `events`, each given with its time; `None` if there are no events."""
    state: Order | None = None
    for event, at in events:
        state = evolve(state, event, at)
    return state


@dataclass(slots=True)
class EventRecorder:
    """A recorder of new events of one order. Each event is applied to `state` at once."""

    state: Order | None
    """The order after the recorded events, `None` before it is placed."""
    now: datetime
    """The time of the recorded events."""
    events: list[Event] = field(default_factory=list)
    """The recorded events, the oldest first."""

    def record(self, kind: type[Event], status: Status | None = None, **fields: Any) -> None:
        """Record an event with the given `fields`. Without `status` the order keeps its status."""
        order = self.state
        if order is not None:
            fields |= {"order_id": order.order_id, "user_id": order.user_id}
        fields["version"] = 1 if order is None else order.version + 1
        fields["status"] = status if order is None else status or order.status
        event = kind(**fields)
        self.events.append(event)
        self.state = evolve(self.state, event, self.now)


# ---- ids of commands to other services ---------------------------------------------------------------------------


def payment_id(order_id: str) -> str:
    """Return the provider's idempotency key for the one charge of an order."""
    return derive_id(order_id, "payment")


def shipment_id(order_id: str) -> str:
    """Return the carrier's key for the one parcel of an order."""
    return derive_id(order_id, "shipment")


def command_id(order_id: str, name: str) -> str:
    """Return the request id of the command named `step`, for example `sell`."""
    return f"{order_id}/{name}"
