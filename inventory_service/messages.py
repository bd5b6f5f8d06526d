"""The public language of the inventory service: what may be asked of it, what it decides, and what it makes known.

An outcome and the shopper's whole cart leave together in one `Decided`, under the revision at which Postgres made them
true. Whoever keeps a copy of a cart takes a higher `cart.revision` and ignores any other.
"""

from datetime import timedelta
from typing import Annotated, Any, ClassVar, Final, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, model_validator

from infrastructure.envelope import Message, Moment, Vocabulary
from infrastructure.topics import Topic

MAX_QUANTITY: Final = 999
MAX_LINES: Final = 100
MAX_LOOKUP_IDS: Final = 64

REQUESTS: Final = Topic("inventory.requests.v1", keyed_by="user", retention=timedelta(days=7))
RESPONSES: Final = Topic("inventory.responses.v1", keyed_by="user", retention=timedelta(days=7))
STOCK: Final = Topic("inventory.stock.v1", keyed_by="product")
PRODUCTS: Final = Topic("catalogue.products.v1", keyed_by="product")

Printable = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[ -~]+$")]
"""Ids and product codes: 1 to 64 printable ASCII characters."""
Quantity = Annotated[int, Field(ge=1, le=MAX_QUANTITY)]
QuantityOrNone = Annotated[int, Field(ge=0, le=MAX_QUANTITY)]
"""The quantity of `set`; 0 takes the line away."""


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)


class Money(_Value):
    """An amount in integer minor units of an ISO 4217 currency."""

    amount: int
    currency: Annotated[str, Field(pattern=r"^[A-Z]{3}$")]


class Line(_Value):
    """One product in a cart, with the price it was granted at."""

    product: Printable
    quantity: Quantity
    price: Money


class Item(_Value):
    """So much of a product, asked for without a cart."""

    product: Printable
    quantity: Quantity


class GivenUp(_Value):
    """A line that an expiry took back."""

    product: Printable
    quantity: int


class Cart(_Value):
    """A whole cart as it is at `revision`; an empty one expires at no time."""

    revision: int = Field(ge=0)
    expires_at: Moment | None = None
    lines: tuple[Line, ...] = ()


# ---- requests -------------------------------------------------------------------------------------------------------


class _Request(Message):
    user_id: Printable


class Hold(_Request):
    """Hold `quantity` more of a product (`add`), or make the line exactly that (`set`); all or nothing."""

    TYPE: ClassVar[str] = "holdfast.inventory.hold"
    mode: Literal["add", "set"]
    product: Printable
    quantity: QuantityOrNone

    @model_validator(mode="after")
    def _to_add_nothing_is_no_request(self) -> Self:
        if self.mode == "add" and not self.quantity:
            raise ValueError("quantity: to add takes at least 1")
        return self


class Remove(_Request):
    """Give back all of one product; never refused."""

    TYPE: ClassVar[str] = "holdfast.inventory.remove"
    product: Printable


class Clear(_Request):
    """Give back the whole cart; never refused."""

    TYPE: ClassVar[str] = "holdfast.inventory.clear"


class Expire(_Request):
    """A knock: expire the cart if Postgres still says it was due at `due`."""

    TYPE: ClassVar[str] = "holdfast.inventory.expire"
    due: Moment


class Fail(_Request):
    """Decide `refused: failed` for a command that could be read but not be carried out."""

    TYPE: ClassVar[str] = "holdfast.inventory.fail"
    command: dict[str, Any]
    """The data of the failed command with its envelope type as `type`: what the log keeps as its content."""


class Check(_Request):
    """How much of a product is available, in order with the shopper's own requests; a read."""

    TYPE: ClassVar[str] = "holdfast.inventory.check"
    product: Printable
    session: Printable


class Snapshot(_Request):
    """The cart as it is; a read. `epoch` comes back as it was sent."""

    TYPE: ClassVar[str] = "holdfast.inventory.snapshot"
    session: Printable
    epoch: Printable


