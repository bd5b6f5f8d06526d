"""The settings of the account service, in addition to those of every service."""

import os
from datetime import timedelta
from typing import Literal, Self

from pydantic import Field, SecretStr, model_validator

from infrastructure.security.secrets import DEVELOPMENT_SECRET, TokenSettings, require_distinct


class Settings(TokenSettings):
    """Environment variables such as `HOLDFAST_ACCOUNTS_PORT`."""

    accounts_host: str = "127.0.0.1"
    accounts_port: int = Field(default=8086, ge=0, le=65535, description="0: any free port")
    accounts_secret: SecretStr = Field(
        default=SecretStr(DEVELOPMENT_SECRET),
        min_length=32,
        description="encrypts the signing keys in the database, and authenticates refresh tokens",
    )
    accounts_secret_previous: SecretStr | None = Field(
        default=None, min_length=32, description="the previous secret, while it is replaced"
    )
    accounts_access_seconds: int = Field(default=900, ge=5, le=3600, description="lifetime of an access token")
    accounts_key_days: float = Field(default=30, gt=0, description="days after which a new signing key is made")
    accounts_key_delay_seconds: float = Field(
        default=120, ge=0, description="seconds that a new key is published before it signs"
    )
    accounts_hash_memory_kib: int = Field(
        default=19456, ge=19456, le=1048576, description="memory of one password hash (argon2id), in KiB"
    )
    accounts_hash_passes: int = Field(default=2, ge=2, le=20, description="passes of one password hash (argon2id)")
    accounts_hash_threads: int = Field(
        default=0, ge=0, le=64, description="passwords hashed at the same time; 0: half of the processor cores"
    )
    accounts_hash_waiting: int = Field(
        default=16, ge=0, le=1000, description="passwords that may wait to be hashed; a further request gets a 429"
    )
    accounts_confirmation: Literal["auto", "required", "optional"] = Field(
        default="auto",
        description="whether an address must be confirmed before its account can log in; auto: in production only",
    )
    accounts_link_url: str = Field(
        default="",
        pattern=r"^(https?://[!-~]+)?$",
        description="page that takes the tokens of mails, as #confirm=TOKEN or #reset=TOKEN; empty: mails have no link",
    )

    @property
    def access_lifetime(self) -> timedelta:
        """Lifetime of an access token."""
        return timedelta(seconds=self.accounts_access_seconds)

    @property
    def requires_confirmation(self) -> bool:
        """True if an address must be confirmed before its account can log in."""
        if self.accounts_confirmation == "auto":
            return self.profile == "production"
        return self.accounts_confirmation == "required"

    @property
    def hash_threads(self) -> int:
        """Number of passwords hashed at the same time."""
        return self.accounts_hash_threads or max(1, (os.cpu_count() or 1) // 2)

    @model_validator(mode="after")
    def _production_has_its_own_secrets(self) -> Self:
        secrets = (self.accounts_secret, self.accounts_secret_previous)
        if self.profile == "production" and DEVELOPMENT_SECRET in [each.get_secret_value() for each in secrets if each]:
            raise ValueError("HOLDFAST_ACCOUNTS_SECRET must be set to a secret of at least 32 characters in production")
        require_distinct(self, "secret", "secret_previous", "accounts_secret", "accounts_secret_previous")
        return self
