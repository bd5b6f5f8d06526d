"""The settings of the order service, in addition to those of every service."""

from datetime import timedelta

from pydantic import Field

from infrastructure.process.settings import Settings as SharedSettings
from order_service.model import SagaTimeouts


class Settings(SharedSettings):
    """Environment variables such as `HOLDFAST_PAYMENT_PATIENCE_SECONDS`."""

    payment_patience_seconds: float = Field(
        default=600, ge=0, description="age at which an open charge is voided and its order cancelled"
    )
    order_ask_again_seconds: float = Field(
        default=30,
        ge=0.1,
        description="pause before open commands of an order are sent again; it doubles with each retry",
    )

    @property
    def timeouts(self) -> SagaTimeouts:
        """The timeouts of the saga."""
        return SagaTimeouts(
            payment_timeout=timedelta(seconds=self.payment_patience_seconds),
            retry_pause=timedelta(seconds=self.order_ask_again_seconds),
        )
