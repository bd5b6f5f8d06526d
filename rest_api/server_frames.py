"""The public language of the edge, as it speaks: the frames that the server sends on `GET /v1/stream`.

They are written by `frames.py` in one go; these models say what they look like, in the AsyncAPI and OpenAPI documents
and in the tests.
"""

from typing import Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict

from inventory_service.messages import GivenUp, Money, Printable, Quantity, RefusalReason
from order_service.messages import CancelReason, Status


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


class PendingChange(BaseModel):
    """A change that was accepted and has no outcome yet."""

    id: Printable
    type: Literal["add", "set", "remove", "clear", "checkout"]
    product: Printable | None = None
    quantity: int | None = None
    since: AwareDatetime


class CartBody(BaseModel):
    """A cart, as `GET /v1/cart` and the frame `cart` show it."""

    user_id: Printable
    version: int
    expires_at: AwareDatetime | None
    total: Money
    lines: tuple[CartLine, ...]
    pending: tuple[PendingChange, ...]


class CartFrame(ServerFrame, CartBody):
    """The whole cart; with the `id` of the frame that asked for it, if one did."""

    type: Literal["cart"]
    id: Printable | None = None
    replayed: bool = False


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


class OrderFrame(ServerFrame):
    """An order of this shopper moved; `id` is that of the request that made it, or that asked for this."""

    type: Literal["order"]
    id: Printable
    order_id: Printable
    status: Status
    order_version: int
    reason: CancelReason | None = None
    replayed: bool = False


class StockFrame(ServerFrame):
    """The stock of a watched product."""

    type: Literal["stock"]
    product: Printable
    available: int
    version: int


class NoticeFrame(ServerFrame):
    """Something for the shopper to read; `GET /v1/notifications` keeps it. The same `notice_id` is the same notice."""

    type: Literal["notice"]
    notice_id: Printable
    template: str
    title: str
    body: str
    cause: Printable | None = None
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
    | OrderFrame
    | NoticeFrame
    | StockFrame
    | Error
)