class Lookup(_Request):
    """The stored outcomes of some requests; a read."""

    TYPE: ClassVar[str] = "holdfast.inventory.lookup"
    session: Printable
    ids: Annotated[tuple[Printable, ...], Field(max_length=MAX_LOOKUP_IDS)]


Purpose = Literal["order", "reservation"]
"""Whom holds are for: an order of the saga, or a service that settles its reservation itself."""
HoldState = Literal["PENDING", "COMMITTED", "CANCELLED"]
"""Of the holds of an order: they keep the stock, have been sold, or have been given back."""


class Commit(_Request):
    """Give an order all open holds of the cart, at the prices they were granted at, or refuse.

    With `lines`, the cart is left alone and these are taken from the shelves at today's prices; all or nothing. Else
    `version` is the cart's, and a cart at another one is refused `cart_changed`, an empty one `cart_empty`. `expect` is
    the total that the shopper saw; another one is refused `total_changed`.
    """

    TYPE: ClassVar[str] = "holdfast.inventory.commit"
    order_id: Printable
    version: int | None = None
    lines: Annotated[tuple[Item, ...], Field(min_length=1, max_length=MAX_LINES)] | None = None
    expect: Money | None = None
    purpose: Purpose = "order"

    @model_validator(mode="after")
    def _of_a_cart_or_of_lines(self) -> Self:
        if (self.version is None) == (self.lines is None):
            raise ValueError("version: needs the cart's version, or lines; not both")
        if self.lines is not None and len({line.product for line in self.lines}) < len(self.lines):
            raise ValueError("lines: names a product twice")
        return self


class Sell(_Request):
    """Sell what an order holds: units leave `held` for `sold`. Done once, however often it is asked."""

    TYPE: ClassVar[str] = "holdfast.inventory.sell"
    order_id: Printable


class ReleaseOrder(_Request):
    """Give an order's holds back: to the shopper's cart, as far as it has room, or to the shelves."""

    TYPE: ClassVar[str] = "holdfast.inventory.release-order"
    order_id: Printable
    to: Literal["cart", "shelf"]


class Restock(_Request):
    """Take back what was sold to an order. Before it was shipped that lowers `sold`; after, it raises `received`."""

    TYPE: ClassVar[str] = "holdfast.inventory.restock"
    order_id: Printable
    shipped: bool


class ReadReservation(_Request):
    """What is held for an order or a reservation, and its state; a read."""

    TYPE: ClassVar[str] = "holdfast.inventory.reservation"
    order_id: Printable
    session: Printable


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
REQUEST_VOCABULARY: Final[Vocabulary[Request]] = Vocabulary(
    get_args(Request), sources=("/cart", "/inventory", "/orders", "/edge")
)

# ---- outcomes -------------------------------------------------------------------------------------------------------

RefusalReason = Literal[
    "out_of_stock",
    "unknown_product",
    "limit",
    "expired",
    "failed",
    "cart_changed",
    "cart_empty",
    "total_changed",
    "payment_unavailable",
]


class Held(_Value):
    """Granted: `quantity` is what was asked for, `line_quantity` the line after it, `expires_at` the cart's."""

    type: Literal["held"] = "held"
    product: Printable
    quantity: int
    line_quantity: int
    expires_at: Moment
    version: int


class Refused(_Value):
    """Nothing was done. `available` is there when stock was the reason, `order_id` when an order was to be made."""

    type: Literal["refused"] = "refused"
    product: Printable | None = None
    reason: RefusalReason
    available: int | None = None
    order_id: Printable | None = None


class Removed(_Value):
    """A line, or with no `product` the whole cart, is gone."""

    type: Literal["removed"] = "removed"
    product: Printable | None = None
    version: int


class Expired(_Value):
    """The cart came to its end and gave its lines back."""

    type: Literal["expired"] = "expired"
    lines: tuple[GivenUp, ...]
    version: int


