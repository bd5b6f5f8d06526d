"""Settings of the secrets that only some services know. A service without such a setting never sees the secret."""

from typing import Final, Self

from pydantic import Field, SecretStr, model_validator

from infrastructure.process.settings import Settings

DEVELOPMENT_SECRET: Final = "development-secret-that-no-production-shop-accepts"  # noqa: S105 - refused by the production profile


class TokenSettings(Settings):
    """Secrets that sign tokens: of the edge, which verifies them, and of `holdfast token`, which issues them."""

    secret: SecretStr = Field(default=SecretStr(DEVELOPMENT_SECRET), min_length=32, description="signs tokens")
    secret_previous: SecretStr | None = Field(
        default=None,
        min_length=32,
        description="the previous secret, while secrets are rotated: its tokens are still valid",
    )

    @model_validator(mode="after")
    def _require_own_token_secret_in_production(self) -> Self:
        secrets = [secret.get_secret_value() for secret in (self.secret, self.secret_previous) if secret]
        if self.profile == "production" and DEVELOPMENT_SECRET in secrets:
            raise ValueError("HOLDFAST_SECRET must be set to a secret of at least 32 characters in production")
        return self


class WebhookSettings(Settings):
    """Secret that signs webhooks: of the edge, which verifies them, and of the simulated provider, which signs them."""

    webhook_secret: SecretStr = Field(
        default=SecretStr(DEVELOPMENT_SECRET), min_length=32, description="signs the payment provider's webhooks"
    )

    @model_validator(mode="after")
    def _require_own_webhook_secret_in_production(self) -> Self:
        if self.profile == "production" and self.webhook_secret.get_secret_value() == DEVELOPMENT_SECRET:
            raise ValueError("HOLDFAST_WEBHOOK_SECRET must be set to the payment provider's own in production")
        return self


def require_distinct(settings: Settings, *names: str) -> None:
    """Raise `ValueError` if two of the secrets named are equal in production: a leak of one must not be one of both."""
    if settings.profile != "production":
        return
    values = [secret.get_secret_value() for name in names if (secret := getattr(settings, name)) is not None]
    if len(set(values)) != len(values):
        listed = " and ".join(f"HOLDFAST_{name.upper()}" for name in names)
        raise ValueError(f"{listed} must be different secrets in production: generate one for each")
