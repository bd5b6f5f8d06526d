"""The public view of an order: a fold over its events in version order. No I/O.

The read model stores the events and folds an order again whenever one arrives. The result therefore does not depend on
how often or in which order events arrive, and is the same after a rebuild from the topic.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final

from contracts import orders
from contracts.inventory import Line, Money


@dataclass(frozen=True, slots=True)
class OrderView:
    """The state of an order at `version`. Version 0: the order was requested, and no event has arrived yet."""

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


def fold_order(events: Iterable[tuple[orders.Event, datetime]]) -> OrderView | None:
    """Fold events and their times, in version order, into the order's state; return `None` if there are none."""
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


_PARCEL_STATUSES: Final = ("booked", "shipped", "delivered", "failed", "called-off")
"""Statuses of a parcel in ascending order. The highest one seen counts, in whatever order events arrive."""


def fold_shipment(steps: Iterable[tuple[str, datetime, dict[str, Any]]]) -> dict[str, Any] | None:
    """Fold delivery events (type, time, data) into a parcel with its history; return `None` if there is no parcel."""
    reached = sorted(
        ((_PARCEL_STATUSES.index(kind), at, data) for kind, at, data in steps if kind in _PARCEL_STATUSES),
        key=lambda step: step[:2],
    )
    if not reached:
        return None
    fields: dict[str, Any] = {}
    for _, _, data in reached:
        fields |= {name: data[name] for name in ("shipment_id", "carrier", "tracking", "reason") if name in data}
    return {
        "shipment_id": fields["shipment_id"],
        "status": _PARCEL_STATUSES[reached[-1][0]],
        "carrier": fields.get("carrier"),
        "tracking": fields.get("tracking"),
        "reason": fields.get("reason"),
        "history": [(_PARCEL_STATUSES[rank], at) for rank, at, _ in reached],
    }