class IdReused(_Value):
    """This id was decided for another content; that first outcome stands. A commit's order is then never held."""

    type: Literal["id_reused"] = "id_reused"
    order_id: Printable | None = None


class BadField(_Value):
    """The request carries a value that only the decision could find wrong (`time`: ahead of the clock)."""

    type: Literal["bad_field"] = "bad_field"
    field: str


class Available(_Value):
    """The answer to `Check`; `available` is none for an unknown product."""

    type: Literal["available"] = "available"
    product: Printable
    available: int | None


class SnapshotTaken(_Value):
    """The answer to `Snapshot`: the cart beside it is what was asked for."""

    type: Literal["snapshot"] = "snapshot"


class Committed(_Value):
    """The order (or reservation) has these holds, at these prices; `version` is the cart's after it."""

    type: Literal["committed"] = "committed"
    order_id: Printable
    purpose: Purpose
    lines: tuple[Line, ...]
    total: Money
    version: int


class Sold(_Value):
    """What the order held is sold."""

    type: Literal["sold"] = "sold"
    order_id: Printable


class Released(_Value):
    """The order's holds are given back; `version` is the cart's after it."""

    type: Literal["released"] = "released"
    order_id: Printable
    version: int


class Restocked(_Value):
    """What was sold to the order is stock again."""

    type: Literal["restocked"] = "restocked"
    order_id: Printable


class Reservation(_Value):
    """What is held for an order. The answer to `ReadReservation`, and to a step that its `state` does not allow.

    `state` is none when nothing was ever held for it.
    """

    type: Literal["reservation"] = "reservation"
    order_id: Printable
    state: HoldState | None = None
    lines: tuple[Line, ...] = ()


StoredOutcome = Annotated[
    Held | Refused | Removed | Expired | BadField | Committed | Sold | Released | Restocked | Reservation,
    Field(discriminator="type"),
]
"""What the request log keeps: the one terminal outcome of a request."""
STORED_OUTCOME: Final[TypeAdapter[StoredOutcome]] = TypeAdapter(StoredOutcome)
"""Reads it back."""


class Stored(_Value):
    """A request that has an outcome."""

    id: Printable
    outcome: StoredOutcome


class LookedUp(_Value):
    """The answer to `Lookup`: `unknown` are the ids that have no outcome."""

    type: Literal["looked_up"] = "looked_up"
    outcomes: tuple[Stored, ...]
    unknown: tuple[Printable, ...]


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
    """An outcome, with the whole cart as it is now. `session` and `epoch` stand on answers to a read."""

    TYPE: ClassVar[str] = "holdfast.inventory.decided"
    user_id: Printable
    outcome: Outcome
    cart: Cart
    replayed: bool = False
    session: Printable | None = None
    epoch: Printable | None = None


RESPONSE_VOCABULARY: Final[Vocabulary[Decided]] = Vocabulary((Decided,), sources=("/inventory",))

# ---- state topics ---------------------------------------------------------------------------------------------------


class Stock(Message):
    """The stock of a product at `version`; readers keep the greatest."""

    TYPE: ClassVar[str] = "holdfast.inventory.stock"
    product: Printable
    available: int
    received: int
    held: int
    sold: int
    version: int


class Product(Message):
    """A product as the catalogue shows it at `version`; `deleted` ones are no longer for sale."""

    TYPE: ClassVar[str] = "holdfast.catalogue.product"
    code: Printable
    name: Annotated[str, Field(min_length=1, max_length=200)]
    category: str | None = None
    price: Money
    images: tuple[str, ...] = ()
    deleted: bool = False
    version: int


STOCK_VOCABULARY: Final[Vocabulary[Stock]] = Vocabulary((Stock,), sources=("/inventory",))
PRODUCT_VOCABULARY: Final[Vocabulary[Product]] = Vocabulary((Product,), sources=("/inventory",))
