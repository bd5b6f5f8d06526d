"""The settings of delivery, in addition to those of every service."""

from datetime import timedelta

from pydantic import Field

from infrastructure.process.settings import Settings as SharedSettings
from order_service.delivery.carrier import SimulatedCarrier


class Settings(SharedSettings):
    """Environment variables such as `HOLDFAST_DELIVERY_SHIP_SECONDS`."""

    delivery_ship_seconds: float = Field(
        default=3, ge=0, description="time until the simulated carrier collects a parcel"
    )
    delivery_deliver_seconds: float = Field(default=3, ge=0, description="time from the collection to the delivery")

    @property
    def carrier(self) -> SimulatedCarrier:
        """The carrier to call."""
        return SimulatedCarrier(
            timedelta(seconds=self.delivery_ship_seconds), timedelta(seconds=self.delivery_deliver_seconds)
        )
