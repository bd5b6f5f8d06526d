"""The public language of the cart service: requests of shoppers, and responses to them.

The fields of a response are those of the frame that a shopper's socket gets, plus `user_id`. Answers to a read carry
the `session` that sent the read, and are delivered to that session only.
"""

from datetime import timedelta
from typing import Annotated, ClassVar, Final, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

from contracts.envelope import Envelope, Message, MessageRegistry, Timestamp
from contracts.ids import derive_id
from contracts.inventory import (
    MAX_LOOKUP_IDS,
    GivenUp,
    HoldState,
    Identifier,
    Line,
    Money,
    Quantity,
    QuantityOrZero,
    RefusalReason,
    Stored,
)
from contracts.orders import Address, CancelReason, Contact, Expect, Items, Payment, Status
from contracts.topics import Topic

REQUESTS: Final = Topic("cart.requests.v1", keyed_by="user", retention=timedelta(days=7))
RESPONSES: Final = Topic("cart.responses.v1", keyed_by="user", retention=timedelta(days=7))

# ---- requests -------------------------------------------------------------------------------------------------------


class _Request(Message):
    user_id: Identifier


class Add(_Request):
    """A request to hold `quantity` more of a product."""

    TYPE: ClassVar[str] = "holdfast.cart.add"
    product: Identifier
    quantity: Quantity


class Set(_Request):
    """A request to make the line of a product exactly `quantity`; 0 removes the line."""

    TYPE: ClassVar[str] = "holdfast.cart.set"
    product: Identifier
    quantity: QuantityOrZero


class Remove(_Request):
    """A request to take a product out of the cart; hidden at once, never refused."""

    TYPE: ClassVar[str] = "holdfast.cart.remove"
    product: Identifier


class Clear(_Request):
    """A request to empty the cart; hidden at once, never refused."""

    TYPE: ClassVar[str] = "holdfast.cart.clear"


class Check(_Request):
    """A read of a product's availability, in order with the shopper's own requests."""

    TYPE: ClassVar[str] = "holdfast.cart.check"
    product: Identifier
    session: Identifier


class Read(_Request):
    """A read of the cart, for one session."""

    TYPE: ClassVar[str] = "holdfast.cart.read"
    session: Identifier


class Lookup(_Request):
    """A read of the cart and of some requests' outcomes, for one session that reconnects."""

    TYPE: ClassVar[str] = "holdfast.cart.lookup"
    session: Identifier
    ids: Annotated[tuple[Identifier, ...], Field(max_length=MAX_LOOKUP_IDS)]


class Checkout(_Request):
    """A request to order the cart at `version`, or `items`. `order_id` is derived from user id and request id."""

    TYPE: ClassVar[str] = "holdfast.cart.checkout"
    order_id: Identifier
    version: int | None = None
    items: Items | None = None
    address: Address
    contact: Contact
    payment: Payment
    expect: Expect | None = None

    def contradiction(self, event: Envelope) -> str | None:
        """Return the error in `order_id`, or `None`.

        No service would find an order under another id, and its stock would stay held.
        """
        if self.order_id != derive_id(self.user_id, event.request_id, "order"):
            return "order_id: not the UUIDv5 derived from user id and request id"
        return None


Change = Add | Set | Remove | Clear | Checkout
"""A request that may change the cart. It is pending until its one outcome arrives."""
Request = Change | Check | Read | Lookup
REQUEST_REGISTRY: Final[MessageRegistry[Request]] = MessageRegistry(
    (Add, Set, Remove, Clear, Checkout, Check, Read, Lookup), sources=("/edge",)
)

# ---- responses ------------------------------------------------------------------------------------------------------


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)


class _Response(Message):
    user_id: Identifier


class Held(_Response):
    """A granted hold: `quantity` is the request's, `line_quantity` the line's after it, `expires_at` the cart's."""

    TYPE: ClassVar[str] = "holdfast.cart.held"
    id: Identifier
    product: Identifier
    quantity: int
    line_quantity: int
    expires_at: Timestamp
    version: int
    replayed: bool = False


class Refused(_Response):
    """A refusal with its reason; nothing was changed."""

    TYPE: ClassVar[str] = "holdfast.cart.refused"
    id: Identifier
    product: Identifier | None = None
    reason: RefusalReason
    available: int | None = None
    replayed: bool = False


