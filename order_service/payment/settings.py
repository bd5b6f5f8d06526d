"""What payment, and the simulated provider beside it, are told from outside, beside what every service is."""

from typing import Final, Self

from pydantic import Field, SecretStr, model_validator

from infrastructure.settings import Settings as Shared

DEVELOPMENT_KEY: Final = "development-key-that-no-production-shop-accepts"


class Settings(Shared):
    """Environment variables `HOLDFAST_PROVIDER_URL` and so on."""

    provider: str = Field(default="simulated", description="the provider's name, as `payments.state` says it")
    provider_url: str = Field(default="http://127.0.0.1:8085", description="where the provider's API is")
    provider_key: SecretStr = Field(
        default=SecretStr(DEVELOPMENT_KEY), min_length=16, description="proves to the provider that it is us"
    )
    provider_timeout_seconds: float = Field(default=3, gt=0, description="how long one answer of it may take")
    provider_concurrency: int = Field(default=16, ge=1, description="questions to it at a time, for each process")
    webhook_url: str = Field(
        default="", description="where the provider says that something has happened; empty: it is only asked"
    )

    @model_validator(mode="after")
    def _production_has_its_own_key(self) -> Self:
        if self.profile == "production" and self.provider_key.get_secret_value() == DEVELOPMENT_KEY:
            raise ValueError("HOLDFAST_PROVIDER_KEY must be set to the provider's API key in production")
        return self
