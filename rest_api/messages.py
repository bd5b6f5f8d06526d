"""The public language of the edge: the frames of `GET /v1/stream`, client's and server's, as the contract has them.

A client's frame is checked against these models; a server's frame is written by `frames.py` in one go, and these models
say in the AsyncAPI document, and in the tests, what it looks like.
"""

from typing import Annotated, ClassVar, Final, Literal, get_args

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from cart_service.messages import PendingRequest
from inventory_service.messages import (
    MAX_LOOKUP_IDS,
    GivenUp,
    Money,
    Printable,
    Quantity,
    QuantityOrNone,
    RefusalReason,
)

SUBPROTOCOL: Final = "holdfast.v1"
MAX_FRAME_BYTES: Final = 16 * 1024
MAX_QUEUED_FRAMES: Final = 64
MAX_QUEUED_BYTES: Final = 32 * 1024
MAX_WATCHED: Final = 100
PING_SECONDS: Final = 20

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


Client = Add | Set | Remove | Clear | Check | ReadCart | Watch | Unwatch | Resume
CLIENT_FRAMES: Final[dict[str, type[Client]]] = {
    get_args(frame.model_fields["type"].annotation)[0]: frame for frame in get_args(Client)
}

# ---- server frames --------------------------------------------------------------------------------------------------


class ServerFrame(BaseModel):
    """A frame of the server. Fields may be added; clients ignore what they do not know."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Limits(BaseModel):
    """What a socket may do: frames a minute, requests without an answer, and bytes a frame; null: no limit."""

    changes: int | None
    others: int | None
    unanswered: int | None
    sockets: int | None
    watched: int
    frame_bytes: int


class Welcome(ServerFrame):
    """The first frame of a socket. `ping` is the seconds between the server's pings."""

    type: Literal["welcome"]
    user_id: Printable
    session: Printable
    server_time: AwareDatetime
    ping: int
    limits: Limits


class Pending(ServerFrame):
    """The request is accepted and kept; exactly one outcome follows."""

    type: Literal["pending"]
    id: Printable


class Held(ServerFrame):
    """Granted: `quantity` is what this request got, `line_quantity` the line after it, `expires_at` the cart's."""

    type: Literal["held"]
    id: Printable
    product: Printable
    quantity: int
    line_quantity: int
    expires_at: AwareDatetime
    version: int
    replayed: bool = False


class Refused(ServerFrame):
    """Nothing was done. `available` is what there was, where stock was the reason."""

    type: Literal["refused"]
    id: Printable
    product: Printable | None = None
    reason: RefusalReason
    available: int | None
    replayed: bool = False


class Removed(ServerFrame):
    """The line, or after `clear` the whole cart, is gone."""

    type: Literal["removed"]
    id: Printable
    product: Printable | None = None
    version: int
    replayed: bool = False


class Expired(ServerFrame):
    """The cart came to its end and gave its lines back."""

    type: Literal["expired"]
    lines: tuple[GivenUp, ...]
    version: int
    replayed: bool = False


class Expiring(ServerFrame):
    """The cart comes to its end in two minutes, unless something is granted."""

    type: Literal["expiring"]
    expires_at: AwareDatetime
    version: int


class CartLine(BaseModel):
    """A line with the name that the catalogue has for its product, and the price it was granted at."""

    product: Printable
    name: str
    quantity: Quantity
    price: Money


class CartBody(BaseModel):
    """A cart, as `GET /v1/cart` and the frame `cart` show it."""

    user_id: Printable
    version: int
    expires_at: AwareDatetime | None
    total: Money
    lines: tuple[CartLine, ...]
    pending: tuple[PendingRequest, ...]


class CartFrame(ServerFrame, CartBody):
    """The whole cart; with the `id` of the frame that asked for it, if one did."""

    type: Literal["cart"]
    id: Printable | None = None


class Availability(ServerFrame):
    """The answer to `check`; `available` is null for an unknown product."""

    type: Literal["availability"]
    id: Printable
    product: Printable
    available: int | None


class Resumed(ServerFrame):
    """The end of the answer to `resume`: wait for the `pending`, send the `unknown` again unchanged."""

    type: Literal["resumed"]
    id: Printable
    pending: tuple[Printable, ...]
    unknown: tuple[Printable, ...]


class StockFrame(ServerFrame):
    """The stock of a watched product."""

    type: Literal["stock"]
    product: Printable
    available: int
    version: int


ErrorCode = Literal[
    "bad_json",
    "missing_id",
    "bad_id",
    "id_reused",
    "unknown_type",
    "bad_field",
    "bad_quantity",
    "too_many",
    "forbidden",
    "rate_limited",
    "unavailable",
    "internal",
]


class Error(ServerFrame):
    """The frame was not accepted, or not surely; `id` is null when it had none that could be read."""

    type: Literal["error"]
    id: Printable | None
    code: ErrorCode
    detail: str
    field: str | None = None
    retry_after: int | None = None
    trace_id: str | None = None


Server = (
    Welcome
    | Pending
    | Held
    | Refused
    | Removed
    | Expired
    | Expiring
    | CartFrame
    | Availability
    | Resumed
    | StockFrame
    | Error
)
