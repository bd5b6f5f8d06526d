"""The settings of the simulated provider."""

from typing import Self

from pydantic import Field, model_validator

from infrastructure.security.secrets import WebhookSettings
from order_service.payment.settings import Settings as PaymentSettings


class Settings(PaymentSettings, WebhookSettings):
    """Environment variables such as `HOLDFAST_PROVIDER_PORT`; the key and the webhook secret are those of payment."""

    provider_host: str = "127.0.0.1"
    provider_port: int = Field(default=8085, ge=0, le=65535, description="port of the API; 0: any free port")
    provider_file: str = Field(
        default=".holdfast/run/provider/provider.sqlite", description="SQLite file of the charges"
    )
    provider_late_seconds: float = Field(
        default=2, ge=0, description="seconds until a charge with tok_late is captured"
    )

    @model_validator(mode="after")
    def _production_has_a_real_one(self) -> Self:
        if self.profile == "production":
            raise ValueError(
                "the simulated provider does not run in production: set HOLDFAST_PROVIDER_URL to the API of a real one"
            )
        return self
