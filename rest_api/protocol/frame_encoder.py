"""Encodes the frames of the server: each once, as bytes, for all sockets that receive it.

Nothing is validated here: messages from Kafka were validated when they were read, and the tests check every frame
against its model in `server_frames.py`.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

import orjson

from contracts import cart, inventory, orders
from contracts.envelope import Message, rfc3339
from rest_api.protocol.server_frames import ErrorCode

OutcomeMessage = cart.Held | cart.Refused | cart.Removed | cart.Expired | cart.Order
ShownOutcome = (
    inventory.Held
    | inventory.Refused
    | inventory.Removed
    | inventory.Expired
    | inventory.BadField
    | inventory.Committed
)
"""The stored outcomes that a shopper may see. The others in the log belong to steps of orders and reservations."""
_NOT_IN_FRAMES: Final = frozenset({"type", "user_id", "id", "session", "cart", "outcomes", "replayed"})
"""Fields of a message that its frame lacks, or has in another place."""


def format_time(seconds: float) -> str:
    """Return a Unix time as the contract writes times."""
    return rfc3339(datetime.fromtimestamp(seconds, UTC))


def welcome(user_id: str, session: str, now: float, ping: int, limits: Mapping[str, int | None]) -> bytes:
    """Return the first frame of a socket."""
    return orjson.dumps(
        {
            "type": "welcome",
            "user_id": user_id,
            "session": session,
            "server_time": format_time(now),
            "ping": ping,
            "limits": limits,
        }
    )


def pending(request_id: str) -> bytes:
    """Return the frame that says that a request is accepted."""
    return orjson.dumps({"type": "pending", "id": request_id})


def expiring(expires_at: float, version: int) -> bytes:
    """Return the warning that a cart is about to expire."""
    return orjson.dumps({"type": "expiring", "expires_at": format_time(expires_at), "version": version})


def stock(product: str, available: int, version: int) -> bytes:
    """Return the stock of a watched product."""
    return orjson.dumps({"type": "stock", "product": product, "available": available, "version": version})


def error(request_id: str | None, code: ErrorCode, detail: str, **more: str | int) -> bytes:
    """Return the error for a frame that was not accepted; `more` is `field`, `retry_after` or `trace_id`."""
    return orjson.dumps({"type": "error", "id": request_id, "code": code, "detail": detail, **more})


def availability(message: cart.Availability) -> bytes:
    """Return the answer to `check`."""
    return _pass_through(message, message.id)


def resumed(message: cart.Resumed) -> bytes:
    """Return the end of the answer to `resume`; its cart and its outcomes are frames of their own."""
    return _pass_through(message, message.id)


def outcome(message: OutcomeMessage | ShownOutcome, request_id: str | None = None, *, replayed: bool = False) -> bytes:
    """Return an outcome as its frame. A stored one has no id of its own, so `request_id` gives it."""
    match message:
        case cart.Expired() | inventory.Expired():
            return _pass_through(message, None, replayed=replayed)
        case inventory.Committed():
            frame = {
                "type": "order",
                "id": request_id,
                "order_id": message.order_id,
                "status": "committed",
                "order_version": orders.COMMITTED_VERSION,
            }
            return orjson.dumps({**frame, "replayed": True} if replayed else frame)
        case inventory.BadField():
            detail = "the request was accepted at a time that lies ahead of the clock"
            return error(request_id, "bad_field", detail, field=message.field)
        case inventory.Refused():
            return _pass_through(message.model_copy(update={"order_id": None}), request_id, replayed=replayed)
        case inventory.Held() | inventory.Removed():
            return _pass_through(message, request_id, replayed=replayed)
    return _pass_through(message, request_id or message.id, replayed=replayed)


def notice(message: cart.Notice) -> bytes:
    """Return a notice for the shopper to read."""
    return _pass_through(message, None)


def _pass_through(message: cart.Response | ShownOutcome, request_id: str | None, *, replayed: bool = False) -> bytes:
    """Return a message as its frame: its type, the id, and its fields as they are.

    The data of a response has the shape of the frame, so a field that is added to the response reaches the sockets
    without a change here. Fields that are `None` are left out, except `available`, where null is a value: in the answer
    to `check` it means an unknown product.
    """
    kind = message.TYPE.rpartition(".")[2] if isinstance(message, Message) else message.type
    frame: dict[str, Any] = {"type": kind} if request_id is None else {"type": kind, "id": request_id}
    frame |= {
        name: value
        for name, value in vars(message).items()
        if name not in _NOT_IN_FRAMES and (value is not None or name == "available")
    }
    if replayed or getattr(message, "replayed", False):
        frame["replayed"] = True
    return orjson.dumps(frame, default=_json_default, option=orjson.OPT_PASSTHROUGH_DATETIME)


def _json_default(value: object) -> object:
    """Return a field's value as JSON knows it."""
    return rfc3339(value) if isinstance(value, datetime) else vars(value)


def mark_replayed(frame: bytes) -> bytes:
    """Return a frame with the flag `replayed`."""
    return frame[:-1] + b',"replayed":true}'


def cart_body(user_id: str, view: cart.CartView, names: Mapping[str, str], currency: str) -> dict[str, Any]:
    """Return a cart as `GET /v1/cart` shows it; a product without a name in the catalogue has its code as name."""
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
    """Return the body of a cart as a frame, with the id of the request that it answers, if it answers one."""
    request_field = {} if request_id is None else {"id": request_id}
    return orjson.dumps({"type": "cart", **request_field, **body})
