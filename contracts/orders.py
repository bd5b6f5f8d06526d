"""Contract of the order service: requests about an order, and the events of an order.

An order is a stream of events, numbered by `version` from 1 on, each with the `status` after it. Events carry ids only:
the address and the contact appear in `Place` alone, on a topic kept for seven days.
"""

from datetime import timedelta
from typing import Annotated, ClassVar, Final, Literal, Self, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from contracts.envelope import Message, MessageRegistry
from contracts.inventory import MAX_LINES, Identifier, Item, Line, Money
from contracts.topics import Topic

REQUESTS: Final = Topic("orders.requests.v1", keyed_by="order", retention=timedelta(days=7))
EVENTS: Final = Topic("orders.events.v1", keyed_by="order", retention=timedelta(days=90))

Status = Literal["placed", "committed", "paid", "confirmed", "shipped", "delivered", "cancelled"]
CancelReason = Literal[
    "cart_changed",
    "cart_empty",
    "total_changed",
    "expired",
    "out_of_stock",
    "unknown_product",
    "other_currency",
    "limit",
    "declined",
    "payment_unavailable",
    "wrong_amount",
    "cancelled",
    "delivery_failed",
    "failed",
]
"""Why an order was cancelled: a refused commit, a failed payment, its shopper (`cancelled`), or a failed delivery."""

COMMITTED_VERSION: Final = 2
"""Version of the event that records inventory's decision: `Committed`, or `Cancelled` after a refusal.

The cart service reports an order to its shopper up to this version, the order service from the next version on.
"""


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)


# Control characters are rejected: Postgres cannot store all of them, and a parcel label cannot print them.
_LINE: Final = r"^[^\x00-\x1f\x7f]*$"
_Text = Annotated[str, Field(min_length=1, max_length=200, pattern=_LINE)]


class Address(_Value):
    """The delivery address of an order; `country` is an ISO 3166-1 alpha-2 code."""

    name: _Text
    line1: _Text
    line2: Annotated[str, Field(max_length=200, pattern=_LINE)] | None = None
    city: _Text
    postal_code: Annotated[str, Field(min_length=1, max_length=20, pattern=_LINE)]
    country: Annotated[str, Field(pattern=r"^[A-Z]{2}$")]


class Contact(_Value):
    """The contact data for messages about an order, as it is stored and sent between services.

    The edge accepts less: it parses both fields by `contracts.addresses`. Orders of earlier versions were accepted
    without that, and stay readable.
    """

    email: Annotated[str, Field(max_length=254, pattern=r"^[^\x00-\x1f\x7f]+@[^@\s\x00-\x1f\x7f]+$")]
    phone: Annotated[str, Field(max_length=32, pattern=r"^\+?[0-9 ()/-]{3,32}$")] | None = None


def is_probable_card_number(text: str) -> bool:
    """Return True if `text` is 13 to 19 digits, grouped or not, with a valid check digit (ISO/IEC 7812, Luhn)."""
    digits = text.replace(" ", "").replace("-", "")
    if not (digits.isascii() and digits.isdigit() and 13 <= len(digits) <= 19):  # noqa: PLR2004 - as the standard says
        return False
    doubled = (sum(divmod(int(digit) * 2, 10)) for digit in digits[-2::-2])
    return (sum(map(int, digits[-1::-2])) + sum(doubled)) % 10 == 0


def _no_card_number(token: str) -> str:
    if is_probable_card_number(token):
        raise ValueError("this looks like a card number: send it to the payment provider, and its payment token here")
    return token


Token = Annotated[Identifier, AfterValidator(_no_card_number)]
"""The provider's token for a means of payment; a card number is rejected."""


class Payment(_Value):
    """The means of payment of an order."""

    token: Token


class Expect(_Value):
    """The total that the shopper saw; the checkout is refused if the total differs."""

    total: Money


Items = Annotated[tuple[Item, ...], Field(min_length=1, max_length=MAX_LINES)]

# ---- requests -------------------------------------------------------------------------------------------------------


class _Request(Message):
    KEY: ClassVar[str] = "order_id"
    order_id: Identifier
    user_id: Identifier


class Place(_Request):
    """Request: create an order from the cart at `version`, or from `items`.

    `order_id` is derived from the user id and the request id.
    """

    TYPE: ClassVar[str] = "holdfast.orders.place"
    version: int | None = None
    items: Items | None = None
    address: Address
    contact: Contact
    payment: Payment
    expect: Expect | None = None

    @model_validator(mode="after")
    def _requires_version_or_items(self) -> Self:
        if self.version is None and self.items is None:
            raise ValueError("version: give either the cart's version or items")
        return self


