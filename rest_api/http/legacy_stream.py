"""The legacy WebSocket `GET /cart/update-product`: one request and one response per connection. Local profile only.

The header `User-ID` names the user without any proof, so production shops must not serve this route. Browsers cannot
set that header on a WebSocket, so no page can use the route on a visitor's behalf.
"""

import asyncio
import contextlib
from typing import Annotated, Any, Final

import orjson
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from starlette.requests import HTTPConnection
from starlette.types import Receive, Scope, Send

from contracts import cart
from contracts.envelope import first_error
from contracts.ids import uuid7
from contracts.inventory import MAX_QUANTITY, Identifier
from rest_api.http import idempotency
from rest_api.http.dependencies import AppState, count_user_request
from rest_api.protocol import frame_encoder
from rest_api.protocol.problems import Problem, request_id

ROUTE: Final = "/cart/update-product"
RESPONSE_SECONDS: Final = 10
FIRST_FRAME_SECONDS: Final = 10.0
_USER: Final = TypeAdapter(Identifier)


class _Product(BaseModel):
    product_name: str = ""
    product_code: Identifier


class LegacyRequest(BaseModel):
    """A request: a product and a quantity to add. 0 queries availability; a negative quantity removes the product."""

    model_config = ConfigDict(strict=True)

    product: _Product
    quantity: Annotated[int, Field(ge=-MAX_QUANTITY, le=MAX_QUANTITY)]


class LegacyStream:
    """The ASGI application of the route: receives one request, sends one response, and closes."""

    def __init__(self, edge: AppState) -> None:
        self._edge = edge

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        connection = HTTPConnection(scope)
        await receive()  # websocket.connect
        try:
            self._edge.address_limiter.count_any(connection)
            self._edge.authenticator.check_origin(connection)
            user_id = _USER.validate_python(connection.headers.get("user-id", ""))
        except (Problem, ValidationError) as error:
            missing = Problem("bad-request", "the header User-ID is missing or invalid; it must name the user")
            problem = error if isinstance(error, Problem) else missing
            await problem.response(request_id(connection))(scope, receive, send)
            return
        await send({"type": "websocket.accept", "subprotocol": None, "headers": []})
        body = await self._respond(connection, user_id, await _payload(connection, receive))
        with contextlib.suppress(OSError, RuntimeError):  # the client is gone, or was disconnected for a bad frame
            await send({"type": "websocket.send", "text": orjson.dumps(body).decode()})
            await send({"type": "websocket.close", "code": 1000, "reason": ""})

    async def _respond(self, connection: HTTPConnection, user_id: str, payload: str | None) -> dict[str, Any]:
        update_id = uuid7()
        if payload is None:
            return _response_body(update_id, 408, f"no request arrived within {FIRST_FRAME_SECONDS:.0f} s", None)
        try:
            update = LegacyRequest.model_validate_json(payload)
        except ValidationError as error:
            return _response_body(update_id, 400, first_error(error), None)
        try:
            count_user_request(self._edge, connection, user_id, changing=update.quantity != 0)
            status, message = await self._execute(user_id, update_id, update)
            snapshot = await idempotency.read_from_carts(
                self._edge.connections, user_id, "read", {}, seconds=RESPONSE_SECONDS
            )
        except Problem as problem:
            return _response_body(update_id, problem.status, problem.detail or problem.slug, None)
        assert isinstance(snapshot, cart.Snapshot)
        names = await self._edge.catalogue.product_names({line.product for line in snapshot.cart.lines})
        return _response_body(
            update_id,
            status,
            message,
            frame_encoder.cart_body(user_id, snapshot.cart, names, self._edge.settings.currency),
        )

    async def _execute(self, user_id: str, update_id: str, update: LegacyRequest) -> tuple[int, str]:
        connections, product = self._edge.connections, update.product.product_code
        if update.quantity == 0:
            availability = await idempotency.read_from_carts(
                connections, user_id, "check", {"product": product}, seconds=RESPONSE_SECONDS
            )
            assert isinstance(availability, cart.Availability)
            available = availability.available
            return (404, "unknown product") if available is None else (200, f"{available} available")
        adds = {"quantity": update.quantity} if update.quantity > 0 else {}
        change = idempotency.CartCommand(
            user_id, "add" if adds else "remove", {"product": product, **adds}, "GET", ROUTE
        )
        response = await idempotency.send_command(
            self._edge, update_id, change, idempotency.WaitLimit(RESPONSE_SECONDS)
        )
        if response.status_code == idempotency.ACCEPTED:
            return 202, "accepted; the outcome is not known yet"
        outcome = orjson.loads(response.body)
        return (409, outcome["reason"]) if outcome["type"] == "refused" else (200, outcome["type"])


async def _payload(connection: HTTPConnection, receive: Receive) -> str | None:
    """Return the request's text; `None` if it does not arrive in time."""
    payload: str | None = connection.headers.get("payload")
    if payload is not None:
        return payload
    try:
        async with asyncio.timeout(FIRST_FRAME_SECONDS):
            return str((await receive()).get("text") or "")
    except TimeoutError:
        return None


def _response_body(update_id: str, status: int, message: str, snapshot: dict[str, Any] | None) -> dict[str, Any]:
    return {"request_id": update_id, "status_code": status, "message": message, "cart": snapshot}
