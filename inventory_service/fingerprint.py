"""Fingerprints of commands: the normalised form that the log keeps and compares when a request id comes again."""

from collections.abc import Mapping
from typing import Any, Final

import orjson
from pydantic import ValidationError

from contracts.inventory import MAX_QUANTITY, Clear, Commit, Fail, Hold, ReleaseOrder, Remove, Restock, Sell

_CART_REQUESTS: Final[Mapping[str, type[Hold | Remove | Clear]]] = {
    "add": Hold,
    "set": Hold,
    "remove": Remove,
    "clear": Clear,
}
"""The request to inventory for each verb of a client."""
CHECKOUT_NAMES: Final = frozenset({"checkout", "commit"})
"""Both names mean checkout: carts say `checkout`, inventory says `commit`."""

Fingerprint = Mapping[str, Any]
"""A command as the client named it in `type`, with its parameters.

It excludes everything that may differ between two sends of the same request, and all personal data."""


LoggedRequest = Hold | Remove | Clear | Commit | Sell | ReleaseOrder | Restock | Fail
"""Requests that are executed once and kept in the log."""


def fingerprint(request: LoggedRequest) -> Fingerprint:  # noqa: PLR0911 - one per kind
    """Return the fingerprint of a command. That of a failed command is the one of the command that was intended."""
    match request:
        case Hold(mode=mode):
            return {"type": mode, **_parameters(request)}
        case Remove():
            return {"type": "remove", **_parameters(request)}
        case Clear():
            return {"type": "clear", **_parameters(request)}
        case Commit():
            return _checkout_fingerprint(request)
        case Sell():
            return {"type": "sell", **_parameters(request)}
        case ReleaseOrder():
            return {"type": "release-order", **_parameters(request)}
        case Restock():
            return {"type": "restock", **_parameters(request)}
        case Fail(command=command):
            return _failed_fingerprint(command)


def _parameters(request: LoggedRequest) -> dict[str, Any]:
    """Return all fields of a request but those that its key in the log or the fingerprint's type has already."""
    return request.model_dump(mode="json", exclude={"user_id", "mode"}, exclude_none=True)


def _checkout_fingerprint(request: Commit) -> Fingerprint:
    lines = sorted(request.lines or (), key=lambda line: line.product)
    scope = {"version": request.version} if request.lines is None else {"lines": [line.model_dump() for line in lines]}
    expect = {"expect": request.expect.model_dump()} if request.expect else {}
    return {"type": "checkout", "order_id": request.order_id, "purpose": request.purpose, **scope, **expect}


def _failed_fingerprint(command: Mapping[str, Any]) -> Fingerprint:
    verb = str(command.get("type")).rpartition(".")[2]
    verb = str(command.get("mode")) if verb == "hold" else verb
    if verb in CHECKOUT_NAMES:
        return _failed_checkout_fingerprint(command)
    try:
        return fingerprint(_CART_REQUESTS[verb].model_validate({**command, "user_id": "-", "mode": verb}))
    except (KeyError, ValidationError):
        product, quantity = command.get("product"), command.get("quantity")
        return {
            "type": verb if verb in _CART_REQUESTS else "unknown",
            **({"product": product} if _is_identifier(product) else {}),
            **({"quantity": quantity} if quantity in range(MAX_QUANTITY + 1) else {}),
        }


def _failed_checkout_fingerprint(command: Mapping[str, Any]) -> Fingerprint:
    """Return the fingerprint of a failed checkout, in the form of the cart service or of inventory.

    The form of the cart service has `items`, and a `total` inside `expect`.
    """
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
        return _checkout_fingerprint(Commit.model_validate_json(orjson.dumps(fields)))
    except (ValidationError, orjson.JSONEncodeError):
        order_id = command.get("order_id")
        return {"type": "checkout", **({"order_id": order_id} if _is_identifier(order_id) else {})}


def _is_identifier(text: object) -> bool:
    return isinstance(text, str) and text.isascii() and text.isprintable() and 0 < len(text) <= 64  # noqa: PLR2004 - as Printable
