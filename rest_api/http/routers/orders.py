"""Routes of orders: commands are sent like checkout frames, reads come from the edge's own read model.

A shopper sees only their own orders; for all others the response is 404, so it does not reveal that they exist. Support
sees all orders.
"""

import hashlib
from typing import Annotated, Any, Final

import orjson
from fastapi import APIRouter, Path, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from contracts import orders
from contracts.envelope import rfc3339
from contracts.inventory import Identifier, Money
from infrastructure.security.tokens import Identity
from rest_api.http import pagination
from rest_api.http.commands.orders import OrderCommand, PlaceOrder
from rest_api.http.dependencies import SECURITY_DEPENDENCIES, STAFF_ROLES, AppState, AppStateDep, CurrentUser, StaffUser
from rest_api.http.idempotency import execute
from rest_api.http.routers.cart import IdempotencyKey, PreferHeader
from rest_api.http.schemas.orders import (
    Accepted,
    AcceptedRequest,
    OrderBody,
    OrderEventList,
    OrderList,
    PaymentList,
    ShipmentBody,
    event_body,
    order_bodies,
    order_body,
    payment_body,
)
from rest_api.kafka.gateway import RETRY_AFTER
from rest_api.protocol.client_frames import MAX_AMOUNT, Payment, Wanted
from rest_api.protocol.problems import Problem
from rest_api.read_models.orders.fold import OrderView, fold_shipment
from rest_api.read_models.store import UNAVAILABLE_ERRORS

router = APIRouter(prefix="/v1/orders", tags=["orders"], dependencies=SECURITY_DEPENDENCIES)

MAX_SHIPMENT_EVENTS: Final = 1000
"""Upper bound of the events of one parcel; there are at most five kinds."""
OrderId = Annotated[Identifier, Path()]
Limit = Annotated[int, Query(ge=1, le=100)]
After = Annotated[str | None, Query(max_length=1000)]


class NewOrder(Wanted):
    """A new order: of the cart at `version`, or of `items` without a cart."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Given(Money):
    """An amount to refund."""

    model_config = ConfigDict(extra="forbid")

    amount: Annotated[int, Field(ge=1, le=MAX_AMOUNT)]


class GiveBack(BaseModel):
    """A refund request. Without an amount, everything not yet refunded is refunded."""

    model_config = ConfigDict(extra="forbid", strict=True)

    amount: Given | None = None


_PLACE_RESPONSES: Final[dict[int | str, dict[str, Any]]] = {
    200: {"model": OrderBody, "description": "the order, whose stock is held (with `Prefer: wait`)"},
    202: {"model": Accepted, "description": "accepted; the order can be read at `Location`"},
}
_COMMAND_RESPONSES: Final[dict[int | str, dict[str, Any]]] = {
    200: {"model": OrderBody, "description": "the order; the request will be carried out (with `Prefer: wait`)"},
    202: {"model": AcceptedRequest, "description": "accepted; its effect can be seen at `Location`"},
}


def check_payment_token(edge: AppState, payment: Payment, pointer: str) -> None:
    """Raise `Problem` if the payment token is unknown; `pointer` is the token's place in the body."""
    if not edge.connections.user_limits.accepts_token(payment.token):
        raise Problem("unknown-payment-token", errors=[{"pointer": pointer, "detail": "unknown payment token"}])


async def _visible_order(edge: AppState, user: Identity, order_id: str) -> OrderView:
    """Return the order if the user may see it; else raise the same `Problem` whether or not it exists."""
    try:
        view = await edge.order_queries.order(order_id)
    except UNAVAILABLE_ERRORS:
        raise _unavailable() from None
    if view is None or (view.user_id != user.user_id and user.roles.isdisjoint(STAFF_ROLES)):
        raise Problem("not-found")
    return view


def _unavailable() -> Problem:
    return Problem("unavailable", "orders cannot be read right now", retry_after=RETRY_AFTER)


# ---- reading --------------------------------------------------------------------------------------------------------


@router.get("", response_model=OrderList)
async def list_orders(
    edge: AppStateDep, user: CurrentUser, request: Request, limit: Limit = 50, after: After = None
) -> Response:
    """List the caller's orders, newest first; for support, all orders."""
    match [] if after is None else pagination.decode(after):
        case []:
            cursor = None
        case [int(at), str(order_id)]:
            cursor = pagination.from_microseconds(at), order_id
        case _:
            raise Problem("bad-cursor")
    owner = user.user_id if user.roles.isdisjoint(STAFF_ROLES) else None
    try:
        found = await edge.order_queries.orders(owner, limit=limit + 1, after=cursor)
    except UNAVAILABLE_ERRORS:
        raise _unavailable() from None
    listed = found[:limit]
    next_cursor = (
        pagination.encode(pagination.to_microseconds(listed[-1].created_at), listed[-1].order_id)
        if len(found) > limit
        else None
    )
    return pagination.page_response(await order_bodies(edge, listed), next_cursor, request)


@router.get("/{order_id:segment}", response_model=OrderBody)
async def show(edge: AppStateDep, user: CurrentUser, order_id: OrderId) -> Response:
    """Return an order, with an `ETag`."""
    view = await _visible_order(edge, user, order_id)
    body = orjson.dumps(await order_body(edge, view))
    etag = f'"{view.version}-{hashlib.blake2b(body, digest_size=6).hexdigest()}"'
    return Response(body, headers={"ETag": etag}, media_type="application/json")


