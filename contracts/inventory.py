"""The public language of the inventory service: requests, decisions with their outcomes, and state topics.

An outcome and the shopper's full cart leave together in one `Decided`, under the revision of the transaction that made
them true. Every copy of a cart applies a higher `cart.revision` and ignores any other.
"""

from datetime import timedelta
from typing import Annotated, Any, ClassVar, Final, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, model_validator

from contracts.envelope import Message, MessageRegistry, Timestamp
from contracts.topics import Topic

MAX_QUANTITY: Final = 999
MAX_LINES: Final = 100
MAX_LOOKUP_IDS: Final = 64

REQUESTS: Final = Topic("inventory.requests.v1", keyed_by="user", retention=timedelta(days=7))
RESPONSES: Final = Topic("inventory.responses.v1", keyed_by="user", retention=timedelta(days=7))
STOCK: Final = Topic("inventory.stock.v1", keyed_by="product")
PRODUCTS: Final = Topic("catalogue.products.v1", keyed_by="product")

Identifier = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[ -~]+$")]
"""Ids and product codes: 1 to 64 printable ASCII characters."""
Quantity = Annotated[int, Field(ge=1, le=MAX_QUANTITY)]
QuantityOrZero = Annotated[int, Field(ge=0, le=MAX_QUANTITY)]
"""The quantity of `set`; 0 removes the line."""


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)


class Money(_Value):
    """An amount in integer minor units of an ISO 4217 currency."""

    amount: int
    currency: Annotated[str, Field(pattern=r"^[A-Z]{3}$")]


class Line(_Value):
    """One product in a cart, with the price at which it was granted."""

    product: Identifier
    quantity: Quantity
    price: Money


class Item(_Value):
    """A quantity of a product, requested without a cart."""

    product: Identifier
    quantity: Quantity


class GivenUp(_Value):
    """A cart line that an expiry released."""

    product: Identifier
    quantity: int


class Cart(_Value):
    """A full cart at `revision`; `expires_at` is `None` for an empty cart."""

    revision: int = Field(ge=0)
    expires_at: Timestamp | None = None
    lines: tuple[Line, ...] = ()


# ---- requests -------------------------------------------------------------------------------------------------------


class _Request(Message):
    user_id: Identifier


class Hold(_Request):
    """A request to hold `quantity` more of a product (`add`), or to set the line to it (`set`); all or nothing."""

    TYPE: ClassVar[str] = "holdfast.inventory.hold"
    mode: Literal["add", "set"]
    product: Identifier
    quantity: QuantityOrZero

    @model_validator(mode="after")
    def _require_positive_add(self) -> Self:
        if self.mode == "add" and not self.quantity:
            raise ValueError("quantity: add needs at least 1")
        return self


class Remove(_Request):
    """A request to release all units of one product; never refused."""

    TYPE: ClassVar[str] = "holdfast.inventory.remove"
    product: Identifier


class Clear(_Request):
    """A request to release the whole cart; never refused."""

    TYPE: ClassVar[str] = "holdfast.inventory.clear"


class Expire(_Request):
    """An expiry request: the cart expires if Postgres still says that it was due at `due`."""

    TYPE: ClassVar[str] = "holdfast.inventory.expire"
    due: Timestamp


class Fail(_Request):
    """A request to decide `refused: failed` for a command that could be parsed but not executed."""

    TYPE: ClassVar[str] = "holdfast.inventory.fail"
    command: dict[str, Any]
    """The data of the failed command, with its envelope type as `type`; the log keeps its fingerprint."""


class Check(_Request):
    """A read of a product's availability, in order with the shopper's own requests."""

    TYPE: ClassVar[str] = "holdfast.inventory.check"
    product: Identifier
    session: Identifier


class Snapshot(_Request):
    """A read of the cart. The answer repeats `epoch`."""

    TYPE: ClassVar[str] = "holdfast.inventory.snapshot"
    session: Identifier
    epoch: Identifier


class Lookup(_Request):
    """A read of the stored outcomes of some requests."""

    TYPE: ClassVar[str] = "holdfast.inventory.lookup"
    session: Identifier
    ids: Annotated[tuple[Identifier, ...], Field(max_length=MAX_LOOKUP_IDS)]


