"""Settings of the inventory service, in addition to the common ones."""

from datetime import timedelta
from typing import Final

from pydantic import Field

from infrastructure.process.settings import Settings as SharedSettings
from inventory_service.state import TimeLimits

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
    locks: bool = Field(default=True, description="serialise requests for scarce products with Redis locks")
    lock_above: int = Field(default=5, ge=0, description="requests for more units than this take the lock")
    lock_remaining: int = Field(
        default=5, ge=0, description="requests that would leave fewer units than this take the lock"
    )

    @property
    def time_limits(self) -> TimeLimits:
        """The time limits of the model."""
        return TimeLimits(
            idle_timeout=timedelta(minutes=self.hold_minutes),
            max_lifetime=timedelta(minutes=self.hold_longest_minutes),
        )