@router.get("/{order_id:segment}/events", response_model=OrderEventList)
async def list_events(
    edge: AppStateDep, user: CurrentUser, request: Request, order_id: OrderId, limit: Limit = 50, after: After = None
) -> Response:
    """List the events of an order, oldest first."""
    await _visible_order(edge, user, order_id)
    match [0] if after is None else pagination.decode(after):
        case [int(version)]:
            pass
        case _:
            raise Problem("bad-cursor")
    try:
        rows = await edge.order_queries.events(order_id, limit=limit + 1, after=version)
    except UNAVAILABLE_ERRORS:
        raise _unavailable() from None
    next_cursor = pagination.encode(rows[limit - 1][0]) if len(rows) > limit else None
    return pagination.page_response([event_body(row) for row in rows[:limit]], next_cursor, request)


@router.get("/{order_id:segment}/payments", response_model=PaymentList)
async def list_payments(
    edge: AppStateDep, user: CurrentUser, request: Request, order_id: OrderId, limit: Limit = 50, after: After = None
) -> Response:
    """List the results of an order's payment and of its refunds, oldest first."""
    await _visible_order(edge, user, order_id)
    match [0, ""] if after is None else pagination.decode(after):
        case [int(at), str(event_id)]:
            cursor = pagination.from_microseconds(at), event_id
        case _:
            raise Problem("bad-cursor")
    try:
        rows = await edge.order_queries.steps(order_id, "payment", limit=limit + 1, after=cursor)
    except UNAVAILABLE_ERRORS:
        raise _unavailable() from None
    next_cursor = (
        pagination.encode(pagination.to_microseconds(rows[limit - 1][2]), rows[limit - 1][0])
        if len(rows) > limit
        else None
    )
    return pagination.page_response([payment_body(row) for row in rows[:limit]], next_cursor, request)


@router.get("/{order_id:segment}/shipment", response_model=ShipmentBody)
async def show_shipment(edge: AppStateDep, user: CurrentUser, order_id: OrderId) -> Response:
    """Return an order's parcel and its history; 404 before it is booked."""
    await _visible_order(edge, user, order_id)
    try:
        rows = await edge.order_queries.steps(
            order_id, "delivery", limit=MAX_SHIPMENT_EVENTS, after=(pagination.UNIX_EPOCH, "")
        )
    except UNAVAILABLE_ERRORS:
        raise _unavailable() from None
    found = fold_shipment((kind, at, data) for _, kind, at, data in rows)
    if found is None:
        raise Problem("not-found", "the order has no parcel yet")
    history = [{"status": status, "at": rfc3339(at)} for status, at in found["history"]]
    return Response(orjson.dumps({**found, "history": history}), media_type="application/json")


# ---- commands -------------------------------------------------------------------------------------------------------


@router.post("", status_code=202, responses=_PLACE_RESPONSES, response_model=None)
async def place(
    edge: AppStateDep,
    user: CurrentUser,
    order: NewOrder,
    prefer: PreferHeader = None,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Place an order. It can be read at once."""
    check_payment_token(edge, order.payment, "/payment/token")
    return await execute(edge, user.user_id, PlaceOrder(user.user_id, order), key=idempotency_key, prefer=prefer)


@router.post("/{order_id:segment}/cancel", status_code=202, responses=_COMMAND_RESPONSES, response_model=None)
async def cancel(
    edge: AppStateDep,
    user: CurrentUser,
    order_id: OrderId,
    prefer: PreferHeader = None,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Cancel an order; possible until it is shipped. A captured payment is refunded."""
    view = await _visible_order(edge, user, order_id)
    command = OrderCommand(user.user_id, view, orders.Cancel(order_id=order_id, user_id=view.user_id))
    return await execute(edge, user.user_id, command, key=idempotency_key, prefer=prefer)


@router.post("/{order_id:segment}/refunds", status_code=202, responses=_COMMAND_RESPONSES, response_model=None)
async def refund(
    edge: AppStateDep,
    user: StaffUser,
    order_id: OrderId,
    wanted: GiveBack | None = None,
    prefer: PreferHeader = None,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Refund an amount, or everything not yet refunded. For support."""
    view = await _visible_order(edge, user, order_id)
    amount = None if wanted is None or wanted.amount is None else Money(**wanted.amount.model_dump())
    command = OrderCommand(user.user_id, view, orders.Refund(order_id=order_id, user_id=view.user_id, amount=amount))
    return await execute(edge, user.user_id, command, key=idempotency_key, prefer=prefer)


@router.post("/{order_id:segment}/payments", status_code=202, responses=_COMMAND_RESPONSES, response_model=None)
async def pay(
    edge: AppStateDep,
    user: CurrentUser,
    order_id: OrderId,
    payment: Payment,
    prefer: PreferHeader = None,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Retry a payment that is still open, at once, with the order's own payment token."""
    check_payment_token(edge, payment, "/token")
    view = await _visible_order(edge, user, order_id)
    command = OrderCommand(user.user_id, view, orders.Pay(order_id=order_id, user_id=view.user_id))
    return await execute(edge, user.user_id, command, key=idempotency_key, prefer=prefer)
