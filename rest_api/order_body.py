"""An order, its events, payments and parcel as the REST routes show them."""

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import AwareDatetime, BaseModel

from infrastructure.envelope import rfc3339
from inventory_service.messages import Money, Printable
from order_service.messages import CancelReason, Status
from rest_api.edge import Edge
from rest_api.order_view import OrderView
from rest_api.server_frames import CartLine
from rest_api.store import Row


class OrderBody(BaseModel):
    """An order. It has no lines and no total before its stock is held for it; `reason` says why it was cancelled."""

    order_id: Printable
    user_id: Printable
    status: Status
    order_version: int
    reason: CancelReason | None = None
    lines: list[CartLine]
    total: Money | None
    refunded: Money | None = None
    created_at: AwareDatetime
    updated_at: AwareDatetime


class OrderList(BaseModel):
    """A page of orders, the newest first; `after` is the cursor of the next one, null on the last."""

    items: list[OrderBody]
    after: str | None


class OrderEventBody(BaseModel):
    """One step of an order. What else an event of its type tells stands beside these."""

    version: int
    type: str
    status: Status
    at: AwareDatetime


class OrderEventList(BaseModel):
    """A page of an order's events, the first first."""

    items: list[OrderEventBody]
    after: str | None


class PaymentBody(BaseModel):
    """What became of an attempt to move money: `unknown` is not the end of it."""

    type: Literal["captured", "declined", "voided", "refunded", "unknown"]
    at: AwareDatetime
    payment_id: Printable
    amount: Money | None = None
    refund_id: Printable | None = None
    reason: str | None = None


class PaymentList(BaseModel):
    """A page of what became of an order's payment, the first first."""

    items: list[PaymentBody]
    after: str | None


class ShipmentStep(BaseModel):
    """Where a parcel had come to, and when."""

    status: str
    at: AwareDatetime


class ShipmentBody(BaseModel):
    """The parcel of an order."""

    shipment_id: Printable
    status: Literal["booked", "shipped", "delivered", "failed", "called-off"]
    carrier: str | None
    tracking: str | None
    reason: str | None = None
    history: list[ShipmentStep]


class Accepted(BaseModel):
    """The order is accepted; how it goes is at `Location`."""

    order_id: Printable


class AcceptedRequest(Accepted):
    """The request is accepted; what comes of it is seen in the order, at `Location`."""

    request_id: Printable


async def body_of(edge: Edge, view: OrderView) -> dict[str, Any]:
    """One order."""
    return (await bodies_of(edge, [view]))[0]


async def bodies_of(edge: Edge, views: Sequence[OrderView]) -> list[dict[str, Any]]:
    """Orders, with the names that the catalogue has for their products."""
    names = await edge.projection.names({line.product for view in views for line in view.lines})
    return [
        {
            "order_id": view.order_id,
            "user_id": view.user_id,
            "status": view.status,
            "order_version": view.version,
            **({} if view.reason is None else {"reason": view.reason}),
            "lines": [
                {
                    "product": line.product,
                    "name": names.get(line.product, line.product),
                    "quantity": line.quantity,
                    "price": line.price.model_dump(),
                }
                for line in view.lines
            ],
            "total": None if view.total is None else view.total.model_dump(),
            **({} if view.refunded is None else {"refunded": view.refunded.model_dump()}),
            "created_at": rfc3339(view.created_at),
            "updated_at": rfc3339(view.updated_at),
        }
        for view in views
    ]


def event_body(row: Row) -> dict[str, Any]:
    """One event of an order: (version, type, time, data)."""
    version, kind, at, data = row
    told = {name: value for name, value in data.items() if name not in {"order_id", "user_id", "version", "status"}}
    return {
        "version": version,
        "type": kind.rpartition(".")[2],
        "status": data["status"],
        "at": rfc3339(at),
        **told,
    }


def payment_body(row: Row) -> dict[str, Any]:
    """One event of a payment: (event id, type, time, data)."""
    _, kind, at, data = row
    told = {name: data[name] for name in ("payment_id", "amount", "refund_id", "reason") if name in data}
    return {"type": kind, "at": rfc3339(at), **told}
