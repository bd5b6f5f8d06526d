"""The server frames of `GET /v1/stream`.

`frame_encoder.py` encodes them. These models describe them in the AsyncAPI and OpenAPI documents, and check them in
tests.
"""

from typing import Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict

from contracts.inventory import GivenUp, Identifier, Money, Quantity, RefusalReason
from contracts.orders import CancelReason, Status


class ServerFrame(BaseModel):
    """A frame of the server. Fields may be added; clients must ignore unknown ones."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Limits(BaseModel):
    """The limits of a socket: frames per minute, unanswered requests, and bytes per frame; null means no limit."""

    changes: int | None
    others: int | None
    unanswered: int | None
    sockets: int | None
    watched: int
    frame_bytes: int


class Welcome(ServerFrame):
    """The first frame of a socket. `ping` is the number of seconds between pings of the server."""

    type: Literal["welcome"]
    user_id: Identifier
    session: Identifier
    server_time: AwareDatetime
    ping: int
    limits: Limits


class Pending(ServerFrame):
    """The request is accepted and stored; exactly one outcome follows."""

    type: Literal["pending"]
    id: Identifier


class Held(ServerFrame):
    """Granted: `quantity` units by this request, `line_quantity` in the line; the cart expires at `expires_at`."""

    type: Literal["held"]
    id: Identifier
    product: Identifier
    quantity: int
    line_quantity: int
    expires_at: AwareDatetime
    version: int
    replayed: bool = False


class Refused(ServerFrame):
    """Refused: nothing was done. `available` is the stock at that time, if stock was the reason."""

    type: Literal["refused"]
    id: Identifier
    product: Identifier | None = None
    reason: RefusalReason
    available: int | None
    replayed: bool = False


class Removed(ServerFrame):
    """The line, or after `clear` the whole cart, was removed."""

    type: Literal["removed"]
    id: Identifier
    product: Identifier | None = None
    version: int
    replayed: bool = False


class Expired(ServerFrame):
    """The cart expired and its lines were given back."""

    type: Literal["expired"]
    lines: tuple[GivenUp, ...]
    version: int
    replayed: bool = False


class Expiring(ServerFrame):
    """The cart expires in two minutes, unless another request is granted."""

    type: Literal["expiring"]
    expires_at: AwareDatetime
    version: int


class CartLine(BaseModel):
    """A line with the catalogue's name of its product, and the price at which it was granted."""

    product: Identifier
    name: str
    quantity: Quantity
    price: Money


class PendingChange(BaseModel):
    """An accepted change without an outcome yet."""

    id: Identifier
    type: Literal["add", "set", "remove", "clear", "checkout"]
    product: Identifier | None = None
    quantity: int | None = None
    since: AwareDatetime


class CartBody(BaseModel):
    """A cart, as `GET /v1/cart` and the frame `cart` show it."""

    user_id: Identifier
    version: int
    expires_at: AwareDatetime | None
    total: Money
    lines: tuple[CartLine, ...]
    pending: tuple[PendingChange, ...]


class CartFrame(ServerFrame, CartBody):
    """The whole cart, with the `id` of the frame that it answers, if it answers one."""

    type: Literal["cart"]
    id: Identifier | None = None
    replayed: bool = False


class Availability(ServerFrame):
    """The answer to `check`; `available` is null for an unknown product."""

    type: Literal["availability"]
    id: Identifier
    product: Identifier
    available: int | None


class Resumed(ServerFrame):
    """The end of the answer to `resume`: wait for the `pending` ones, send the `unknown` ones again unchanged."""

    type: Literal["resumed"]
    id: Identifier
    pending: tuple[Identifier, ...]
    unknown: tuple[Identifier, ...]


class OrderFrame(ServerFrame):
    """An order of this shopper changed; `id` is the request that created it or requested the change."""

    type: Literal["order"]
    id: Identifier
    order_id: Identifier
    status: Status
    order_version: int
    reason: CancelReason | None = None
    replayed: bool = False


class StockFrame(ServerFrame):
    """The stock of a watched product."""

    type: Literal["stock"]
    product: Identifier
    available: int
    version: int


class NoticeFrame(ServerFrame):
    """A notice for the shopper, kept at `GET /v1/notifications`. The same `notice_id` is the same notice."""

    type: Literal["notice"]
    notice_id: Identifier
    template: str
    title: str
    body: str
    cause: Identifier | None = None
    replayed: bool = False


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
    """A frame was not accepted, or its acceptance is unknown; `id` is null if the frame has no readable id."""

    type: Literal["error"]
    id: Identifier | None
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
    | OrderFrame
    | NoticeFrame
    | StockFrame
    | Error
)
