"""JSON bodies of orders and of their events, payments and parcels."""

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import AwareDatetime, BaseModel

from contracts.envelope import rfc3339
from contracts.inventory import Identifier, Money
from contracts.orders import CancelReason, Status
from rest_api.http.dependencies import AppState
from rest_api.protocol.server_frames import CartLine
from rest_api.read_models.orders.fold import OrderView
from rest_api.read_models.store import Row


class OrderBody(BaseModel):
    """An order. Lines and total are empty until its stock is held; `reason` says why it was cancelled."""

    order_id: Identifier
    user_id: Identifier
    status: Status
    order_version: int
    reason: CancelReason | None = None
    lines: list[CartLine]
    total: Money | None
    refunded: Money | None = None
    created_at: AwareDatetime
    updated_at: AwareDatetime


class OrderList(BaseModel):
    """A page of orders, newest first; `after` is the cursor of the next page, null on the last."""

    items: list[OrderBody]
    after: str | None


class OrderEventBody(BaseModel):
    """An event of an order. Further fields depend on its type."""

    version: int
    type: str
    status: Status
    at: AwareDatetime


class OrderEventList(BaseModel):
    """A page of an order's events, oldest first."""

    items: list[OrderEventBody]
    after: str | None


class PaymentBody(BaseModel):
    """The result of a payment operation. `unknown` is not final: another result follows."""

    type: Literal["captured", "declined", "voided", "refunded", "unknown"]
    at: AwareDatetime
    payment_id: Identifier
    amount: Money | None = None
    refund_id: Identifier | None = None
    reason: str | None = None


class PaymentList(BaseModel):
    """A page of the results of an order's payment operations, oldest first."""

    items: list[PaymentBody]
    after: str | None


class ShipmentStep(BaseModel):
    """A status of a parcel, and the time it was reached."""

    status: str
    at: AwareDatetime


class ShipmentBody(BaseModel):
    """The parcel of an order, with its history."""

    shipment_id: Identifier
    status: Literal["booked", "shipped", "delivered", "failed", "called-off"]
    carrier: str | None
    tracking: str | None
    reason: str | None = None
    history: list[ShipmentStep]


class Accepted(BaseModel):
    """The order is accepted; its state can be read at `Location`."""

    order_id: Identifier


class AcceptedRequest(Accepted):
    """The request is accepted; its effect can be seen in the order at `Location`."""

    request_id: Identifier


async def order_body(edge: AppState, view: OrderView) -> dict[str, Any]:
    """Return the body of one order."""
    return (await order_bodies(edge, [view]))[0]


async def order_bodies(edge: AppState, views: Sequence[OrderView]) -> list[dict[str, Any]]:
    """Return the bodies of orders, with product names from the catalogue."""
    names = await edge.catalogue.product_names({line.product for view in views for line in view.lines})
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
    """Return the body of an order's event: (version, type, time, data)."""
    version, kind, at, data = row
    fields = {name: value for name, value in data.items() if name not in {"order_id", "user_id", "version", "status"}}
    return {
        "version": version,
        "type": kind.rpartition(".")[2],
        "status": data["status"],
        "at": rfc3339(at),
        **fields,
    }


def payment_body(row: Row) -> dict[str, Any]:
    """Return the body of a payment event: (event id, type, time, data)."""
    _, kind, at, data = row
    fields = {name: data[name] for name in ("payment_id", "amount", "refund_id", "reason") if name in data}
    return {"type": kind, "at": rfc3339(at), **fields}
