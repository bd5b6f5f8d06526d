"""The public language of the order service: what may be asked of an order, and what became of it.

An order is a stream of events, `version` 1, 2, 3 …, each with the `status` after it. Events carry ids; where the parcel
goes and how the shopper is reached stands only in `Place`, on a topic kept for seven days.
"""

from datetime import timedelta
from typing import Annotated, ClassVar, Final, Literal, Self, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from infrastructure.envelope import Message, Vocabulary
from infrastructure.topics import Topic
from inventory_service.messages import MAX_LINES, Item, Line, Money, Printable

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
    "limit",
    "declined",
    "payment_unavailable",
    "wrong_amount",
    "cancelled",
    "delivery_failed",
    "failed",
]
"""Why an order was cancelled: the refusal of its commit, its payment, its shopper (`cancelled`) or its parcel."""


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)


# Neither a database nor a label takes a control character.
_LINE: Final = r"^[^\x00-\x1f\x7f]*$"
_WORD: Final = r"[^@\s\x00-\x1f\x7f]+"
_Text = Annotated[str, Field(min_length=1, max_length=200, pattern=_LINE)]


class Address(_Value):
    """Where a parcel goes; `country` is an ISO 3166-1 alpha-2 code."""

    name: _Text
    line1: _Text
    line2: Annotated[str, Field(max_length=200, pattern=_LINE)] | None = None
    city: _Text
    postal_code: Annotated[str, Field(min_length=1, max_length=20, pattern=_LINE)]
    country: Annotated[str, Field(pattern=r"^[A-Z]{2}$")]


class Contact(_Value):
    """How a shopper is reached about an order."""

    email: Annotated[str, Field(max_length=254, pattern=rf"^{_WORD}@{_WORD}\.{_WORD}$")]
    phone: Annotated[str, Field(max_length=32, pattern=r"^\+?[0-9 ()/-]{3,32}$")] | None = None


def looks_like_a_card_number(text: str) -> bool:
    """Whether `text` is 13 to 19 digits, grouped or not, with a right check digit (ISO/IEC 7812, Luhn)."""
    digits = text.replace(" ", "").replace("-", "")
    if not (digits.isascii() and digits.isdigit() and 13 <= len(digits) <= 19):  # noqa: PLR2004 - as the standard says
        return False
    doubled = (sum(divmod(int(digit) * 2, 10)) for digit in digits[-2::-2])
    return (sum(map(int, digits[-1::-2])) + sum(doubled)) % 10 == 0


def _no_card_number(token: str) -> str:
    if looks_like_a_card_number(token):
        raise ValueError("this looks like a card number: give it to the payment provider, and us the token for it")
    return token


Token = Annotated[Printable, AfterValidator(_no_card_number)]
"""What stands for a means of payment with the provider; never a card number."""


class Payment(_Value):
    """How an order is paid."""

    token: Token


class Expect(_Value):
    """What the shopper saw: another total is refused."""

    total: Money


Items = Annotated[tuple[Item, ...], Field(min_length=1, max_length=MAX_LINES)]

# ---- requests -------------------------------------------------------------------------------------------------------


class _Request(Message):
    KEY: ClassVar[str] = "order_id"
    order_id: Printable
    user_id: Printable


class Place(_Request):
    """Make an order of the cart at `version`, or of `items`. `order_id` is derived from user and request id."""

    TYPE: ClassVar[str] = "holdfast.orders.place"
    version: int | None = None
    items: Items | None = None
    address: Address
    contact: Contact
    payment: Payment
    expect: Expect | None = None

    @model_validator(mode="after")
    def _of_a_cart_or_of_items(self) -> Self:
        if self.version is None and self.items is None:
            raise ValueError("version: needs the cart's version, or items")
        return self


class Cancel(_Request):
    """The shopper, or support, wants it no more; possible until it is shipped. Answered on `cart.responses`."""

    TYPE: ClassVar[str] = "holdfast.orders.cancel"


def _above_zero(money: Money) -> Money:
    if money.amount <= 0:
        raise ValueError("amount: must be above zero")
    return money


class Refund(_Request):
    """Support gives money back: `amount`, or without one all that is left. Answered on `cart.responses`."""

    TYPE: ClassVar[str] = "holdfast.orders.refund"
    amount: Annotated[Money, AfterValidator(_above_zero)] | None = None


class Pay(_Request):
    """Ask the provider again now, for an order whose payment is still open."""

    TYPE: ClassVar[str] = "holdfast.orders.pay"


Request = Place | Cancel | Refund | Pay
REQUEST_VOCABULARY: Final[Vocabulary[Request]] = Vocabulary(get_args(Request), sources=("/cart", "/edge"))

# ---- events ---------------------------------------------------------------------------------------------------------


class _Event(Message):
    KEY: ClassVar[str] = "order_id"
    order_id: Printable
    user_id: Printable
    version: int = Field(ge=1)
    status: Status


class Placed(_Event):
    """The stream's first: an order is wanted. `request_id` is that of the checkout, `expect` the total it named."""

    TYPE: ClassVar[str] = "holdfast.orders.placed"
    request_id: Printable
    cart_version: int | None = None
    items: Items | None = None
    expect: Money | None = None


class Committed(_Event):
    """Its stock is held for it, at these prices."""

    TYPE: ClassVar[str] = "holdfast.orders.committed"
    lines: tuple[Line, ...]
    total: Money


class Captured(_Event):
    """The money is there."""

    TYPE: ClassVar[str] = "holdfast.orders.captured"
    payment_id: Printable
    amount: Money


class Confirmed(_Event):
    """Its stock is sold: from here on a parcel is owed."""

    TYPE: ClassVar[str] = "holdfast.orders.confirmed"


class Booked(_Event):
    """A carrier will fetch it."""

    TYPE: ClassVar[str] = "holdfast.orders.booked"
    shipment_id: Printable
    carrier: str
    tracking: str


class Shipped(_Event):
    """It is on its way; it can no longer be cancelled."""

    TYPE: ClassVar[str] = "holdfast.orders.shipped"
    shipment_id: Printable
    carrier: str
    tracking: str


class Delivered(_Event):
    """It has arrived. The end, but for refunds."""

    TYPE: ClassVar[str] = "holdfast.orders.delivered"


class Cancelling(_Event):
    """It will be cancelled, for this reason, when all that was done for it is undone, the last first."""

    TYPE: ClassVar[str] = "holdfast.orders.cancelling"
    reason: CancelReason


class Undone(_Event):
    """One step of the undoing: the parcel called off, the sale restocked, the charge voided, the holds released."""

    TYPE: ClassVar[str] = "holdfast.orders.undone"
    step: Literal["delivery", "sale", "payment", "holds"]


class RefundAsked(_Event):
    """Money will be given back. `refund_id` is the provider's key for it."""

    TYPE: ClassVar[str] = "holdfast.orders.refund-asked"
    refund_id: Printable
    amount: Money


class Refunded(_Event):
    """Money was given back; `refunded` is all of it so far."""

    TYPE: ClassVar[str] = "holdfast.orders.refunded"
    refund_id: Printable
    amount: Money
    refunded: Money


class Cancelled(_Event):
    """It is cancelled and everything is undone. The end. `refunded` is what was captured and given back."""

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
EVENT_VOCABULARY: Final[Vocabulary[Event]] = Vocabulary(get_args(Event), sources=("/orders",))
