"""What an order looks like from outside: a fold over its events, in the order of their versions. Pure.

The read model keeps the events and folds an order anew whenever one comes. So it is the same however often and in
whatever order they came, and the same when it is made again from the topic.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final

from inventory_service.messages import Line, Money
from order_service import messages as orders


@dataclass(frozen=True, slots=True)
class OrderView:
    """An order as it is at `version`; 0 when nothing is known but that it was asked for."""

    order_id: str
    user_id: str
    version: int
    status: str
    reason: str | None
    lines: tuple[Line, ...]
    total: Money | None
    refunded: Money | None
    created_at: datetime
    updated_at: datetime


def fold(events: Iterable[tuple[orders.Event, datetime]]) -> OrderView | None:
    """The order that some events (each with its time) tell of; None for no events."""
    view: OrderView | None = None
    for event, at in events:
        if view is None:
            view = OrderView(event.order_id, event.user_id, 0, "placed", None, (), None, None, at, at)
        view = replace(view, version=event.version, status=event.status, updated_at=at)
        match event:
            case orders.Committed():
                view = replace(view, lines=event.lines, total=event.total)
            case orders.Refunded():
                view = replace(view, refunded=event.refunded)
            case orders.Cancelled():
                view = replace(view, reason=event.reason, refunded=event.refunded or view.refunded)
    return view


_STAGES: Final = ("booked", "shipped", "delivered", "failed", "called-off")
"""Of a parcel, the later the higher: what its record says is the highest, in whatever order they came."""


def shipment(steps: Iterable[tuple[str, datetime, dict[str, Any]]]) -> dict[str, Any] | None:
    """A parcel as its steps (type, time, data) tell of it, with its history; None when there is none."""
    known = sorted(
        ((_STAGES.index(kind), at, data) for kind, at, data in steps if kind in _STAGES), key=lambda step: step[:2]
    )
    if not known:
        return None
    told: dict[str, Any] = {}
    for _, _, data in known:
        told |= {name: data[name] for name in ("shipment_id", "carrier", "tracking", "reason") if name in data}
    return {
        "shipment_id": told["shipment_id"],
        "status": _STAGES[known[-1][0]],
        "carrier": told.get("carrier"),
        "tracking": told.get("tracking"),
        "reason": told.get("reason"),
        "history": [(_STAGES[stage], at) for stage, at, _ in known],
    }
