"""The settings of payment and of the simulated provider, in addition to those of every service."""

from typing import Final, Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, model_validator

from infrastructure.process.settings import Settings as SharedSettings

DEVELOPMENT_KEY: Final = "development-key-that-no-production-shop-accepts"


class Settings(SharedSettings):
    """Environment variables such as `HOLDFAST_PROVIDER_URL`."""

    provider: str = Field(default="simulated", description="name of the provider, as on the topic `payments.state`")
    provider_url: str = Field(default="http://127.0.0.1:8085", description="base URL of the provider's API")
    provider_key: SecretStr = Field(
        default=SecretStr(DEVELOPMENT_KEY), min_length=16, description="API key of the shop at the provider"
    )
    provider_timeout_seconds: float = Field(default=3, gt=0, description="deadline of one response of the provider")
    provider_concurrency: int = Field(default=16, ge=1, description="concurrent calls to the provider per process")
    webhook_url: str = Field(
        default="", description="URL to which the provider sends webhooks; empty: the provider is only polled"
    )

    @model_validator(mode="after")
    def _production_has_its_own_key(self) -> Self:
        if self.profile == "production" and self.provider_key.get_secret_value() == DEVELOPMENT_KEY:
            raise ValueError("in production HOLDFAST_PROVIDER_KEY must be set to the provider's API key")
        return self

    @model_validator(mode="after")
    def _key_is_sent_over_tls_in_production(self) -> Self:
        url = urlsplit(self.provider_url)
        if url.scheme != "https" and self.requires_tls("provider", url.hostname or ""):
            raise ValueError(
                f"HOLDFAST_PROVIDER_URL is {url.scheme}://{url.hostname}, and production sends the API key over TLS"
                " only: use https://, or add provider to HOLDFAST_ALLOW_PLAINTEXT if the network between is private"
            )
        return self
