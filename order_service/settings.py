"""What the order service is told from outside, beside what every service is."""

from datetime import timedelta

from pydantic import Field

from infrastructure.settings import Settings as Shared
from order_service.model import Rules


class Settings(Shared):
    """Environment variables `HOLDFAST_PAYMENT_PATIENCE_SECONDS` and so on."""

    payment_patience_seconds: float = Field(
        default=600, ge=0, description="a charge that is open for longer is voided, and its order cancelled"
    )
    order_ask_again_seconds: float = Field(
        default=30, ge=0.1, description="what an order waits for is asked again after this, then after twice as long …"
    )

    @property
    def rules(self) -> Rules:
        """The times of the model."""
        return Rules(
            payment_patience=timedelta(seconds=self.payment_patience_seconds),
            ask_again=timedelta(seconds=self.order_ask_again_seconds),
        )
