"""Contract of the payment service: requests to the provider for an order, and their results.

`payment_id` and `refund_id` are the provider's idempotency keys, derived from the order and the step: a charge is made
once, however often it is requested.
"""

from datetime import timedelta
from typing import ClassVar, Final, get_args

from contracts.envelope import Message, MessageRegistry, Timestamp
from contracts.inventory import Identifier, Money
from contracts.orders import Token
from contracts.topics import Topic

REQUESTS: Final = Topic("payments.requests.v1", keyed_by="order", retention=timedelta(days=7))
EVENTS: Final = Topic("payments.events.v1", keyed_by="order", retention=timedelta(days=90))
STATE: Final = Topic("payments.state.v1", keyed_by="provider")
"""Compacted topic: the availability of the provider. The edge refuses new orders while the provider is unavailable."""


class _PaymentMessage(Message):
    KEY: ClassVar[str] = "order_id"
    order_id: Identifier
    user_id: Identifier
    payment_id: Identifier


# ---- requests -------------------------------------------------------------------------------------------------------


class Charge(_PaymentMessage):
    """Request: charge `amount` to the payment `token`. The reply is captured, declined or, for now, unknown."""

    TYPE: ClassVar[str] = "holdfast.payments.charge"
    amount: Money
    token: Token


class Void(_PaymentMessage):
    """Request: prevent any capture of this payment. The reply is voided, or captured if the request came too late."""

    TYPE: ClassVar[str] = "holdfast.payments.void"


class Refund(_PaymentMessage):
    """Request: refund `amount` of a captured payment. The reply is refunded."""

    TYPE: ClassVar[str] = "holdfast.payments.refund"
    refund_id: Identifier
    amount: Money


class Query(_PaymentMessage):
    """Request: query the provider for the state of a payment. The reply is that of a charge."""

    TYPE: ClassVar[str] = "holdfast.payments.query"


class Notified(_PaymentMessage):
    """Request caused by a signed webhook of the provider: a reason to query the provider, never a fact."""

    TYPE: ClassVar[str] = "holdfast.payments.notified"


Request = Charge | Void | Refund | Query | Notified
REQUEST_REGISTRY: Final[MessageRegistry[Request]] = MessageRegistry(get_args(Request), sources=("/orders", "/edge"))

# ---- events ---------------------------------------------------------------------------------------------------------


class Captured(_PaymentMessage):
    """Event: the provider captured `amount`. It may differ from the requested amount, so consumers must compare."""

    TYPE: ClassVar[str] = "holdfast.payments.captured"
    amount: Money


class Declined(_PaymentMessage):
    """Event: the provider declined the charge permanently."""

    TYPE: ClassVar[str] = "holdfast.payments.declined"
    reason: str


class Voided(_PaymentMessage):
    """Event: nothing was captured for this payment, and nothing ever will be."""

    TYPE: ClassVar[str] = "holdfast.payments.voided"


class Refunded(_PaymentMessage):
    """Event: the provider refunded `amount`."""

    TYPE: ClassVar[str] = "holdfast.payments.refunded"
    refund_id: Identifier
    amount: Money


class Unknown(_PaymentMessage):
    """Event: the provider did not reply in time, so the outcome is unknown. The service keeps retrying."""

    TYPE: ClassVar[str] = "holdfast.payments.unknown"
    reason: str


Event = Captured | Declined | Voided | Refunded | Unknown
EVENT_REGISTRY: Final[MessageRegistry[Event]] = MessageRegistry(get_args(Event), sources=("/payments",))


class Provider(Message):
    """The availability of the provider since the time `since`. Consumers keep the greatest `version`."""

    TYPE: ClassVar[str] = "holdfast.payments.provider"
    KEY: ClassVar[str] = "provider"
    provider: Identifier
    available: bool
    since: Timestamp
    version: int


STATE_REGISTRY: Final[MessageRegistry[Provider]] = MessageRegistry((Provider,), sources=("/payments",))