class Removed(_Response):
    """A removed line, or without `product` the removal of the whole cart."""

    TYPE: ClassVar[str] = "holdfast.cart.removed"
    id: Identifier
    product: Identifier | None = None
    version: int
    replayed: bool = False


class Expired(_Response):
    """The expiry of the cart. It answers no request, so it has no id."""

    TYPE: ClassVar[str] = "holdfast.cart.expired"
    lines: tuple[GivenUp, ...]
    version: int
    replayed: bool = False


class PendingCommit(_Value):
    """The inventory request of a pending checkout, kept for retries; it contains no personal data."""

    order_id: Identifier
    version: int | None = None
    items: Items | None = None
    expect: Money | None = None


class PendingRequest(_Value):
    """An accepted change without an outcome. `commit` belongs to a checkout and is internal to the cart service."""

    id: Identifier
    type: Literal["add", "set", "remove", "clear", "checkout"]
    product: Identifier | None = None
    quantity: int | None = None
    since: Timestamp
    commit: PendingCommit | None = None


class CartView(_Value):
    """A cart as its shopper sees it: lines with a pending removal are hidden."""

    version: int
    expires_at: Timestamp | None = None
    lines: tuple[Line, ...] = ()
    pending: tuple[PendingRequest, ...] = ()


class Snapshot(_Response):
    """The answer to `Read`; without `session`, the full cart for every socket, after a change without a frame type."""

    TYPE: ClassVar[str] = "holdfast.cart.snapshot"
    id: Identifier | None = None
    session: Identifier | None = None
    cart: CartView
    replayed: bool = False


class Availability(_Response):
    """The answer to `Check`; `available` is `None` for an unknown product."""

    TYPE: ClassVar[str] = "holdfast.cart.availability"
    id: Identifier
    session: Identifier
    product: Identifier
    available: int | None


class Error(_Response):
    """A request without a decision: its id was used before for another request, or a value in it is invalid."""

    TYPE: ClassVar[str] = "holdfast.cart.error"
    id: Identifier
    code: Literal["id_reused", "bad_field"]
    detail: str
    field: str | None = None


class Resumed(_Response):
    """The answer to `Lookup`: the cart, and which of the requested ids have outcomes, are pending or are unknown."""

    TYPE: ClassVar[str] = "holdfast.cart.resumed"
    id: Identifier
    session: Identifier
    cart: CartView
    outcomes: tuple[Stored, ...] = ()
    pending: tuple[Identifier, ...] = ()
    unknown: tuple[Identifier, ...] = ()


class Order(_Response):
    """A new state of an order of this shopper. `id` is that of the checkout, or of the request that this answers.

    The cart service sends the first one, `committed` at order version 2, with inventory's decision. The order service
    sends the later ones.
    """

    TYPE: ClassVar[str] = "holdfast.cart.order"
    id: Identifier
    order_id: Identifier
    status: Status
    order_version: int
    reason: CancelReason | None = None
    replayed: bool = False


class OrderRefused(_Response):
    """The refusal of a request about an order, for the HTTP request that waits for `id`; never sent to a socket."""

    TYPE: ClassVar[str] = "holdfast.cart.order-refused"
    id: Identifier
    order_id: Identifier
    reason: Literal[
        "unknown_order", "not_cancellable", "already_refunded", "refund_too_large", "already_paid", "not_paid"
    ]


class Reservation(_Response):
    """The holds of a service's reservation; `state` is `None` if nothing was ever held for it."""

    TYPE: ClassVar[str] = "holdfast.cart.reservation"
    id: Identifier
    session: Identifier | None = None
    reservation_id: Identifier
    state: HoldState | None = None
    lines: tuple[Line, ...] = ()
    replayed: bool = False


class Notice(_Response):
    """A message for this shopper to read, for every open socket; the notification service keeps it."""

    TYPE: ClassVar[str] = "holdfast.cart.notice"
    notice_id: Identifier
    template: str
    title: str
    body: str
    cause: Identifier | None = None


Response = (
    Held
    | Refused
    | Removed
    | Expired
    | Snapshot
    | Availability
    | Error
    | Resumed
    | Order
    | OrderRefused
    | Reservation
    | Notice
)
RESPONSE_REGISTRY: Final[MessageRegistry[Response]] = MessageRegistry(
    get_args(Response), sources=("/cart", "/orders", "/notifications")
)