class Cancel(_Request):
    """Request by the shopper or support: cancel an order that is not shipped yet. The reply is on `cart.responses`."""

    TYPE: ClassVar[str] = "holdfast.orders.cancel"


def _positive(money: Money) -> Money:
    if money.amount <= 0:
        raise ValueError("amount: must be greater than zero")
    return money


class Refund(_Request):
    """Request by support: refund `amount`, by default all that is left. The reply is on `cart.responses`."""

    TYPE: ClassVar[str] = "holdfast.orders.refund"
    amount: Annotated[Money, AfterValidator(_positive)] | None = None


class Pay(_Request):
    """Request: retry the payment of an order at once if it is still open."""

    TYPE: ClassVar[str] = "holdfast.orders.pay"


Request = Place | Cancel | Refund | Pay
REQUEST_REGISTRY: Final[MessageRegistry[Request]] = MessageRegistry(get_args(Request), sources=("/cart", "/edge"))

# ---- events ---------------------------------------------------------------------------------------------------------


class _Event(Message):
    KEY: ClassVar[str] = "order_id"
    order_id: Identifier
    user_id: Identifier
    version: int = Field(ge=1)
    status: Status


class Placed(_Event):
    """Event 1 of every order: a checkout was requested under `request_id`, with `expect` as the expected total."""

    TYPE: ClassVar[str] = "holdfast.orders.placed"
    request_id: Identifier
    cart_version: int | None = None
    items: Items | None = None
    expect: Money | None = None


class Committed(_Event):
    """Event: the stock of the order is held, at these prices."""

    TYPE: ClassVar[str] = "holdfast.orders.committed"
    lines: tuple[Line, ...]
    total: Money


class Captured(_Event):
    """Event: the provider captured the payment."""

    TYPE: ClassVar[str] = "holdfast.orders.captured"
    payment_id: Identifier
    amount: Money


class Confirmed(_Event):
    """Event: the stock of the order is sold, so a parcel must be booked."""

    TYPE: ClassVar[str] = "holdfast.orders.confirmed"


class Booked(_Event):
    """Event: a carrier accepted the booking of the parcel."""

    TYPE: ClassVar[str] = "holdfast.orders.booked"
    shipment_id: Identifier
    carrier: str
    tracking: str


class Shipped(_Event):
    """Event: the parcel is in transit, so the order can no longer be cancelled."""

    TYPE: ClassVar[str] = "holdfast.orders.shipped"
    shipment_id: Identifier
    carrier: str
    tracking: str


class Delivered(_Event):
    """Event: the parcel arrived. The last event of an order, except for refunds."""

    TYPE: ClassVar[str] = "holdfast.orders.delivered"


class Cancelling(_Event):
    """Event: the cancellation of the order began. Its steps are undone in reverse order, then it is cancelled."""

    TYPE: ClassVar[str] = "holdfast.orders.cancelling"
    reason: CancelReason


class Undone(_Event):
    """Event: one step was undone (parcel called off, sale restocked, charge voided or refunded, holds released)."""

    TYPE: ClassVar[str] = "holdfast.orders.undone"
    step: Literal["delivery", "sale", "payment", "holds"]


class RefundAsked(_Event):
    """Event: a refund is requested from the provider under the idempotency key `refund_id`."""

    TYPE: ClassVar[str] = "holdfast.orders.refund-asked"
    refund_id: Identifier
    amount: Money


class Refunded(_Event):
    """Event: the provider refunded `amount`; `refunded` is the sum of all refunds so far."""

    TYPE: ClassVar[str] = "holdfast.orders.refunded"
    refund_id: Identifier
    amount: Money
    refunded: Money


class Cancelled(_Event):
    """Event: the order is cancelled and every step is undone. `refunded` is the captured amount that was refunded.

    It is the last event, unless a late capture must be refunded.
    """

    TYPE: ClassVar[str] = "holdfast.orders.cancelled"
    reason: CancelReason
    refunded: Money | None = None


Event = (
    Placed
    | Committed
    | Captured
    | Confirmed
    | Booked
    | Shipped
    | Delivered
    | Cancelling
    | Undone
    | RefundAsked
    | Refunded
    | Cancelled
)
EVENT_REGISTRY: Final[MessageRegistry[Event]] = MessageRegistry(get_args(Event), sources=("/orders",))
