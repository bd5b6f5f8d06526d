"""What a request asks for, in the one form in which the log keeps it and compares it with a second coming of its id."""

from collections.abc import Mapping
from typing import Any, Final

from inventory_service.messages import MAX_QUANTITY, Clear, Fail, Hold, Remove

WORDS: Final = frozenset({"add", "set", "remove", "clear"})

Content = Mapping[str, Any]
"""The client's word as `type`, with its `product` and `quantity`: nothing that differs when it is sent again."""


def content(request: Hold | Remove | Clear | Fail) -> Content:
    """The normalised command. A failed one is what it was meant to be, by whatever hand it was put aside."""
    match request:
        case Hold(mode=mode, product=product, quantity=quantity):
            return {"type": mode, "product": product, "quantity": quantity}
        case Remove(product=product):
            return {"type": "remove", "product": product}
        case Clear():
            return {"type": "clear"}
        case Fail(command=command):
            word = str(command.get("type")).rpartition(".")[2]
            word = str(command.get("mode")) if word == "hold" else word
            meant, units = command.get("product"), command.get("quantity")
            return {
                "type": word if word in WORDS else "unknown",
                **({"product": meant} if _printable(meant) else {}),
                **({"quantity": units} if units in range(MAX_QUANTITY + 1) else {}),
            }


def _printable(text: object) -> bool:
    return isinstance(text, str) and text.isascii() and text.isprintable() and 0 < len(text) <= 64  # noqa: PLR2004 - as Printable
