"""Contract of the insights service: products bought together, and figures of the shop by time window.

Both topics are compacted. Each record is the whole state of its key at a `version`; consumers keep the greatest one.
The ratios are defined here, so that all consumers use the same definitions.
"""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Annotated, ClassVar, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from contracts.envelope import Message, MessageRegistry, Timestamp
from contracts.inventory import Identifier
from contracts.topics import Topic

RELATED: Final = Topic("insights.related.v1", keyed_by="product")
FIGURES: Final = Topic("insights.figures.v1", keyed_by="window")

MAX_RELATED: Final = 10
"""The greatest number of related products of one product."""

WindowUnit = Literal["minute", "hour", "day"]
WINDOW_LENGTHS: Final[Mapping[WindowUnit, timedelta]] = {
    "minute": timedelta(minutes=1),
    "hour": timedelta(hours=1),
    "day": timedelta(days=1),
}
"""The lengths of the windows. Windows start at whole minutes, hours and days of UTC."""


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)


class RelatedProduct(_Value):
    """A product that is often bought together with another. The measures are those of `docs/baskets.md`, unrounded."""

    product: Identifier
    support: float
    confidence: float
    lift: float


class Related(Message):
    """The products bought together with `product`, the most frequent first, computed from `orders` orders."""

    TYPE: ClassVar[str] = "holdfast.insights.related"
    KEY: ClassVar[str] = "product"
    product: Identifier
    orders: int = Field(ge=0)
    items: Annotated[tuple[RelatedProduct, ...], Field(max_length=MAX_RELATED)]
    version: int = Field(ge=1)


class Takings(_Value):
    """Sums in minor units of one currency: `ordered` by `orders` committed orders, `captured`, and `refunded`.

    `payments` is the number of captured payments. It is 0 in records from before it was counted, also if some were.
    """

    currency: Annotated[str, Field(pattern=r"^[A-Z]{3}$")]
    orders: int = 0
    ordered: int = 0
    captured: int = 0
    refunded: int = 0
    payments: int = 0

    @property
    def revenue(self) -> int:
        """The captured less the refunded amount; negative if more was refunded."""
        return self.captured - self.refunded

    @property
    def average_order(self) -> float | None:
        """The average amount of a paid order, `None` without one.

        Where payments were captured but not counted, it is the average of all committed orders.
        """
        if self.payments:
            return _share(self.captured, self.payments)
        return _share(self.ordered, self.orders) if self.captured else None


class Figures(Message):
    """The figures of one window, by the times of the events.

    `shoppers` counts the shoppers with a granted hold or a committed order, `buyers` those with a committed order.
    """

    TYPE: ClassVar[str] = "holdfast.insights.figures"
    KEY: ClassVar[str] = "window"
    window: Identifier
    by: WindowUnit
    start: Timestamp
    orders_placed: int = 0
    orders_committed: int = 0
    orders_confirmed: int = 0
    orders_cancelled: int = 0
    payments_captured: int = 0
    payments_declined: int = 0
    payments_refunded: int = 0
    holds_granted: int = 0
    holds_refused: int = 0
    carts_expired: int = 0
    shoppers: int = 0
    buyers: int = 0
    takings: tuple[Takings, ...] = ()
    version: int = Field(ge=1)

    @property
    def orders_per_second(self) -> float:
        """The placed orders divided by the length of the window."""
        return self.orders_placed / WINDOW_LENGTHS[self.by].total_seconds()

    @property
    def order_success_rate(self) -> float | None:
        """The share of confirmed orders among the confirmed and cancelled ones, `None` if there are none."""
        return _share(self.orders_confirmed, self.orders_confirmed + self.orders_cancelled)

    @property
    def payment_success_rate(self) -> float | None:
        """The share of captured payments among the captured and declined ones, `None` if there are none."""
        return _share(self.payments_captured, self.payments_captured + self.payments_declined)

    @property
    def conversion_rate(self) -> float | None:
        """The share of buyers among the shoppers, `None` if there are none."""
        return _share(self.buyers, self.shoppers)

    @property
    def refusal_rate(self) -> float | None:
        """The share of refused holds among the granted and refused ones, `None` if there are none."""
        return _share(self.holds_refused, self.holds_granted + self.holds_refused)


def window_key(by: WindowUnit, start: datetime) -> str:
    """Return the key of a window: `minute/2026-11-21T10:53Z`, `hour/2026-11-21T10Z`, `day/2026-11-21`."""
    form = {"minute": "%Y-%m-%dT%H:%MZ", "hour": "%Y-%m-%dT%HZ", "day": "%Y-%m-%d"}[by]
    return f"{by}/{start.astimezone(UTC).strftime(form)}"


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


RELATED_REGISTRY: Final[MessageRegistry[Related]] = MessageRegistry((Related,), sources=("/insights",))
FIGURES_REGISTRY: Final[MessageRegistry[Figures]] = MessageRegistry((Figures,), sources=("/insights",))
