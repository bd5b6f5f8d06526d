"""Routes of a cart: the same requests as over the socket, answered with 202, or with their outcome (`Prefer: wait`)."""

import hashlib
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Header, Path, Response
from pydantic import BaseModel, ConfigDict

from contracts import cart
from contracts.inventory import Identifier, Quantity, QuantityOrZero
from rest_api.http.dependencies import SECURITY_DEPENDENCIES, AppStateDep, CurrentUser
from rest_api.http.idempotency import CartCommand, execute, read_from_carts
from rest_api.protocol import frame_encoder, server_frames
from rest_api.protocol.problems import Problem

router = APIRouter(prefix="/v1/cart", tags=["cart"], dependencies=SECURITY_DEPENDENCIES)

READ_TIMEOUT_SECONDS = 1.8
"""Time limit of a read; the contract promises a response within two seconds."""


class Wanted(BaseModel):
    """A product, and the quantity to add."""

    model_config = ConfigDict(extra="forbid", strict=True)

    product: Identifier
    quantity: Quantity


class Amount(BaseModel):
    """The quantity of a line; 0 removes it."""

    model_config = ConfigDict(extra="forbid", strict=True)

    quantity: QuantityOrZero


class Accepted(BaseModel):
    """The request is accepted and stored; its outcome can be read at `Location`."""

    request_id: str


class StillPending(BaseModel):
    """The request has no outcome yet."""

    request_id: str
    status: str


OutcomeFrame = (
    server_frames.Held
    | server_frames.Refused
    | server_frames.Removed
    | server_frames.Expired
    | server_frames.OrderFrame
)
ProductCode = Annotated[Identifier, Path()]
PreferHeader = Annotated[
    str | None, Header(description="`wait=N`: respond with the outcome, if there is one within N (at most 30) seconds")
]
IdempotencyKey = Annotated[str | None, Header(description="a repeat with the same key and body gets the same response")]
_CHANGE_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"model": OutcomeFrame, "description": "the outcome (with `Prefer: wait`)"},
    202: {"model": Accepted, "description": "accepted; the outcome can be read at `Location`"},
}


@router.get("", response_model=server_frames.CartBody)
async def show(edge: AppStateDep, user: CurrentUser) -> Response:
    """Return the cart."""
    answer = await read_from_carts(edge.connections, user.user_id, "read", {}, seconds=READ_TIMEOUT_SECONDS)
    assert isinstance(answer, cart.Snapshot)
    names = await edge.catalogue.product_names({line.product for line in answer.cart.lines})
    body = orjson.dumps(frame_encoder.cart_body(user.user_id, answer.cart, names, edge.settings.currency))
    digest = hashlib.blake2b(body, digest_size=6).hexdigest()
    etag = f'"{answer.cart.version}-{digest}"'
    return Response(body, headers={"ETag": etag}, media_type="application/json")


@router.post("/items", status_code=202, responses=_CHANGE_RESPONSES, response_model=None)
async def add(
    edge: AppStateDep,
    user: CurrentUser,
    item: Wanted,
    prefer: PreferHeader = None,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Add a quantity of a product and hold it, all or nothing."""
    change = CartCommand(user.user_id, "add", item.model_dump(mode="json"), "POST", "/v1/cart/items")
    return await execute(edge, user.user_id, change, key=idempotency_key, prefer=prefer)


@router.put("/items/{product:segment}", status_code=202, responses=_CHANGE_RESPONSES, response_model=None)
async def put(
    edge: AppStateDep,
    user: CurrentUser,
    product: ProductCode,
    amount: Amount,
    prefer: PreferHeader = None,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Set the quantity of a line; 0 removes it."""
    fields = {"product": product, **amount.model_dump(mode="json")}
    change = CartCommand(user.user_id, "set", fields, "PUT", "/v1/cart/items/{product}")
    return await execute(edge, user.user_id, change, key=idempotency_key, prefer=prefer)


@router.delete("/items/{product:segment}", status_code=202, responses=_CHANGE_RESPONSES, response_model=None)
async def remove(
    edge: AppStateDep,
    user: CurrentUser,
    product: ProductCode,
    prefer: PreferHeader = None,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Remove a product from the cart; never refused."""
    change = CartCommand(user.user_id, "remove", {"product": product}, "DELETE", "/v1/cart/items/{product}")
    return await execute(edge, user.user_id, change, key=idempotency_key, prefer=prefer)


@router.delete("", status_code=202, responses=_CHANGE_RESPONSES, response_model=None)
async def clear(
    edge: AppStateDep, user: CurrentUser, prefer: PreferHeader = None, idempotency_key: IdempotencyKey = None
) -> Response:
    """Empty the cart; never refused."""
    change = CartCommand(user.user_id, "clear", {}, "DELETE", "/v1/cart")
    return await execute(edge, user.user_id, change, key=idempotency_key, prefer=prefer)


@router.get(
    "/requests/{request_id:segment}", responses={200: {"model": OutcomeFrame | StillPending}}, response_model=None
)
async def outcome(edge: AppStateDep, user: CurrentUser, request_id: Annotated[Identifier, Path()]) -> Response:
    """Return the outcome of a change as its frame, or `{"request_id","status":"pending"}`."""
    answer = await read_from_carts(
        edge.connections, user.user_id, "lookup", {"ids": [request_id]}, seconds=READ_TIMEOUT_SECONDS
    )
    assert isinstance(answer, cart.Resumed)
    for stored in answer.outcomes:
        if isinstance(stored.outcome, frame_encoder.ShownOutcome):
            return Response(frame_encoder.outcome(stored.outcome, stored.id), media_type="application/json")
    if request_id in answer.pending:
        return Response(orjson.dumps({"request_id": request_id, "status": "pending"}), media_type="application/json")
    raise Problem("not-found", "the cart has no request with this id")
