"""What the simulated provider is told from outside."""

from typing import Self

from pydantic import Field, model_validator

from order_service.payment.settings import Settings as Shared


class Settings(Shared):
    """Environment variables `HOLDFAST_PROVIDER_PORT` and so on; the key and the webhooks' secret it shares."""

    provider_host: str = "127.0.0.1"
    provider_port: int = Field(default=8085, ge=0, le=65535, description="0: any free one")
    provider_file: str = Field(
        default=".holdfast/run/provider/provider.sqlite", description="what it remembers, also after kill -9"
    )
    provider_late_seconds: float = Field(default=2, ge=0, description="when a charge with tok_late is captured")

    @model_validator(mode="after")
    def _production_has_a_real_one(self) -> Self:
        if self.profile == "production":
            raise ValueError("the provider is a simulation: in production HOLDFAST_PROVIDER_URL names a real one")
        return self
