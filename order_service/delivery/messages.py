"""The public language of delivery: a parcel that is to be fetched, and where it has come to."""

from datetime import timedelta
from typing import ClassVar, Final, get_args

from infrastructure.envelope import Message, Vocabulary
from infrastructure.topics import Topic
from inventory_service.messages import Line, Printable
from order_service.messages import Address

REQUESTS: Final = Topic("deliveries.requests.v1", keyed_by="order", retention=timedelta(days=7))
EVENTS: Final = Topic("deliveries.events.v1", keyed_by="order", retention=timedelta(days=90))


class _OfOrder(Message):
    KEY: ClassVar[str] = "order_id"
    order_id: Printable
    user_id: Printable
    shipment_id: Printable


class Book(_OfOrder):
    """Have a parcel fetched; answered by booked, later shipped, and at the end delivered or failed."""

    TYPE: ClassVar[str] = "holdfast.deliveries.book"
    address: Address
    lines: tuple[Line, ...]


class CallOff(_OfOrder):
    """Do not fetch it; answered by called-off, or by shipped when it is gone already."""

    TYPE: ClassVar[str] = "holdfast.deliveries.call-off"


Request = Book | CallOff
REQUEST_VOCABULARY: Final[Vocabulary[Request]] = Vocabulary(get_args(Request), sources=("/orders",))


class Booked(_OfOrder):
    """The carrier will fetch it."""

    TYPE: ClassVar[str] = "holdfast.deliveries.booked"
    carrier: str
    tracking: str


class Shipped(_OfOrder):
    """The carrier has it."""

    TYPE: ClassVar[str] = "holdfast.deliveries.shipped"
    carrier: str
    tracking: str


class Delivered(_OfOrder):
    """It has arrived."""

    TYPE: ClassVar[str] = "holdfast.deliveries.delivered"


class Failed(_OfOrder):
    """It could not be delivered and comes back."""

    TYPE: ClassVar[str] = "holdfast.deliveries.failed"
    reason: str


class CalledOff(_OfOrder):
    """It was never fetched, and will not be."""

    TYPE: ClassVar[str] = "holdfast.deliveries.called-off"


Event = Booked | Shipped | Delivered | Failed | CalledOff
EVENT_VOCABULARY: Final[Vocabulary[Event]] = Vocabulary(get_args(Event), sources=("/deliveries",))
