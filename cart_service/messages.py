"""The public language of the cart service: what shoppers ask of their cart, and what comes of it.

The data of a response is the frame that a shopper's socket gets, beside the `user_id`. Answers to a read carry the
`session` that asked and are meant for it alone.
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
    """Hold `quantity` more of a product."""

    TYPE: ClassVar[str] = "holdfast.cart.add"
    product: Printable
    quantity: Quantity


class Set(_Request):
    """Make the line of a product exactly `quantity`; 0 takes it away."""

    TYPE: ClassVar[str] = "holdfast.cart.set"
    product: Printable
    quantity: QuantityOrNone


class Remove(_Request):
    """Take a product out of the cart; hidden at once, never refused."""

    TYPE: ClassVar[str] = "holdfast.cart.remove"
    product: Printable


class Clear(_Request):
    """Empty the cart; hidden at once, never refused."""

    TYPE: ClassVar[str] = "holdfast.cart.clear"


class Check(_Request):
    """How much of a product is available, asked in order with the shopper's own requests."""

    TYPE: ClassVar[str] = "holdfast.cart.check"
    product: Printable
    session: Printable


class Read(_Request):
    """The cart, for one session."""

    TYPE: ClassVar[str] = "holdfast.cart.read"
    session: Printable


class Lookup(_Request):
    """The cart and what became of some requests, for one session that comes back after a cut."""

    TYPE: ClassVar[str] = "holdfast.cart.lookup"
    session: Printable
    ids: Annotated[tuple[Printable, ...], Field(max_length=MAX_LOOKUP_IDS)]


class Checkout(_Request):
    """Make an order of the cart at `version`, or of `items`. `order_id` is derived from user and request id."""

    TYPE: ClassVar[str] = "holdfast.cart.checkout"
    order_id: Printable
    version: int | None = None
    items: Items | None = None
    address: Address
    contact: Contact
    payment: Payment
    expect: Expect | None = None

    def fault(self, event: Envelope) -> str | None:
        """An order with another id would be taken by nobody, and its stock would lie held for it."""
        if self.order_id != derived(self.user_id, event.request_id, "order"):
            return "order_id: it is not the UUIDv5 of this shopper's request"
        return None


Change = Add | Set | Remove | Clear | Checkout
"""A request that may change the cart: it is pending until it has its one outcome."""
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
    """`quantity` is what this request got, `line_quantity` the line after it, `expires_at` the cart's."""

    TYPE: ClassVar[str] = "holdfast.cart.held"
    id: Printable
    product: Printable
    quantity: int
    line_quantity: int
    expires_at: Moment
    version: int
    replayed: bool = False


class Refused(_Response):
    """Nothing was done, and why."""

    TYPE: ClassVar[str] = "holdfast.cart.refused"
    id: Printable
    product: Printable | None = None
    reason: RefusalReason
    available: int | None = None
    replayed: bool = False


class Removed(_Response):
    """A line, or with no `product` the whole cart, is gone."""

    TYPE: ClassVar[str] = "holdfast.cart.removed"
    id: Printable
    product: Printable | None = None
    version: int
    replayed: bool = False


class Expired(_Response):
    """The cart came to its end; nobody asked, so it answers no id."""

    TYPE: ClassVar[str] = "holdfast.cart.expired"
    lines: tuple[GivenUp, ...]
    version: int
    replayed: bool = False


class PendingCommit(_Value):
    """What a pending checkout asks of inventory, so that it can be asked again; nothing of it is personal."""

    order_id: Printable
    version: int | None = None
    items: Items | None = None
    expect: Money | None = None


class PendingRequest(_Value):
    """A change that was accepted and has no outcome yet; `commit` stands with a checkout, for the cart's own use."""

    id: Printable
    type: Literal["add", "set", "remove", "clear", "checkout"]
    product: Printable | None = None
    quantity: int | None = None
    since: Moment
    commit: PendingCommit | None = None


class CartView(_Value):
    """A cart as a shopper sees it: a line whose removal is pending is hidden."""

    version: int
    expires_at: Moment | None = None
    lines: tuple[Line, ...] = ()
    pending: tuple[PendingRequest, ...] = ()


class Snapshot(_Response):
    """The answer to `Read`; without a `session` it tells every socket of a change that has no frame of its own."""

    TYPE: ClassVar[str] = "holdfast.cart.snapshot"
    id: Printable | None = None
    session: Printable | None = None
    cart: CartView
    replayed: bool = False


class Availability(_Response):
    """The answer to `Check`; `available` is none for an unknown product."""

    TYPE: ClassVar[str] = "holdfast.cart.availability"
    id: Printable
    session: Printable
    product: Printable
    available: int | None


class Error(_Response):
    """The request was not decided: its id was used before for something else, or a value in it cannot be right."""

    TYPE: ClassVar[str] = "holdfast.cart.error"
    id: Printable
    code: Literal["id_reused", "bad_field"]
    detail: str
    field: str | None = None


class Resumed(_Response):
    """The answer to `Lookup`: the cart, then the outcomes, the pending and the unknown among the ids asked for."""

    TYPE: ClassVar[str] = "holdfast.cart.resumed"
    id: Printable
    session: Printable
    cart: CartView
    outcomes: tuple[Stored, ...] = ()
    pending: tuple[Printable, ...] = ()
    unknown: tuple[Printable, ...] = ()


class Order(_Response):
    """An order of this shopper moved. `id` is the checkout's, or that of the request this answers.

    The first one, `committed` at order version 2, comes from the cart, with inventory's decision; the later ones come
    from the order service.
    """

    TYPE: ClassVar[str] = "holdfast.cart.order"
    id: Printable
    order_id: Printable
    status: Status
    order_version: int
    reason: CancelReason | None = None
    replayed: bool = False


class OrderRefused(_Response):
    """A request about an order could not be done; for whoever waits for `id`, no frame of a socket."""

    TYPE: ClassVar[str] = "holdfast.cart.order-refused"
    id: Printable
    order_id: Printable
    reason: Literal[
        "unknown_order", "not_cancellable", "already_refunded", "refund_too_large", "already_paid", "not_paid"
    ]


class Reservation(_Response):
    """What is held for a reservation of a service; `state` is none when nothing ever was."""

    TYPE: ClassVar[str] = "holdfast.cart.reservation"
    id: Printable
    session: Printable | None = None
    reservation_id: Printable
    state: HoldState | None = None
    lines: tuple[Line, ...] = ()
    replayed: bool = False


class Notice(_Response):
    """Something for this shopper to read, on every socket that is open; kept by the notification service."""

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
