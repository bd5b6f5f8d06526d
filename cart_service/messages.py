"""The public language of the cart service: requests of shoppers, and responses to them.

The fields of a response are those of the frame that a shopper's socket gets, plus `user_id`. Answers to a read carry
the `session` that sent the read, and are delivered to that session only.
"""

from datetime import timedelta
from typing import Annotated, ClassVar, Final, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

from infrastructure.envelope import Envelope, Message, Moment, Vocabulary
from infrastructure.ids import derived
from infrastructure.topics import Topic
from inventory_service.messages import (
    MAX_LOOKUP_IDS,
    GivenUp,
    HoldState,
    Line,
    Money,
    Printable,
    Quantity,
    QuantityOrNone,
    RefusalReason,
    Stored,
)
from order_service.messages import Address, CancelReason, Contact, Expect, Items, Payment, Status

REQUESTS: Final = Topic("cart.requests.v1", keyed_by="user", retention=timedelta(days=7))
RESPONSES: Final = Topic("cart.responses.v1", keyed_by="user", retention=timedelta(days=7))

# ---- requests -------------------------------------------------------------------------------------------------------


class _Request(Message):
    user_id: Printable


class Add(_Request):
    """A request to hold `quantity` more of a product."""

    TYPE: ClassVar[str] = "holdfast.cart.add"
    product: Printable
    quantity: Quantity


class Set(_Request):
    """A request to make the line of a product exactly `quantity`; 0 removes the line."""

    TYPE: ClassVar[str] = "holdfast.cart.set"
    product: Printable
    quantity: QuantityOrNone


class Remove(_Request):
    """A request to take a product out of the cart; hidden at once, never refused."""

    TYPE: ClassVar[str] = "holdfast.cart.remove"
    product: Printable


class Clear(_Request):
    """A request to empty the cart; hidden at once, never refused."""

    TYPE: ClassVar[str] = "holdfast.cart.clear"


class Check(_Request):
    """A read of a product's availability, in order with the shopper's own requests."""

    TYPE: ClassVar[str] = "holdfast.cart.check"
    product: Printable
    session: Printable


class Read(_Request):
    """A read of the cart, for one session."""

    TYPE: ClassVar[str] = "holdfast.cart.read"
    session: Printable


class Lookup(_Request):
    """A read of the cart and of some requests' outcomes, for one session that reconnects."""

    TYPE: ClassVar[str] = "holdfast.cart.lookup"
    session: Printable
    ids: Annotated[tuple[Printable, ...], Field(max_length=MAX_LOOKUP_IDS)]


class Checkout(_Request):
    """A request to order the cart at `version`, or `items`. `order_id` is derived from user id and request id."""

    TYPE: ClassVar[str] = "holdfast.cart.checkout"
    order_id: Printable
    version: int | None = None
    items: Items | None = None
    address: Address
    contact: Contact
    payment: Payment
    expect: Expect | None = None

    def fault(self, event: Envelope) -> str | None:
        """Return the error in `order_id`, or `None`.

        No service would find an order under another id, and its stock would stay held.
        """
        if self.order_id != derived(self.user_id, event.request_id, "order"):
            return "order_id: not the UUIDv5 derived from user id and request id"
        return None


Change = Add | Set | Remove | Clear | Checkout
"""A request that may change the cart. It is pending until its one outcome arrives."""
Request = Change | Check | Read | Lookup
REQUEST_VOCABULARY: Final[Vocabulary[Request]] = Vocabulary(
    (Add, Set, Remove, Clear, Checkout, Check, Read, Lookup), sources=("/edge",)
)

# ---- responses ------------------------------------------------------------------------------------------------------


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)


class _Response(Message):
    user_id: Printable


class Held(_Response):
    """A granted hold: `quantity` is the request's, `line_quantity` the line's after it, `expires_at` the cart's."""

    TYPE: ClassVar[str] = "holdfast.cart.held"
    id: Printable
    product: Printable
    quantity: int
    line_quantity: int
    expires_at: Moment
    version: int
    replayed: bool = False


