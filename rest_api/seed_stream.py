"""`GET /cart/update-product`: one request over a WebSocket of its own, as an earlier system had it. Local profile only.

The header `User-ID` says who asks and nothing proves it, which is why no production shop serves this. A browser can't
set that header on a WebSocket, so no page can use it on a visitor's behalf.
"""

import asyncio
import contextlib
from typing import Annotated, Any, Final

import orjson
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from starlette.requests import HTTPConnection
from starlette.types import Receive, Scope, Send

from cart_service import messages as cart
from infrastructure.envelope import first_fault
from infrastructure.ids import uuid7
from inventory_service.messages import MAX_QUANTITY, Printable
from rest_api import changes, frames
from rest_api.edge import Edge, count
from rest_api.problems import Problem, request_id

ROUTE: Final = "/cart/update-product"
ANSWER_SECONDS: Final = 10
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
        answer = await self._answer(connection, user_id, await _payload(connection, receive))
        with contextlib.suppress(OSError):  # the client is gone
            await send({"type": "websocket.send", "text": orjson.dumps(answer).decode()})
            await send({"type": "websocket.close", "code": 1000, "reason": ""})

    async def _answer(self, connection: HTTPConnection, user_id: str, payload: str | None) -> dict[str, Any]:
        name = uuid7()
        if payload is None:
            return _told(name, 408, f"no request came in {FIRST_FRAME_SECONDS:.0f} s", None)
        try:
            update = Update.model_validate_json(payload)
        except ValidationError as error:
            return _told(name, 400, first_fault(error), None)
        try:
            count(self._edge, connection, user_id, changing=update.quantity != 0)
            status, message = await self._carry_out(user_id, name, update)
            shown = await changes.read(self._edge.hub, user_id, "read", {}, seconds=ANSWER_SECONDS)
        except Problem as problem:
            return _told(name, problem.status, problem.detail or problem.slug, None)
        assert isinstance(shown, cart.Snapshot)
        names = await self._edge.projection.names({line.product for line in shown.cart.lines})
        return _told(name, status, message, frames.cart_body(user_id, shown.cart, names, self._edge.settings.currency))

    async def _carry_out(self, user_id: str, name: str, update: Update) -> tuple[int, str]:
        hub, product = self._edge.hub, update.product.product_code
        if update.quantity == 0:
            found = await changes.read(hub, user_id, "check", {"product": product}, seconds=ANSWER_SECONDS)
            assert isinstance(found, cart.Availability)
            return (404, "unknown product") if found.available is None else (200, f"{found.available} available")
        adds = {"quantity": update.quantity} if update.quantity > 0 else {}
        change = changes.Change(user_id, "add" if adds else "remove", {"product": product, **adds}, "GET", ROUTE)
        response = await changes.send(self._edge, name, change, ANSWER_SECONDS)
        if response.status_code == changes.ACCEPTED:
            return 202, "accepted; there is no outcome yet"
        outcome = orjson.loads(response.body)
        return (409, outcome["reason"]) if outcome["type"] == "refused" else (200, outcome["type"])


async def _payload(connection: HTTPConnection, receive: Receive) -> str | None:
    """The request; none when it does not come in time."""
    payload: str | None = connection.headers.get("payload")
    if payload is not None:
        return payload
    try:
        async with asyncio.timeout(FIRST_FRAME_SECONDS):
            return str((await receive()).get("text") or "")
    except TimeoutError:
        return None


def _told(name: str, status: int, message: str, shown: dict[str, Any] | None) -> dict[str, Any]:
    return {"request_id": name, "status_code": status, "message": message, "cart": shown}
