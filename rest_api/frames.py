"""How a server's frame is written: once, as bytes, for all the sockets that get it.

Nothing here is checked again: what comes from Kafka was checked when it was read, and the tests hold every frame
against its model in `server_frames.py`.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

import orjson

from cart_service import messages as cart
from infrastructure.envelope import rfc3339
from inventory_service import messages as inventory
from rest_api.server_frames import ErrorCode

COMMITTED_VERSION: Final = 2
"""The event of an order's stream with which its stock is held for it."""

Outcome = cart.Held | cart.Refused | cart.Removed | cart.Expired | cart.Order
Stored = (
    inventory.Held
    | inventory.Refused
    | inventory.Removed
    | inventory.Expired
    | inventory.BadField
    | inventory.Committed
)
"""What the log may tell a shopper of a request; what else it keeps is of orders' and reservations' own steps."""


def moment(seconds: float) -> str:
    """An instant of the Unix clock as the contract writes times."""
    return rfc3339(datetime.fromtimestamp(seconds, UTC))


def welcome(user_id: str, session: str, now: float, ping: int, limits: Mapping[str, int | None]) -> bytes:
    """The first frame of a socket."""
    return orjson.dumps(
        {
            "type": "welcome",
            "user_id": user_id,
            "session": session,
            "server_time": moment(now),
            "ping": ping,
            "limits": limits,
        }
    )


def pending(request_id: str) -> bytes:
    """Kafka has the request."""
    return orjson.dumps({"type": "pending", "id": request_id})


def expiring(expires_at: float, version: int) -> bytes:
    """Two minutes are left."""
    return orjson.dumps({"type": "expiring", "expires_at": moment(expires_at), "version": version})


def stock(product: str, available: int, version: int) -> bytes:
    """The stock of a watched product."""
    return orjson.dumps({"type": "stock", "product": product, "available": available, "version": version})


def error(request_id: str | None, code: ErrorCode, detail: str, **more: str | int) -> bytes:
    """A frame that was not accepted; `more` is `field`, `retry_after` or `trace_id`."""
    return orjson.dumps({"type": "error", "id": request_id, "code": code, "detail": detail, **more})


def availability(message: cart.Availability) -> bytes:
    """The answer to `check`."""
    return orjson.dumps(
        {"type": "availability", "id": message.id, "product": message.product, "available": message.available}
    )


def resumed(message: cart.Resumed) -> bytes:
    """The end of the answer to `resume`."""
    return orjson.dumps({"type": "resumed", "id": message.id, "pending": message.pending, "unknown": message.unknown})


def outcome(message: Outcome | Stored, request_id: str | None = None, *, replayed: bool = False) -> bytes:
    """An outcome as its frame. A stored one bears no id of its own, so `request_id` gives it."""
    request_id = request_id or getattr(message, "id", None)
    frame: dict[str, Any]
    match message:
        case cart.Held() | inventory.Held():
            frame = {
                "type": "held",
                "id": request_id,
                "product": message.product,
                "quantity": message.quantity,
                "line_quantity": message.line_quantity,
                "expires_at": rfc3339(message.expires_at),
                "version": message.version,
            }
        case cart.Refused() | inventory.Refused():
            about = {} if message.product is None else {"product": message.product}
            refused = {"reason": message.reason, "available": message.available}
            frame = {"type": "refused", "id": request_id, **about, **refused}
        case cart.Removed() | inventory.Removed():
            about = {} if message.product is None else {"product": message.product}
            frame = {"type": "removed", "id": request_id, **about, "version": message.version}
        case cart.Expired() | inventory.Expired():
            frame = {
                "type": "expired",
                "lines": [{"product": line.product, "quantity": line.quantity} for line in message.lines],
                "version": message.version,
            }
        case cart.Order():
            return order(message, request_id)
        case inventory.Committed():
            frame = {
                "type": "order",
                "id": request_id,
                "order_id": message.order_id,
                "status": "committed",
                "order_version": COMMITTED_VERSION,
            }
        case inventory.BadField():
            detail = "the request was accepted at a time that lies ahead of the clock"
            return error(request_id, "bad_field", detail, field=message.field)
    if replayed or getattr(message, "replayed", False):
        frame["replayed"] = True
    return orjson.dumps(frame)


def again(frame: bytes) -> bytes:
    """A frame with the mark of what is told again."""
    return frame[:-1] + b',"replayed":true}'


def order(message: cart.Order, request_id: str | None = None) -> bytes:
    """An order that moved."""
    frame = {
        "type": "order",
        "id": request_id or message.id,
        "order_id": message.order_id,
        "status": message.status,
        "order_version": message.order_version,
    }
    if message.reason is not None:
        frame["reason"] = message.reason
    if message.replayed:
        frame["replayed"] = True
    return orjson.dumps(frame)


def notice(message: cart.Notice) -> bytes:
    """Something for the shopper to read."""
    frame = {
        "type": "notice",
        "notice_id": message.notice_id,
        "template": message.template,
        "title": message.title,
        "body": message.body,
    }
    if message.cause is not None:
        frame["cause"] = message.cause
    return orjson.dumps(frame)


def cart_body(user_id: str, view: cart.CartView, names: Mapping[str, str], currency: str) -> dict[str, Any]:
    """A cart as `GET /v1/cart` shows it; a product that the catalogue does not name goes by its code."""
    return {
        "user_id": user_id,
        "version": view.version,
        "expires_at": rfc3339(view.expires_at) if view.expires_at else None,
        "total": {
            "amount": sum(line.price.amount * line.quantity for line in view.lines),
            "currency": view.lines[0].price.currency if view.lines else currency,
        },
        "lines": [
            {
                "product": line.product,
                "name": names.get(line.product, line.product),
                "quantity": line.quantity,
                "price": {"amount": line.price.amount, "currency": line.price.currency},
            }
            for line in view.lines
        ],
        "pending": [_pending(request) for request in view.pending],
    }


def _pending(request: cart.PendingRequest) -> dict[str, Any]:
    shown: dict[str, Any] = {"id": request.id, "type": request.type}
    if request.product is not None:
        shown["product"] = request.product
    if request.quantity is not None:
        shown["quantity"] = request.quantity
    return {**shown, "since": rfc3339(request.since)}


def cart_frame(body: Mapping[str, Any], request_id: str | None = None) -> bytes:
    """The body of a cart as a frame, with the id of who asked, if somebody did."""
    asked = {} if request_id is None else {"id": request_id}
    return orjson.dumps({"type": "cart", **asked, **body})