Purpose = Literal["order", "reservation"]
"""The owner of holds: an order of the saga, or a service that settles its reservation itself."""
HoldState = Literal["PENDING", "COMMITTED", "CANCELLED"]
"""State of an order's holds: the stock is held (`PENDING`), sold (`COMMITTED`) or released (`CANCELLED`)."""


class Commit(_Request):
    """A request to move holds to an order, or to refuse; all or nothing.

    Without `lines`, all open holds of the cart go to the order at the prices at which they were granted. `version` is
    then the cart's: a cart at another version is refused as `cart_changed`, an empty one as `cart_empty`. With `lines`,
    the cart is left alone and these units are taken from stock at current prices. `expect` is the total that the
    shopper saw; another total is refused as `total_changed`.
    """

    TYPE: ClassVar[str] = "holdfast.inventory.commit"
    order_id: Identifier
    version: int | None = None
    lines: Annotated[tuple[Item, ...], Field(min_length=1, max_length=MAX_LINES)] | None = None
    expect: Money | None = None
    purpose: Purpose = "order"

    @model_validator(mode="after")
    def _require_version_or_lines(self) -> Self:
        if (self.version is None) == (self.lines is None):
            raise ValueError("version: give either the cart's version or lines, not both")
        if self.lines is not None and len({line.product for line in self.lines}) < len(self.lines):
            raise ValueError("lines: each product may be listed once")
        return self


class Sell(_Request):
    """A request to sell an order's holds: units move from `held` to `sold`. Repeats have no effect."""

    TYPE: ClassVar[str] = "holdfast.inventory.sell"
    order_id: Identifier


class ReleaseOrder(_Request):
    """A request to release an order's holds: to the shopper's cart as far as it has room, or to stock."""

    TYPE: ClassVar[str] = "holdfast.inventory.release-order"
    order_id: Identifier
    to: Literal["cart", "shelf"]


class Restock(_Request):
    """A request to take back units sold to an order: lowers `sold` before shipping, raises `received` after it."""

    TYPE: ClassVar[str] = "holdfast.inventory.restock"
    order_id: Identifier
    shipped: bool


class ReadReservation(_Request):
    """A read of the holds of an order or a reservation, and their state."""

    TYPE: ClassVar[str] = "holdfast.inventory.reservation"
    order_id: Identifier
    session: Identifier


Request = (
    Hold
    | Remove
    | Clear
    | Expire
    | Fail
    | Check
    | Snapshot
    | Lookup
    | Commit
    | Sell
    | ReleaseOrder
    | Restock
    | ReadReservation
)
REQUEST_REGISTRY: Final[MessageRegistry[Request]] = MessageRegistry(
    get_args(Request), sources=("/cart", "/inventory", "/orders", "/edge")
)

# ---- outcomes -------------------------------------------------------------------------------------------------------

RefusalReason = Literal[
    "out_of_stock",
    "unknown_product",
    "other_currency",
    "limit",
    "expired",
    "failed",
    "cart_changed",
    "cart_empty",
    "total_changed",
    "payment_unavailable",
]


class Held(_Value):
    """A granted hold: `quantity` is the request's, `line_quantity` the line's after it, `expires_at` the cart's."""

    type: Literal["held"] = "held"
    product: Identifier
    quantity: int
    line_quantity: int
    expires_at: Timestamp
    version: int


class Refused(_Value):
    """A refusal; nothing was changed. `available` is set for `out_of_stock`, `order_id` if an order was requested."""

    type: Literal["refused"] = "refused"
    product: Identifier | None = None
    reason: RefusalReason
    available: int | None = None
    order_id: Identifier | None = None


class Removed(_Value):
    """A removed line, or without `product` the removal of the whole cart."""

    type: Literal["removed"] = "removed"
    product: Identifier | None = None
    version: int


class Expired(_Value):
    """The expiry of a cart, with the lines that it released."""

    type: Literal["expired"] = "expired"
    lines: tuple[GivenUp, ...]
    version: int