class Refused(_Response):
    """A refusal with its reason; nothing was changed."""

    TYPE: ClassVar[str] = "holdfast.cart.refused"
    id: Printable
    product: Printable | None = None
    reason: RefusalReason
    available: int | None = None
    replayed: bool = False


class Removed(_Response):
    """A removed line, or without `product` the removal of the whole cart."""

    TYPE: ClassVar[str] = "holdfast.cart.removed"
    id: Printable
    product: Printable | None = None
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

    order_id: Printable
    version: int | None = None
    items: Items | None = None
    expect: Money | None = None


class PendingRequest(_Value):
    """An accepted change without an outcome. `commit` belongs to a checkout and is internal to the cart service."""

    id: Printable
    type: Literal["add", "set", "remove", "clear", "checkout"]
    product: Printable | None = None
    quantity: int | None = None
    since: Moment
    commit: PendingCommit | None = None


class CartView(_Value):
    """A cart as its shopper sees it: lines with a pending removal are hidden."""

    version: int
    expires_at: Moment | None = None
    lines: tuple[Line, ...] = ()
    pending: tuple[PendingRequest, ...] = ()


class Snapshot(_Response):
    """The answer to `Read`; without `session`, the full cart for every socket, after a change without a frame type."""

    TYPE: ClassVar[str] = "holdfast.cart.snapshot"
    id: Printable | None = None
    session: Printable | None = None
    cart: CartView
    replayed: bool = False


class Availability(_Response):
    """The answer to `Check`; `available` is `None` for an unknown product."""

    TYPE: ClassVar[str] = "holdfast.cart.availability"
    id: Printable
    session: Printable
    product: Printable
    available: int | None


class Error(_Response):
    """A request without a decision: its id was used before for another request, or a value in it is invalid."""

    TYPE: ClassVar[str] = "holdfast.cart.error"
    id: Printable
    code: Literal["id_reused", "bad_field"]
    detail: str
    field: str | None = None


class Resumed(_Response):
    """The answer to `Lookup`: the cart, and which of the requested ids have outcomes, are pending or are unknown."""

    TYPE: ClassVar[str] = "holdfast.cart.resumed"
    id: Printable
    session: Printable
    cart: CartView
    outcomes: tuple[Stored, ...] = ()
    pending: tuple[Printable, ...] = ()
    unknown: tuple[Printable, ...] = ()


class Order(_Response):
    """A new state of an order of this shopper. `id` is that of the checkout, or of the request that this answers.

    The cart service sends the first one, `committed` at order version 2, with inventory's decision. The order service
    sends the later ones.
    """

    TYPE: ClassVar[str] = "holdfast.cart.order"
    id: Printable
    order_id: Printable
    status: Status
    order_version: int
    reason: CancelReason | None = None
    replayed: bool = False


class OrderRefused(_Response):
    """The refusal of a request about an order, for the HTTP request that waits for `id`; never sent to a socket."""

    TYPE: ClassVar[str] = "holdfast.cart.order-refused"
    id: Printable
    order_id: Printable
    reason: Literal[
        "unknown_order", "not_cancellable", "already_refunded", "refund_too_large", "already_paid", "not_paid"
    ]


class Reservation(_Response):
    """The holds of a service's reservation; `state` is `None` if nothing was ever held for it."""

    TYPE: ClassVar[str] = "holdfast.cart.reservation"
    id: Printable
    session: Printable | None = None
    reservation_id: Printable
    state: HoldState | None = None
    lines: tuple[Line, ...] = ()
    replayed: bool = False


class Notice(_Response):
    """A message for this shopper to read, for every open socket; the notification service keeps it."""

    TYPE: ClassVar[str] = "holdfast.cart.notice"
    notice_id: Printable
    template: str
    title: str
    body: str
    cause: Printable | None = None


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
RESPONSE_VOCABULARY: Final[Vocabulary[Response]] = Vocabulary(
    get_args(Response), sources=("/cart", "/orders", "/notifications")
)
