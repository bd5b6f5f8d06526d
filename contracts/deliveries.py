"""Contract of the delivery service: requests to deliver a parcel, and the events of a parcel."""

from datetime import timedelta
from typing import ClassVar, Final, get_args

from contracts.envelope import Message, MessageRegistry
from contracts.inventory import Identifier, Line
from contracts.orders import Address
from contracts.topics import Topic

REQUESTS: Final = Topic("deliveries.requests.v1", keyed_by="order", retention=timedelta(days=7))
EVENTS: Final = Topic("deliveries.events.v1", keyed_by="order", retention=timedelta(days=90))


class _DeliveryMessage(Message):
    KEY: ClassVar[str] = "order_id"
    order_id: Identifier
    user_id: Identifier
    shipment_id: Identifier


class Book(_DeliveryMessage):
    """Request: book a parcel. The replies are booked, later shipped, and finally delivered or failed."""

    TYPE: ClassVar[str] = "holdfast.deliveries.book"
    address: Address
    lines: tuple[Line, ...]


class CallOff(_DeliveryMessage):
    """Request: call off a parcel. The reply is called-off, or shipped if the parcel has left already."""

    TYPE: ClassVar[str] = "holdfast.deliveries.call-off"


Request = Book | CallOff
REQUEST_REGISTRY: Final[MessageRegistry[Request]] = MessageRegistry(get_args(Request), sources=("/orders",))


class Booked(_DeliveryMessage):
    """Event: the carrier accepted the booking."""

    TYPE: ClassVar[str] = "holdfast.deliveries.booked"
    carrier: str
    tracking: str


class Shipped(_DeliveryMessage):
    """Event: the carrier collected the parcel."""

    TYPE: ClassVar[str] = "holdfast.deliveries.shipped"
    carrier: str
    tracking: str


class Delivered(_DeliveryMessage):
    """Event: the parcel arrived."""

    TYPE: ClassVar[str] = "holdfast.deliveries.delivered"


class Failed(_DeliveryMessage):
    """Event: the parcel could not be delivered and returns."""

    TYPE: ClassVar[str] = "holdfast.deliveries.failed"
    reason: str


class CalledOff(_DeliveryMessage):
    """Event: the parcel was not collected and will not be."""

    TYPE: ClassVar[str] = "holdfast.deliveries.called-off"


Event = Booked | Shipped | Delivered | Failed | CalledOff
EVENT_REGISTRY: Final[MessageRegistry[Event]] = MessageRegistry(get_args(Event), sources=("/deliveries",))
