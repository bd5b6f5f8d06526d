"""Orders over HTTP: placed as a checkout frame places them, and read from the edge's own read model.

A shopper sees their own orders, and of others' not even that they are there; support sees all.
"""

import hashlib
from typing import Annotated, Any, Final

import orjson
from fastapi import APIRouter, Path, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from infrastructure.envelope import rfc3339
from infrastructure.tokens import Identity
from inventory_service.messages import Money, Printable
from order_service import messages as orders
from order_service.messages import Payment
from rest_api import cursors
from rest_api.changes import perform
from rest_api.edge import SECURED, STAFF, Edge, Here, Known, Staff
from rest_api.gateway import RETRY_AFTER
from rest_api.messages import MAX_AMOUNT, Wanted
from rest_api.order_body import (
    Accepted,
    AcceptedRequest,
    OrderBody,
    OrderEventList,
    OrderList,
    PaymentList,
    ShipmentBody,
    bodies_of,
    body_of,
    event_body,
    payment_body,
)
from rest_api.order_requests import Acting, Placing
from rest_api.order_view import OrderView, shipment
from rest_api.problems import Problem
from rest_api.routes_cart import Key, Prefer
from rest_api.store import AWAY

router = APIRouter(prefix="/v1/orders", tags=["orders"], dependencies=SECURED)

MOST_STEPS: Final = 1000
"""Of one parcel; there are five."""
OrderId = Annotated[Printable, Path()]
Limit = Annotated[int, Query(ge=1, le=100)]
After = Annotated[str | None, Query(max_length=1000)]


class NewOrder(Wanted):
    """An order: of the cart at `version`, or of `items` without a cart."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Given(Money):
    """Money that is given back."""

    amount: Annotated[int, Field(ge=1, le=MAX_AMOUNT)]


class GiveBack(BaseModel):
    """How much is to be given back; without an amount, all that is left."""

    model_config = ConfigDict(extra="forbid", strict=True)

    amount: Given | None = None


_PLACED: Final[dict[int | str, dict[str, Any]]] = {
    200: {"model": OrderBody, "description": "its stock is held for it (with `Prefer: wait`)"},
    202: {"model": Accepted, "description": "accepted; it can be read at `Location`"},
}
_ASKED: Final[dict[int | str, dict[str, Any]]] = {
    200: {"model": OrderBody, "description": "it will be done (with `Prefer: wait`)"},
    202: {"model": AcceptedRequest, "description": "accepted; what comes of it is seen at `Location`"},
}


def check_token(edge: Edge, payment: Payment, pointer: str) -> None:
    """`Problem` for a token that can't stand for a means of payment here; `pointer` is its place in the body."""
    if not edge.hub.rules.knows(payment.token):
        raise Problem("unknown-payment-token", errors=[{"pointer": pointer, "detail": "no such means of payment"}])


async def _seen(edge: Edge, known: Identity, order_id: str) -> OrderView:
    """An order that this visitor may see; else `Problem`, which is the same whether it is there or not."""
    try:
        view = await edge.orders.order(order_id)
    except AWAY:
        raise _away() from None
    if view is None or (view.user_id != known.user_id and known.roles.isdisjoint(STAFF)):
        raise Problem("not-found")
    return view


def _away() -> Problem:
    return Problem("unavailable", "orders can't be read now", retry_after=RETRY_AFTER)


# ---- reading --------------------------------------------------------------------------------------------------------


@router.get("", response_model=OrderList)
async def list_orders(edge: Here, known: Known, request: Request, limit: Limit = 50, after: After = None) -> Response:
    """My orders, the newest first; everybody's for support."""
    match [] if after is None else cursors.opened(after):
        case []:
            cursor = None
        case [int(at), str(order_id)]:
            cursor = cursors.at_instant(at), order_id
        case _:
            raise Problem("bad-cursor")
    whose = known.user_id if known.roles.isdisjoint(STAFF) else None
    try:
        found = await edge.orders.orders(whose, limit=limit + 1, after=cursor)
    except AWAY:
        raise _away() from None
    shown = found[:limit]
    more = cursors.sealed(cursors.instant(shown[-1].created_at), shown[-1].order_id) if len(found) > limit else None
    return cursors.page(await bodies_of(edge, shown), more, request)


@router.get("/{order_id}", response_model=OrderBody)
async def show(edge: Here, known: Known, request: Request, order_id: OrderId) -> Response:
    """One order, with an `ETag`."""
    view = await _seen(edge, known, order_id)
    body = orjson.dumps(await body_of(edge, view))
    etag = f'"{view.version}-{hashlib.blake2b(body, digest_size=6).hexdigest()}"'
    if request.headers.get("if-none-match") == etag:
        return Response(status_code=304, headers={"ETag": etag})
    return Response(body, headers={"ETag": etag}, media_type="application/json")


