"""What delivery is told from outside, beside what every service is."""

from datetime import timedelta

from pydantic import Field

from infrastructure.settings import Settings as Shared
from order_service.delivery.carrier import SimulatedCarrier


class Settings(Shared):
    """Environment variables `HOLDFAST_DELIVERY_SHIP_SECONDS` and so on."""

    delivery_ship_seconds: float = Field(default=3, ge=0, description="the simulated carrier fetches a parcel after it")
    delivery_deliver_seconds: float = Field(default=3, ge=0, description="and delivers it so long after that")

    @property
    def carrier(self) -> SimulatedCarrier:
        """The carrier behind the port."""
        return SimulatedCarrier(
            timedelta(seconds=self.delivery_ship_seconds), timedelta(seconds=self.delivery_deliver_seconds)
        )
