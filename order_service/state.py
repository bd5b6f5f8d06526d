"""What an order is: the fold of its events. `evolve` takes one in; whoever folds them all has the order.

Nothing is decided here. What an order owes next, and what an input does to it, is computed from this state alone, so it
holds what was begun as well as what is known: a charge that may have been asked for must be undone like one that was.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Final, Literal

from infrastructure.ids import derived
from inventory_service.messages import Line, Money
from order_service.messages import (
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

Effect = Literal["delivery", "sale", "payment", "holds"]
UNDOING: Final[tuple[Effect, ...]] = ("delivery", "sale", "payment", "holds")
"""Compensation goes backwards: what was done last is undone first."""


class BrokenStream(Exception):
    """The events of an order do not follow one another: something is lost, or was written twice."""


class Stray(Exception):
    """A message that cannot be true: of an order that is not there, of another shopper, of a payment nobody asked for.

    It belongs to the dead letters, where somebody looks at it.
    """


@dataclass(frozen=True, slots=True)
class GivingBack:
    """Money on its way back to the shopper; `given` is none until the provider says that it was."""

    refund_id: str
    amount: Money
    given: Money | None = None


@dataclass(frozen=True, slots=True)
class Order:
    """An order at `version`. `reason` is set as long as it is being, or when it is, cancelled."""

    order_id: str
    user_id: str
    request_id: str
    placed_at: datetime
    since: datetime
    """When the last event came true."""
    version: int
    status: Status
    cart_version: int | None = None
    items: Items | None = None
    expect: Money | None = None
    lines: tuple[Line, ...] = ()
    total: Money | None = None
    """None until its stock is held for it."""
    captured: Money | None = None
    selling: bool = False
    """Inventory may have been asked to sell,"""
    sold: bool = False
    """and has."""
    booking: bool = False
    """A carrier may have been asked for,"""
    booked: bool = False
    """and will come."""
    reason: CancelReason | None = None
    undone: tuple[Effect, ...] = ()
    refunds: tuple[GivingBack, ...] = ()

    @property
    def open_refunds(self) -> tuple[GivingBack, ...]:
        """Those that the provider has not confirmed."""
        return tuple(refund for refund in self.refunds if refund.given is None)

    @property
    def refunded(self) -> int:
        """Minor units that were given back."""
        return sum(refund.given.amount for refund in self.refunds if refund.given is not None)

    @property
    def left(self) -> int:
        """Minor units that were captured, not given back, and are not on their way."""
        captured = self.captured.amount if self.captured is not None else 0
        return captured - self.refunded - sum(refund.amount.amount for refund in self.open_refunds)

    @property
    def cancelling(self) -> bool:
        """Whether it is being undone."""
        return self.reason is not None and self.status != "cancelled"

    @property
    def to_undo(self) -> Effect | None:
        """What is to be undone next; none when nothing is, or when all is."""
        return next((effect for effect in UNDOING if self._was_begun(effect) and not self._is_undone(effect)), None)

    def _was_begun(self, effect: Effect) -> bool:
        match effect:
            case "delivery":
                return self.booking
            case "sale":
                return self.selling
            case "payment":
                return self.total is not None
            case "holds":
                return self.total is not None and not self.sold

    def _is_undone(self, effect: Effect) -> bool:
        # A provider that captures what it had voided is not believed until the money is back.
        owing = effect == "payment" and (self.left > 0 or bool(self.open_refunds))
        return effect in self.undone and not owing

    @property
    def at_rest(self) -> bool:
        """Whether nobody is waited for any more."""
        return self.status in {"delivered", "cancelled"} and not self.open_refunds and not self._late_capture

    @property
    def _late_capture(self) -> bool:
        return self.status == "cancelled" and self.left > 0


def evolve(state: Order | None, event: Event, at: datetime) -> Order:
    """The order after `event`, which came true `at`; raises `BrokenStream` when it is not the next one."""
    if state is None:
        if not isinstance(event, Placed) or event.version != 1:
            raise BrokenStream(f"order {event.order_id} begins with {event.TYPE}, version {event.version}")
        return Order(
            order_id=event.order_id,
            user_id=event.user_id,
            request_id=event.request_id,
            placed_at=at,
            since=at,
            version=1,
            status=event.status,
            cart_version=event.cart_version,
            items=event.items,
            expect=event.expect,
        )
    if event.version != state.version + 1 or event.order_id != state.order_id:
        raise BrokenStream(f"order {state.order_id} is at {state.version}; {event.order_id}/{event.version} came")
    return _changed(replace(state, version=event.version, status=event.status, since=at), event)


def _changed(state: Order, event: Event) -> Order:  # noqa: C901, PLR0911 - one per kind of event
    onward = state.reason is None
    match event:
        case Committed(lines=lines, total=total):
            return replace(state, lines=lines, total=total)
        case Captured(amount=amount):
            return replace(state, captured=amount, selling=onward)
        case Confirmed():
            return replace(state, sold=True, booking=onward)
        case Booked():
            return replace(state, booked=True)
        case Shipped() | Delivered():  # it was gone already: a cancellation came too late
            return replace(state, booked=True, reason=None)
        case Cancelling(reason=reason) | Cancelled(reason=reason):
            return replace(state, reason=reason)
        case Undone(step=effect):
            return replace(state, undone=(*state.undone, effect))
        case RefundAsked(refund_id=refund_id, amount=amount):
            return replace(state, refunds=(*state.refunds, GivingBack(refund_id, amount)))
        case Refunded(refund_id=refund_id, amount=amount):
            given = (replace(r, given=amount) if r.refund_id == refund_id else r for r in state.refunds)
            return replace(state, refunds=tuple(given))
        case Placed():
            raise BrokenStream(f"order {state.order_id} is placed a second time")


def fold(events: Iterable[tuple[Event, datetime]]) -> Order | None:
    """The order that these events, each with its time, come to; none when there are none."""
    state: Order | None = None
    for event, at in events:
        state = evolve(state, event, at)
    return state


@dataclass(slots=True)
class Story:
    """An order while it is told further: each event is taken in at once."""

    state: Order | None
    now: datetime
    events: list[Event] = field(default_factory=list)

    def tell(self, kind: type[Event], status: Status | None = None, **fields: Any) -> None:
        """One more event, with the status after it: as it was, unless it is said."""
        order = self.state
        if order is not None:
            fields |= {"order_id": order.order_id, "user_id": order.user_id}
        fields["version"] = 1 if order is None else order.version + 1
        fields["status"] = status if order is None else status or order.status
        event = kind(**fields)
        self.events.append(event)
        self.state = evolve(self.state, event, self.now)


# ---- ids of what is asked of others -----------------------------------------------------------------------------


def payment_id(order_id: str) -> str:
    """The provider's key for the one charge of an order."""
    return derived(order_id, "payment")


def shipment_id(order_id: str) -> str:
    """The carrier's key for its one parcel."""
    return derived(order_id, "shipment")


def step_id(order_id: str, step: str) -> str:
    """The request id of a step that inventory is asked for."""
    return f"{order_id}/{step}"
