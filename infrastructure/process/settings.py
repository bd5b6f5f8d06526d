"""Settings of all services, read from environment variables with the prefix `HOLDFAST_`."""

from typing import Literal, Self

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from contracts.topics import MOST_PARTITIONS, PARTITIONS, Topic

DEVELOPMENT_SECRET = "development-secret-that-no-production-shop-accepts"  # noqa: S105 - refused by the production profile


class Settings(BaseSettings):
    """Addresses, names and limits that all services share. Each service adds its own in its `settings.py`."""

    model_config = SettingsConfigDict(env_prefix="HOLDFAST_", extra="ignore", frozen=True)

    profile: Literal["local", "production"] = "local"
    kafka: str = Field(default="127.0.0.1:9092", description="bootstrap servers: host:port, comma-separated")
    postgres_url: str = Field(default="", description="a libpq URL; empty: libpq's own PG… variables")
    redis_url: str = Field(default="redis://127.0.0.1:6379/0")
    prefix: str = Field(
        default="",
        pattern=r"^[a-z0-9._-]{0,32}$",
        description="prefix of all topics, schemas, Redis keys and consumer groups, so that several shops can coexist",
    )
    secret: SecretStr = Field(default=SecretStr(DEVELOPMENT_SECRET), min_length=32, description="signs tokens")
    secret_previous: SecretStr | None = Field(
        default=None,
        min_length=32,
        description="the previous secret, while secrets are rotated: its tokens are still valid",
    )
    webhook_secret: SecretStr = Field(
        default=SecretStr(DEVELOPMENT_SECRET), min_length=32, description="signs the payment provider's webhooks"
    )
    replica: str = Field(
        default="solo",
        pattern=r"^[a-z0-9-]{1,40}$",
        description="stable name of this process: its identity in the consumer group",
    )
    health_host: str = "127.0.0.1"
    health_port: int = Field(default=0, ge=0, le=65535, description="0: any free one")
    state_dir: str = Field(default=".holdfast/run/solo", description="folder of this replica's lock file")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    audit_grace_seconds: float = Field(
        default=30, ge=0, description="seconds that a request may be without an outcome before the audit reports it"
    )
    audit_seconds: float = Field(
        default=60, ge=0, description="seconds between two background audits, in services that have one; 0: no audits"
    )
    dead_letter_limit_per_minute: int = Field(
        default=1000,
        ge=0,
        description="dead letters per minute of one topic at which a worker stops, if the share is exceeded too; 0: no"
        " limit",
    )
    dead_letter_limit_share: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="share of a topic's records within a minute, from 0 to 1, that must be exceeded as well",
    )
    replication: int = Field(default=1, ge=1, description="copies of each Kafka partition")
    partitions: int = Field(
        default=PARTITIONS,
        ge=1,
        le=MOST_PARTITIONS,
        description="partitions of each keyed topic; the same for all processes, and fixed once the topics exist",
    )

    def topic(self, topic: Topic) -> str:
        """Return the broker's name of `topic` in this shop."""
        return self.prefix + topic.name

    def partitions_of(self, topic: Topic) -> int:
        """Return the number of partitions of `topic` in this shop."""
        return self.partitions if topic.partitions is None else topic.partitions

    def schema_name(self, service: str) -> str:
        """Return the Postgres schema of `service` in this shop."""
        return (self.prefix + service).replace(".", "_").replace("-", "_")

    @model_validator(mode="after")
    def _require_own_secrets_in_production(self) -> Self:
        secrets = [secret.get_secret_value() for secret in (self.secret, self.secret_previous) if secret]
        if self.profile == "production" and DEVELOPMENT_SECRET in secrets:
            raise ValueError("HOLDFAST_SECRET must be set to a secret of at least 32 characters in production")
        if self.profile == "production" and self.webhook_secret.get_secret_value() == DEVELOPMENT_SECRET:
            raise ValueError("HOLDFAST_WEBHOOK_SECRET must be set to the payment provider's own in production")
        return self
