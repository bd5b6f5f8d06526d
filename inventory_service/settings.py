"""Settings of the inventory service, in addition to the common ones."""

from datetime import timedelta
from typing import Final

from pydantic import Field

from contracts.inventory import MAX_QUANTITY
from infrastructure.process.settings import Settings as SharedSettings
from inventory_service.state import HoldingLimits, TimeLimits

_DEFAULTS: Final = TimeLimits()
_MINUTE: Final = timedelta(minutes=1)


class Settings(SharedSettings):
    """Environment variables `HOLDFAST_HOLD_MINUTES` and so on."""

    hold_minutes: float = Field(
        default=_DEFAULTS.idle_timeout / _MINUTE,
        ge=0.001,
        description="lifetime of a cart after each granted add or set",
    )
    hold_longest_minutes: float = Field(
        default=_DEFAULTS.max_lifetime / _MINUTE,
        ge=0.001,
        description="maximum lifetime of a cart after its first hold",
    )
    hold_most_units: int = Field(
        default=MAX_QUANTITY,
        ge=1,
        le=MAX_QUANTITY,
        description="most units of a product that one shopper may hold, in the cart and in unsold orders",
    )
    hold_most_share: float = Field(
        default=0.5,
        gt=0,
        le=1,
        description="greatest share of a product's stock that one shopper may hold; 1: no limit",
    )
    hold_free_units: int = Field(
        default=12, ge=1, description="units of a product that a shopper may hold whatever share of the stock they are"
    )
    locks: bool = Field(default=True, description="serialise requests for scarce products with Redis locks")
    lock_above: int = Field(default=5, ge=0, description="requests for more units than this take the lock")
    lock_remaining: int = Field(
        default=5, ge=0, description="requests that would leave fewer units than this take the lock"
    )

    @property
    def holding_limits(self) -> HoldingLimits:
        """The holding limits of the model."""
        return HoldingLimits(self.hold_most_units, self.hold_most_share, self.hold_free_units)

    @property
    def time_limits(self) -> TimeLimits:
        """The time limits of the model."""
        return TimeLimits(
            idle_timeout=timedelta(minutes=self.hold_minutes),
            max_lifetime=timedelta(minutes=self.hold_longest_minutes),
        )