class IdReused(_Value):
    """The id was used before for another command, whose outcome stands. `order_id` is that of an order never held."""

    type: Literal["id_reused"] = "id_reused"
    order_id: Identifier | None = None


class BadField(_Value):
    """A field with a value that only the decision could find invalid (`time`: too far in the future)."""

    type: Literal["bad_field"] = "bad_field"
    field: str


class Available(_Value):
    """The answer to `Check`; `available` is `None` for an unknown product."""

    type: Literal["available"] = "available"
    product: Identifier
    available: int | None


class SnapshotTaken(_Value):
    """The answer to `Snapshot`; the cart is in `Decided.cart`."""

    type: Literal["snapshot"] = "snapshot"


class Committed(_Value):
    """The order (or reservation) has these holds, at these prices; `version` is the cart's after it."""

    type: Literal["committed"] = "committed"
    order_id: Identifier
    purpose: Purpose
    lines: tuple[Line, ...]
    total: Money
    version: int


class Sold(_Value):
    """The order's holds are sold."""

    type: Literal["sold"] = "sold"
    order_id: Identifier


class Released(_Value):
    """The order's holds are released; `version` is the cart's after it."""

    type: Literal["released"] = "released"
    order_id: Identifier
    version: int


class Restocked(_Value):
    """The units sold to the order are stock again."""

    type: Literal["restocked"] = "restocked"
    order_id: Identifier


class Reservation(_Value):
    """The holds of an order: the answer to `ReadReservation`, and to a step that their state does not allow.

    `state` is `None` if nothing was ever held for the order.
    """

    type: Literal["reservation"] = "reservation"
    order_id: Identifier
    state: HoldState | None = None
    lines: tuple[Line, ...] = ()


StoredOutcome = Annotated[
    Held | Refused | Removed | Expired | BadField | Committed | Sold | Released | Restocked | Reservation,
    Field(discriminator="type"),
]
"""The one final outcome of a request, as the request log keeps it."""
STORED_OUTCOME_ADAPTER: Final[TypeAdapter[StoredOutcome]] = TypeAdapter(StoredOutcome)
"""Parser of stored outcomes."""


class Stored(_Value):
    """A request with its outcome."""

    id: Identifier
    outcome: StoredOutcome


class LookedUp(_Value):
    """The answer to `Lookup`; `unknown` lists the ids without an outcome."""

    type: Literal["looked_up"] = "looked_up"
    outcomes: tuple[Stored, ...]
    unknown: tuple[Identifier, ...]


Outcome = Annotated[
    Held
    | Refused
    | Removed
    | Expired
    | IdReused
    | BadField
    | Available
    | SnapshotTaken
    | LookedUp
    | Committed
    | Sold
    | Released
    | Restocked
    | Reservation,
    Field(discriminator="type"),
]


class Decided(Message):
    """An outcome with the current full cart. `session` and `epoch` are set on answers to a read."""

    TYPE: ClassVar[str] = "holdfast.inventory.decided"
    user_id: Identifier
    outcome: Outcome
    cart: Cart
    replayed: bool = False
    session: Identifier | None = None
    epoch: Identifier | None = None


RESPONSE_REGISTRY: Final[MessageRegistry[Decided]] = MessageRegistry((Decided,), sources=("/inventory",))

# ---- state topics ---------------------------------------------------------------------------------------------------


class Stock(Message):
    """The stock of a product at `version`; consumers keep the highest version."""

    TYPE: ClassVar[str] = "holdfast.inventory.stock"
    product: Identifier
    available: int
    received: int
    held: int
    sold: int
    version: int


class Product(Message):
    """A product of the catalogue at `version`; a `deleted` one is no longer for sale."""

    TYPE: ClassVar[str] = "holdfast.catalogue.product"
    code: Identifier
    name: Annotated[str, Field(min_length=1, max_length=200)]
    category: str | None = None
    price: Money
    images: tuple[str, ...] = ()
    deleted: bool = False
    version: int


STOCK_REGISTRY: Final[MessageRegistry[Stock]] = MessageRegistry((Stock,), sources=("/inventory",))
PRODUCT_REGISTRY: Final[MessageRegistry[Product]] = MessageRegistry((Product,), sources=("/inventory",))
