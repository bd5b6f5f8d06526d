"""The public language of the insights: what is bought together, and the shop's figures by window of time.

Both topics are compacted and carry the whole present state of their key under a `version`; readers keep the greatest.
The ratios are defined here, so that everybody who shows them means the same.
"""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Annotated, ClassVar, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from infrastructure.envelope import Message, Moment, Vocabulary
from infrastructure.topics import Topic
from inventory_service.messages import Printable

RELATED: Final = Topic("insights.related.v1", keyed_by="product")
FIGURES: Final = Topic("insights.figures.v1", keyed_by="window")

MOST_RELATED: Final = 10

By = Literal["minute", "hour", "day"]
LENGTHS: Final[Mapping[By, timedelta]] = {
    "minute": timedelta(minutes=1),
    "hour": timedelta(hours=1),
    "day": timedelta(days=1),
}
"""How long the windows are. They begin at whole minutes, hours and days of UTC."""


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)


class RelatedProduct(_Value):
    """A product that orders with the other one have too. The measures are those of `docs/baskets.md`, unrounded."""

    product: Printable
    support: float
    confidence: float
    lift: float


class Related(Message):
    """What is bought together with `product`, most often first, learnt from `orders` orders."""

    TYPE: ClassVar[str] = "holdfast.insights.related"
    KEY: ClassVar[str] = "product"
    product: Printable
    orders: int = Field(ge=0)
    items: Annotated[tuple[RelatedProduct, ...], Field(max_length=MOST_RELATED)]
    version: int = Field(ge=1)


class Takings(_Value):
    """Minor units of one currency: what `orders` committed orders came to, what was captured, what was given back."""

    currency: Annotated[str, Field(pattern=r"^[A-Z]{3}$")]
    orders: int = 0
    ordered: int = 0
    captured: int = 0
    refunded: int = 0

    @property
    def revenue(self) -> int:
        """What was captured, less what was given back; below 0 when more went back than came in."""
        return self.captured - self.refunded

    @property
    def average_order(self) -> float | None:
        """What an order came to; none when there was none."""
        return _share(self.ordered, self.orders)


class Figures(Message):
    """What happened in one window, by the times of the events themselves.

    `shoppers` had something held for them in the window, `buyers` are those of them whose order was committed in it.
    """

    TYPE: ClassVar[str] = "holdfast.insights.figures"
    KEY: ClassVar[str] = "window"
    window: Printable
    by: By
    start: Moment
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
        """Orders placed, over the length of the window."""
        return self.orders_placed / LENGTHS[self.by].total_seconds()

    @property
    def order_success(self) -> float | None:
        """Of the orders that came to confirmation or cancellation, the share confirmed; none when there were none."""
        return _share(self.orders_confirmed, self.orders_confirmed + self.orders_cancelled)

    @property
    def payment_success(self) -> float | None:
        """Of the payments that the provider decided, the share captured."""
        return _share(self.payments_captured, self.payments_captured + self.payments_declined)

    @property
    def conversion(self) -> float | None:
        """Of the shoppers for whom something was held, the share that ordered."""
        return _share(self.buyers, self.shoppers)

    @property
    def refusals(self) -> float | None:
        """Of the holds that were decided, the share refused."""
        return _share(self.holds_refused, self.holds_granted + self.holds_refused)


def window(by: By, start: datetime) -> str:
    """The key of a window: `minute/2026-11-21T10:53Z`, `hour/2026-11-21T10Z`, `day/2026-11-21`."""
    form = {"minute": "%Y-%m-%dT%H:%MZ", "hour": "%Y-%m-%dT%HZ", "day": "%Y-%m-%d"}[by]
    return f"{by}/{start.astimezone(UTC).strftime(form)}"


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


RELATED_VOCABULARY: Final[Vocabulary[Related]] = Vocabulary((Related,), sources=("/insights",))
FIGURES_VOCABULARY: Final[Vocabulary[Figures]] = Vocabulary((Figures,), sources=("/insights",))