@router.get("/{order_id}/events", response_model=OrderEventList)
async def list_events(
    edge: Here, known: Known, request: Request, order_id: OrderId, limit: Limit = 50, after: After = None
) -> Response:
    """How an order came to be what it is."""
    await _seen(edge, known, order_id)
    match [0] if after is None else cursors.opened(after):
        case [int(version)]:
            pass
        case _:
            raise Problem("bad-cursor")
    try:
        rows = await edge.orders.events(order_id, limit=limit + 1, after=version)
    except AWAY:
        raise _away() from None
    more = cursors.sealed(rows[limit - 1][0]) if len(rows) > limit else None
    return cursors.page([event_body(row) for row in rows[:limit]], more, request)


@router.get("/{order_id}/payments", response_model=PaymentList)
async def list_payments(
    edge: Here, known: Known, request: Request, order_id: OrderId, limit: Limit = 50, after: After = None
) -> Response:
    """What became of an order's payment, and of what was given back."""
    await _seen(edge, known, order_id)
    match [0, ""] if after is None else cursors.opened(after):
        case [int(at), str(event_id)]:
            cursor = cursors.at_instant(at), event_id
        case _:
            raise Problem("bad-cursor")
    try:
        rows = await edge.orders.steps(order_id, "payment", limit=limit + 1, after=cursor)
    except AWAY:
        raise _away() from None
    more = cursors.sealed(cursors.instant(rows[limit - 1][2]), rows[limit - 1][0]) if len(rows) > limit else None
    return cursors.page([payment_body(row) for row in rows[:limit]], more, request)


@router.get("/{order_id}/shipment", response_model=ShipmentBody)
async def show_shipment(edge: Here, known: Known, order_id: OrderId) -> Response:
    """Where an order's parcel is; 404 before there is one."""
    await _seen(edge, known, order_id)
    try:
        rows = await edge.orders.steps(order_id, "delivery", limit=MOST_STEPS, after=(cursors.EPOCH, ""))
    except AWAY:
        raise _away() from None
    found = shipment((kind, at, data) for _, kind, at, data in rows)
    if found is None:
        raise Problem("not-found", "there is no parcel yet")
    history = [{"status": status, "at": rfc3339(at)} for status, at in found["history"]]
    return Response(orjson.dumps({**found, "history": history}), media_type="application/json")


# ---- asking ---------------------------------------------------------------------------------------------------------


@router.post("", status_code=202, responses=_PLACED, response_model=None)
async def place(
    edge: Here, known: Known, wanted: NewOrder, prefer: Prefer = None, idempotency_key: Key = None
) -> Response:
    """Make an order; it can be read at once."""
    check_token(edge, wanted.payment, "/payment/token")
    return await perform(edge, known.user_id, Placing(known.user_id, wanted), key=idempotency_key, prefer=prefer)


@router.post("/{order_id}/cancel", status_code=202, responses=_ASKED, response_model=None)
async def cancel(
    edge: Here, known: Known, order_id: OrderId, prefer: Prefer = None, idempotency_key: Key = None
) -> Response:
    """Want an order no more; possible until it is shipped. What was paid is given back."""
    view = await _seen(edge, known, order_id)
    asked = Acting(known.user_id, view, orders.Cancel(order_id=order_id, user_id=view.user_id))
    return await perform(edge, known.user_id, asked, key=idempotency_key, prefer=prefer)


@router.post("/{order_id}/refunds", status_code=202, responses=_ASKED, response_model=None)
async def refund(
    edge: Here,
    known: Staff,
    order_id: OrderId,
    wanted: GiveBack | None = None,
    prefer: Prefer = None,
    idempotency_key: Key = None,
) -> Response:
    """Give money back: an amount, or all that is left. For support."""
    view = await _seen(edge, known, order_id)
    amount = None if wanted is None or wanted.amount is None else Money(**wanted.amount.model_dump())
    asked = Acting(known.user_id, view, orders.Refund(order_id=order_id, user_id=view.user_id, amount=amount))
    return await perform(edge, known.user_id, asked, key=idempotency_key, prefer=prefer)


@router.post("/{order_id}/payments", status_code=202, responses=_ASKED, response_model=None)
async def pay(
    edge: Here, known: Known, order_id: OrderId, payment: Payment, prefer: Prefer = None, idempotency_key: Key = None
) -> Response:
    """Have the provider asked again, now, for a payment that is still open; the order keeps its means of payment."""
    check_token(edge, payment, "/token")
    view = await _seen(edge, known, order_id)
    asked = Acting(known.user_id, view, orders.Pay(order_id=order_id, user_id=view.user_id))
    return await perform(edge, known.user_id, asked, key=idempotency_key, prefer=prefer)
