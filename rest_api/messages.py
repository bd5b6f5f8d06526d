"""The public language of the edge, as it hears it: what a client may say on `GET /v1/stream`, and what makes an order.

A client's frame is checked against these models; what the server says stands in `server_frames.py`.
"""

from typing import Annotated, Any, ClassVar, Final, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from inventory_service.messages import (
    MAX_LINES,
    MAX_LOOKUP_IDS,
    Item,
    Money,
    Printable,
    Quantity,
    QuantityOrNone,
)
from order_service.messages import Address, Contact, Payment

SUBPROTOCOL: Final = "holdfast.v1"
MAX_FRAME_BYTES: Final = 16 * 1024
MAX_QUEUED_FRAMES: Final = 64
MAX_QUEUED_BYTES: Final = 32 * 1024
MAX_WATCHED: Final = 100
PING_SECONDS: Final = 20

MAX_AMOUNT: Final = 2**53 - 1
"""Of money and versions that a client names: what every JSON reader takes for a whole number."""

# ---- orders ---------------------------------------------------------------------------------------------------------


class Total(Money):
    """Money that a client names."""

    amount: Annotated[int, Field(ge=0, le=MAX_AMOUNT)]


class Expected(BaseModel):
    """What the shopper saw: another total is refused."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    total: Total


class Wanted(BaseModel):
    """An order: of the cart at `version`, or of `items` without a cart; over HTTP and over the socket."""

    model_config = ConfigDict(frozen=True, strict=True)

    # A JSON array is a list in Python, so this tuple is not strict.
    items: Annotated[tuple[Item, ...], Field(min_length=1, max_length=MAX_LINES, strict=False)] | None = None
    version: Annotated[int, Field(ge=0, le=MAX_AMOUNT)] | None = Field(default=None, validate_default=True)
    address: Address
    contact: Contact
    payment: Payment
    expect: Expected | None = None

    @field_validator("items")
    @classmethod
    def _each_product_once(cls, items: tuple[Item, ...] | None) -> tuple[Item, ...] | None:
        if items is not None and len({item.product for item in items}) < len(items):
            raise ValueError("names a product twice")
        return items

    @field_validator("version")
    @classmethod
    def _of_a_cart_or_of_items(cls, version: int | None, info: ValidationInfo) -> int | None:
        if "items" in info.data and (version is None) == (info.data["items"] is None):
            raise ValueError("an order is of the cart at a version, or of items; not of both")
        return version

    def command(self) -> dict[str, Any]:
        """What the carts are asked, beside whose it is."""
        return self.model_dump(mode="json", include=set(Wanted.model_fields), exclude_none=True)


# ---- client frames --------------------------------------------------------------------------------------------------


class ClientFrame(BaseModel):
    """What every frame of a client has: its own `id`, the idempotency key from end to end, and a `type`."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    CHANGES: ClassVar[bool] = False
    """Whether the frame may change the cart; such frames have a limit of their own."""

    id: Printable
    traceparent: Annotated[str, Field(max_length=256)] | None = None


class Add(ClientFrame):
    """Hold `quantity` more of a product; all or nothing."""

    CHANGES: ClassVar[bool] = True
    type: Literal["add"]
    product: Printable
    quantity: Quantity


class Set(ClientFrame):
    """Make the line of a product exactly `quantity`; 0 takes it away."""

    CHANGES: ClassVar[bool] = True
    type: Literal["set"]
    product: Printable
    quantity: QuantityOrNone


class Remove(ClientFrame):
    """Take a product out of the cart; never refused."""

    CHANGES: ClassVar[bool] = True
    type: Literal["remove"]
    product: Printable


class Clear(ClientFrame):
    """Empty the cart; never refused."""

    CHANGES: ClassVar[bool] = True
    type: Literal["clear"]


class Checkout(ClientFrame, Wanted):
    """Make an order of the cart as it was at `version`, or of `items`; told by `order` as it moves, or refused."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    CHANGES: ClassVar[bool] = True
    type: Literal["checkout"]


class Check(ClientFrame):
    """Ask inventory how much of a product is available, in order with the shopper's own requests."""

    type: Literal["check"]
    product: Printable


class ReadCart(ClientFrame):
    """Ask for the cart."""

    type: Literal["cart"]


# A JSON array is a list in Python, so the tuples of these two are not strict.
_Products = Annotated[tuple[Printable, ...], Field(min_length=1, max_length=MAX_WATCHED, strict=False)]


class Watch(ClientFrame):
    """Be told the stock of some products, or with no `products` of all, now and as it changes."""

    type: Literal["watch"]
    products: _Products | None = None


class Unwatch(ClientFrame):
    """Be told no more of some products, or with no `products` of any."""

    type: Literal["unwatch"]
    products: _Products | None = None


class Resume(ClientFrame):
    """Come back after a cut: the version that was shown, and the ids that had no outcome yet."""

    type: Literal["resume"]
    version: Annotated[int, Field(ge=0)]
    unresolved: Annotated[tuple[Printable, ...], Field(max_length=MAX_LOOKUP_IDS, strict=False)] = ()


Client = Add | Set | Remove | Clear | Checkout | Check | ReadCart | Watch | Unwatch | Resume
CLIENT_FRAMES: Final[dict[str, type[Client]]] = {
    get_args(frame.model_fields["type"].annotation)[0]: frame for frame in get_args(Client)
}
