"""What a request asks for, in the one form in which the log keeps it and compares it with a second coming of its id."""

from collections.abc import Mapping
from typing import Any, Final

import orjson
from pydantic import ValidationError

from inventory_service.messages import (
    MAX_QUANTITY,
    Clear,
    Commit,
    Fail,
    Hold,
    ReleaseOrder,
    Remove,
    Restock,
    Sell,
)

WORDS: Final = frozenset({"add", "set", "remove", "clear"})
CHECKOUTS: Final = frozenset({"checkout", "commit"})
"""The same to a cart and to the inventory."""

Content = Mapping[str, Any]
"""The client's word as `type`, with what it says: nothing that differs when it is sent again, and nothing personal."""


Logged = Hold | Remove | Clear | Commit | Sell | ReleaseOrder | Restock | Fail
"""What is done once, and remembered."""


def content(request: Logged) -> Content:  # noqa: PLR0911 - one per kind
    """The normalised command. A failed one is what it was meant to be, by whatever hand it was put aside."""
    match request:
        case Hold(mode=mode, product=product, quantity=quantity):
            return {"type": mode, "product": product, "quantity": quantity}
        case Remove(product=product):
            return {"type": "remove", "product": product}
        case Clear():
            return {"type": "clear"}
        case Commit():
            return _checkout(request)
        case Sell(order_id=order_id):
            return {"type": "sell", "order_id": order_id}
        case ReleaseOrder(order_id=order_id, to=to):
            return {"type": "release-order", "order_id": order_id, "to": to}
        case Restock(order_id=order_id, shipped=shipped):
            return {"type": "restock", "order_id": order_id, "shipped": shipped}
        case Fail(command=command):
            return _meant(command)


def _checkout(request: Commit) -> Content:
    lines = sorted(request.lines or (), key=lambda line: line.product)
    what = {"version": request.version} if request.lines is None else {"lines": [line.model_dump() for line in lines]}
    expect = {"expect": request.expect.model_dump()} if request.expect else {}
    return {"type": "checkout", "order_id": request.order_id, "purpose": request.purpose, **what, **expect}


def _meant(command: Mapping[str, Any]) -> Content:
    word = str(command.get("type")).rpartition(".")[2]
    word = str(command.get("mode")) if word == "hold" else word
    if word in CHECKOUTS:
        return _checkout_meant(command)
    meant, units = command.get("product"), command.get("quantity")
    return {
        "type": word if word in WORDS else "unknown",
        **({"product": meant} if _printable(meant) else {}),
        **({"quantity": units} if units in range(MAX_QUANTITY + 1) else {}),
    }


def _checkout_meant(command: Mapping[str, Any]) -> Content:
    """As a cart or as the inventory was asked; the cart's has `items`, and a `total` in what it expects."""
    expect = command.get("expect")
    fields = {
        "user_id": "-",
        "order_id": command.get("order_id"),
        "version": command.get("version"),
        "lines": command.get("lines") or command.get("items"),
        "expect": expect.get("total", expect) if isinstance(expect, dict) else expect,
        "purpose": command.get("purpose", "order"),
    }
    try:
        return _checkout(Commit.model_validate_json(orjson.dumps(fields)))
    except (ValidationError, orjson.JSONEncodeError):
        order_id = command.get("order_id")
        return {"type": "checkout", **({"order_id": order_id} if _printable(order_id) else {})}


def _printable(text: object) -> bool:
    return isinstance(text, str) and text.isascii() and text.isprintable() and 0 < len(text) <= 64  # noqa: PLR2004 - as Printable
