"""The client frames of `GET /v1/stream`, and the content of an order.

Frames of clients are validated against these models. The frames of the server are in `server_frames.py`.
"""

import re
from typing import Annotated, Any, ClassVar, Final, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from contracts import inventory, orders
from contracts.addresses import EmailAddress, PhoneNumber
from contracts.ids import derive_id
from contracts.inventory import MAX_LINES, MAX_LOOKUP_IDS, Identifier, Money, Quantity, QuantityOrZero

SUBPROTOCOL: Final = "holdfast.v1"
MAX_FRAME_BYTES: Final = 16 * 1024
MAX_QUEUED_FRAMES: Final = 64
MAX_QUEUED_BYTES: Final = 32 * 1024
MAX_WATCHED: Final = 100
PING_SECONDS: Final = 20

MAX_AMOUNT: Final = 2**53 - 1
"""Upper bound of amounts and versions from clients: the largest integer that every JSON parser reads exactly."""

# ---- orders ---------------------------------------------------------------------------------------------------------


class Item(inventory.Item):
    """A quantity of a product. The price is the catalogue's, so an item that names one is refused."""

    model_config = ConfigDict(extra="forbid")


class Address(orders.Address):
    """The delivery address of an order; `country` is an ISO 3166-1 alpha-2 code."""

    model_config = ConfigDict(extra="forbid")


class Contact(orders.Contact):
    """The contact data of a new order: an address that mail can be sent to, and a telephone number in E.164."""

    model_config = ConfigDict(extra="forbid")

    email: EmailAddress
    phone: PhoneNumber | None = None


class Payment(orders.Payment):
    """The means of payment of an order."""

    model_config = ConfigDict(extra="forbid")


class Total(Money):
    """An amount of money given by a client."""

    model_config = ConfigDict(extra="forbid")

    amount: Annotated[int, Field(ge=0, le=MAX_AMOUNT)]


class Expected(BaseModel):
    """The total that the shopper saw; an order with another total is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    total: Total


_CONTROLS: Final = re.compile("[\x80-\x9f\u2028\u2029]")
"""Control characters that `contracts.orders` still reads in old orders, besides those that it rejects."""


def _require_printable(address: Address) -> Address:
    """Raise `ValueError` for a new address with a character that controls a terminal or breaks a line."""
    for name, value in address:
        if isinstance(value, str) and _CONTROLS.search(value):
            raise ValueError(f"`{name}` has a control character")
    return address


class Wanted(BaseModel):
    """The content of an order, over HTTP and WebSocket: the cart at `version`, or `items` without a cart.

    The values in it are closed: an unknown field of an item, an address, a contact, a payment or a total is an error.
    """

    model_config = ConfigDict(frozen=True, strict=True)

    # A JSON array is a list in Python, so this tuple is not strict.
    items: Annotated[tuple[Item, ...], Field(min_length=1, max_length=MAX_LINES, strict=False)] | None = None
    version: Annotated[int, Field(ge=0, le=MAX_AMOUNT)] | None = Field(default=None, validate_default=True)
    address: Annotated[Address, AfterValidator(_require_printable)]
    contact: Contact
    payment: Payment
    expect: Expected | None = None

    @field_validator("items")
    @classmethod
    def _each_product_once(cls, items: tuple[Item, ...] | None) -> tuple[Item, ...] | None:
        if items is not None and len({item.product for item in items}) < len(items):
            raise ValueError("a product is named twice")
        return items

    @field_validator("version")
    @classmethod
    def _version_or_items(cls, version: int | None, info: ValidationInfo) -> int | None:
        if "items" in info.data and (version is None) == (info.data["items"] is None):
            raise ValueError("give either `version`, to order the cart, or `items`, not both")
        return version

    def command(self) -> dict[str, Any]:
        """Return the data of the request to the carts, without the user."""
        return self.model_dump(mode="json", include=set(Wanted.model_fields), exclude_none=True)


def order_id(user_id: str, request_id: str) -> str:
    """Return the id of the order that a checkout makes. It is derived, so the same request makes the same order."""
    return derive_id(user_id, request_id, "order")


# ---- client frames --------------------------------------------------------------------------------------------------


class ClientFrame(BaseModel):
    """The fields of every client frame: `type`, and an `id` that is the idempotency key from end to end."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    CHANGES: ClassVar[bool] = False
    """True if the frame may change the cart; such frames have a rate limit of their own."""

    id: Identifier
    traceparent: Annotated[str, Field(max_length=256)] | None = None


class Add(ClientFrame):
    """Hold `quantity` more of a product; all or nothing."""

    CHANGES: ClassVar[bool] = True
    type: Literal["add"]
    product: Identifier
    quantity: Quantity


class Set(ClientFrame):
    """Set the line of a product to exactly `quantity`; 0 removes it."""

    CHANGES: ClassVar[bool] = True
    type: Literal["set"]
    product: Identifier
    quantity: QuantityOrZero


class Remove(ClientFrame):
    """Remove a product from the cart; never refused."""

    CHANGES: ClassVar[bool] = True
    type: Literal["remove"]
    product: Identifier


class Clear(ClientFrame):
    """Empty the cart; never refused."""

    CHANGES: ClassVar[bool] = True
    type: Literal["clear"]


class Checkout(ClientFrame, Wanted):
    """Order the cart as it was at `version`, or `items`; answered by `order` frames as it moves, or `refused`."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    CHANGES: ClassVar[bool] = True
    type: Literal["checkout"]


class Check(ClientFrame):
    """Read how much of a product is available, in order with the shopper's own requests."""

    type: Literal["check"]
    product: Identifier


class ReadCart(ClientFrame):
    """Read the cart."""

    type: Literal["cart"]


# A JSON array is a list in Python, so the tuples of these two are not strict.
_Products = Annotated[tuple[Identifier, ...], Field(min_length=1, max_length=MAX_WATCHED, strict=False)]


class Watch(ClientFrame):
    """Receive the stock of some products, or without `products` of all, now and whenever it changes."""

    type: Literal["watch"]
    products: _Products | None = None


class Unwatch(ClientFrame):
    """Stop receiving the stock of some products, or without `products` of any."""

    type: Literal["unwatch"]
    products: _Products | None = None


class Resume(ClientFrame):
    """Resume after a disconnect: the last version seen, and the ids of requests without an outcome."""

    type: Literal["resume"]
    version: Annotated[int, Field(ge=0)]
    unresolved: Annotated[tuple[Identifier, ...], Field(max_length=MAX_LOOKUP_IDS, strict=False)] = ()


Client = Add | Set | Remove | Clear | Checkout | Check | ReadCart | Watch | Unwatch | Resume
CLIENT_FRAMES: Final[dict[str, type[Client]]] = {
    get_args(frame.model_fields["type"].annotation)[0]: frame for frame in get_args(Client)
}
