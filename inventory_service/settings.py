"""What the inventory service is told from outside, beside what every service is."""

from datetime import timedelta

from pydantic import Field

from infrastructure.settings import Settings as Shared
from inventory_service.state import Rules


class Settings(Shared):
    """Environment variables `HOLDFAST_HOLD_MINUTES` and so on."""

    hold_minutes: float = Field(default=15, ge=0.001, description="a cart lives this long after each granted request")
    hold_longest_minutes: float = Field(default=60, ge=0.001, description="and at most this long after its first")
    locks: bool = Field(default=True, description="whether crowds around scarce products queue at Redis")
    lock_above: int = Field(default=5, ge=0, description="a request for more than this many takes the lock")
    lock_remaining: int = Field(default=5, ge=0, description="and one that would leave fewer than this many")

    @property
    def rules(self) -> Rules:
        """The times of the model."""
        return Rules(
            idle=timedelta(minutes=self.hold_minutes),
            longest=timedelta(minutes=self.hold_longest_minutes),
        )
