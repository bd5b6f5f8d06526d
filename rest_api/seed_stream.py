"""`GET /cart/update-product`: one request over a WebSocket of its own, as an earlier system had it. Local profile only.

The header `User-ID` says who asks and nothing proves it, which is why no production shop serves this. A browser can't
set that header on a WebSocket, so no page can use it on a visitor's behalf.
"""

import asyncio
from typing import Annotated, Any, Final

import orjson
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from starlette.requests import HTTPConnection
from starlette.types import Receive, Scope, Send

from cart_service import messages as cart
from infrastructure.envelope import first_fault
from infrastructure.ids import uuid7
from inventory_service.messages import MAX_QUANTITY, Printable
from rest_api import frames
from rest_api.changes import read
from rest_api.edge import Edge
from rest_api.problems import Problem, request_id
from rest_api.shopper import Publish

ANSWER_SECONDS: Final = 10.0
FIRST_FRAME_SECONDS: Final = 10.0
_USER: Final = TypeAdapter(Printable)


class _Product(BaseModel):
    product_name: str = ""
    product_code: Printable


class Update(BaseModel):
    """A product, and how many more of it: 0 asks how many there are, a negative number takes it out of the cart."""

    model_config = ConfigDict(strict=True)

    product: _Product
    quantity: Annotated[int, Field(ge=-MAX_QUANTITY, le=MAX_QUANTITY)]


class SeedStream:
    """The ASGI application of the route: one request, one answer, then a close."""

    def __init__(self, edge: Edge) -> None:
        self._edge = edge

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one socket."""
        connection = HTTPConnection(scope)
        await receive()  # websocket.connect
        try:
            self._edge.identities.check_origin(connection)
            user_id = _USER.validate_python(connection.headers.get("user-id", ""))
        except (Problem, ValidationError) as error:
            problem = error if isinstance(error, Problem) else Problem("bad-request", "User-ID says who asks")
            await problem.response(request_id(connection))(scope, receive, send)
            return
        await send({"type": "websocket.accept", "subprotocol": None, "headers": []})
        payload: str | None = connection.headers.get("payload")
        if payload is None:
            async with asyncio.timeout(FIRST_FRAME_SECONDS):
                payload = (await receive()).get("text")
        answer = await self._answer(user_id, payload or "")
        await send({"type": "websocket.send", "text": orjson.dumps(answer).decode()})
        await send({"type": "websocket.close", "code": 1000, "reason": ""})

    async def _answer(self, user_id: str, payload: str) -> dict[str, Any]:
        name = uuid7()
        try:
            update = Update.model_validate_json(payload)
        except ValidationError as error:
            return _told(name, 400, first_fault(error), None)
        try:
            status, message = await self._carry_out(user_id, name, update)
            shown = await read(self._edge.hub, user_id, "read", {}, seconds=ANSWER_SECONDS)
        except Problem as problem:
            return _told(name, problem.status, problem.detail or problem.slug, None)
        assert isinstance(shown, cart.Snapshot)
        names = await self._edge.projection.names({line.product for line in shown.cart.lines})
        return _told(name, status, message, frames.cart_body(user_id, shown.cart, names, self._edge.settings.currency))

    async def _carry_out(self, user_id: str, name: str, update: Update) -> tuple[int, str]:
        hub, product = self._edge.hub, update.product.product_code
        if update.quantity == 0:
            found = await read(hub, user_id, "check", {"product": product}, seconds=ANSWER_SECONDS)
            assert isinstance(found, cart.Availability)
            return (404, "unknown product") if found.available is None else (200, f"{found.available} available")
        data: dict[str, Any] = {"user_id": user_id, "product": product}
        if update.quantity > 0:
            data["quantity"] = update.quantity
        with hub.wait(user_id, name) as answer:
            if not await hub.publish(user_id, Publish(name, "add" if update.quantity > 0 else "remove", data)):
                raise Problem("unavailable", "carts are away")
            try:
                async with asyncio.timeout(ANSWER_SECONDS):
                    outcome = (await answer).message
            except TimeoutError:
                return 202, "accepted; there is no outcome yet"
        if isinstance(outcome, cart.Refused):
            return 409, outcome.reason
        return 200, "held" if isinstance(outcome, cart.Held) else "removed"


def _told(name: str, status: int, message: str, shown: dict[str, Any] | None) -> dict[str, Any]:
    return {"request_id": name, "status_code": status, "message": message, "cart": shown}
