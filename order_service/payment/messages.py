"""The public language of payment: what is asked of the provider for an order, and what came of it.

`payment_id` and `refund_id` are the provider's idempotency keys, derived from order and step: a charge that is asked
for a hundred times is made once.
"""

from datetime import timedelta
from typing import ClassVar, Final, get_args

from infrastructure.envelope import Message, Moment, Vocabulary
from infrastructure.topics import Topic
from inventory_service.messages import Money, Printable
from order_service.messages import Token

REQUESTS: Final = Topic("payments.requests.v1", keyed_by="order", retention=timedelta(days=7))
EVENTS: Final = Topic("payments.events.v1", keyed_by="order", retention=timedelta(days=90))
STATE: Final = Topic("payments.state.v1", keyed_by="provider")
"""Compacted: whether the provider can be reached, for the edge, which then takes no new orders."""


class _OfOrder(Message):
    KEY: ClassVar[str] = "order_id"
    order_id: Printable
    user_id: Printable
    payment_id: Printable


# ---- requests -------------------------------------------------------------------------------------------------------


class Charge(_OfOrder):
    """Capture `amount` from what `token` stands for; answered by captured, declined or, for the time being, unknown."""

    TYPE: ClassVar[str] = "holdfast.payments.charge"
    amount: Money
    token: Token


class Void(_OfOrder):
    """Let nothing be captured under this key any more; answered by voided, or captured when it came too late."""

    TYPE: ClassVar[str] = "holdfast.payments.void"


class Refund(_OfOrder):
    """Give `amount` of a captured payment back; answered by refunded."""

    TYPE: ClassVar[str] = "holdfast.payments.refund"
    refund_id: Printable
    amount: Money


class Query(_OfOrder):
    """Ask the provider what became of it; answered as the charge."""

    TYPE: ClassVar[str] = "holdfast.payments.query"


class Notified(_OfOrder):
    """The provider's signed webhook says that something has happened: a reason to ask, never a fact."""

    TYPE: ClassVar[str] = "holdfast.payments.notified"


Request = Charge | Void | Refund | Query | Notified
REQUEST_VOCABULARY: Final[Vocabulary[Request]] = Vocabulary(get_args(Request), sources=("/orders", "/edge"))

# ---- events ---------------------------------------------------------------------------------------------------------


class Captured(_OfOrder):
    """The provider has taken `amount`, whatever was asked for: whoever reads compares."""

    TYPE: ClassVar[str] = "holdfast.payments.captured"
    amount: Money


class Declined(_OfOrder):
    """The provider said no, for good."""

    TYPE: ClassVar[str] = "holdfast.payments.declined"
    reason: str


class Voided(_OfOrder):
    """Nothing was captured under this key, and nothing ever will be."""

    TYPE: ClassVar[str] = "holdfast.payments.voided"


class Refunded(_OfOrder):
    """The provider has given `amount` back."""

    TYPE: ClassVar[str] = "holdfast.payments.refunded"
    refund_id: Printable
    amount: Money


class Unknown(_OfOrder):
    """The provider did not answer (in time): the attempt may have been made or not. It is tried further."""

    TYPE: ClassVar[str] = "holdfast.payments.unknown"
    reason: str


Event = Captured | Declined | Voided | Refunded | Unknown
EVENT_VOCABULARY: Final[Vocabulary[Event]] = Vocabulary(get_args(Event), sources=("/payments",))


class Provider(Message):
    """Whether the provider answers, `since` when, at `version`; readers keep the greatest."""

    TYPE: ClassVar[str] = "holdfast.payments.provider"
    KEY: ClassVar[str] = "provider"
    provider: Printable
    available: bool
    since: Moment
    version: int


STATE_VOCABULARY: Final[Vocabulary[Provider]] = Vocabulary((Provider,), sources=("/payments",))
